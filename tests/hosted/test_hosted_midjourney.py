"""Midjourney's tasks: grids, buttons, regions, and how they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from comet_service import CORNERS, KEY, CometService
from hosting import Only, config, hole, photo
from PIL import Image

from imagewright.engines.hosted import midjourney
from imagewright.engines.hosted.midjourney import MidjourneyEngine
from imagewright.errors import (
    ModelNotFoundError,
    ModerationError,
    ProviderError,
    QuotaError,
    StoppedError,
    UnsupportedError,
)
from imagewright.request import ImageRequest, ImageResult
from imagewright.watch import Stop, Watch
from imagewright.workshop import Workshop


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[CometService]:
    monkeypatch.setattr(midjourney, "EVERY", 0.01)
    with CometService() as running:
        yield running


@pytest.fixture
def engine(service: CometService) -> Iterator[MidjourneyEngine]:
    found = MidjourneyEngine(config("cometapi", f"{service.url}/v1", key=KEY))
    yield found
    found.close()


def made(engine: MidjourneyEngine, **fields: object) -> ImageResult:
    return engine.generate(ImageRequest(**{"prompt": "a red cube", "model": "v7", "seed": 5, **fields}))


def colours(images: Sequence[Image.Image]) -> list[str]:
    """The colour of each picture, as #rrggbb."""
    return [f"#{bytes(np.asarray(image.convert('RGB'))[5, 5]).hex()}" for image in images]


def test_a_grid_becomes_four_pictures(service: CometService, engine: MidjourneyEngine) -> None:
    result = made(engine, n=4)
    assert colours(result.images) == list(CORNERS)
    assert [image.size for image in result.images] == [(32, 32)] * 4
    assert service.asked[0].json() == {
        "prompt": "a red cube --v 7 --ar 1:1 --seed 5",
        "botType": "MID_JOURNEY",
        "accountFilter": {"modes": ["FAST"]},
    }
    assert [(record["seed"], record["position"]) for record in result.records] == [(5, 1), (5, 2), (5, 3), (5, 4)]
    assert result.records[0]["task"] == "1000"
    assert {"U1", "V4"} <= set(result.records[0]["buttons"])
    assert result.records[0]["provider"] == "cometapi"
    assert len(made(engine)) == 1
    assert Workshop(Only(engine)).make(ImageRequest(prompt="x", model="v7", n=2)).images[1].size == (32, 32)


def test_what_is_asked_for_becomes_its_parameters(service: CometService, engine: MidjourneyEngine) -> None:
    made(
        engine,
        model="niji-6",
        size=(1600, 900),
        negative_prompt="text --v 3\nblur",
        stylize=2.5,
        variety=0.3,
        weird=0.5,
        stop=0.8,
        tile=True,
        provider_options={"speed": "turbo", "raw": True, "sref": "123 --no x", "image_weight": 1.5},
        images=(photo(),),
    )
    body = service.asked[0].json()
    assert body["prompt"] == (
        "a red cube --niji 6 --ar 16:9 --seed 5 --no text v 3 blur --stylize 250 --chaos 30 --weird 1500 --stop 80 "
        "--tile --raw --sref 123 no x --iw 1.5"
    )
    assert body["accountFilter"] == {"modes": ["TURBO"]}
    assert len(body["base64Array"]) == 1


def test_what_is_not_there_is_said(engine: MidjourneyEngine) -> None:
    with pytest.raises(UnsupportedError, match="no speed 'warp'"):
        made(engine, provider_options={"speed": "warp"})
    result = made(engine, num_inference_steps=9, size=(640, 640), provider_options={"api_base": "x"})
    fields = {one.field for one in result.adjustments}
    assert fields == {"num_inference_steps", "provider_options.api_base", "size"}


def test_buttons_are_pressed_for_whole_pictures(service: CometService, engine: MidjourneyEngine) -> None:
    result = made(engine, n=3, provider_options={"upscale": True})
    assert colours(result.images) == list(CORNERS[:3])
    assert [image.size for image in result.images] == [(64, 64)] * 3
    assert [record["task"] for record in result.records] == ["1001", "1002", "1003"]
    assert result.records[0]["buttons"] == ["Vary (Region)"]


def test_a_later_request_presses_a_button(service: CometService, engine: MidjourneyEngine) -> None:
    task = made(engine).records[0]["task"]
    assert colours(engine.act(task, "U3")) == [CORNERS[2]]
    assert colours(engine.act(task, "V2")) == list(CORNERS)
    assert colours(engine.act(task, "🔄")) == list(CORNERS)
    again = made(engine, provider_options={"task": task, "action": "U2"}, n=2)
    assert colours(again.images) == [CORNERS[1]]
    assert [(one.field, one.used) for one in again.adjustments if one.field == "n"] == [("n", 1)]
    with pytest.raises(UnsupportedError, match="It has: U1, U2"):
        engine.act(task, "Z9")
    with pytest.raises(UnsupportedError, match="no task"):
        engine.act("../../v1/models", "U1")


def test_a_region_is_asked_back_for(service: CometService, engine: MidjourneyEngine) -> None:
    task = made(engine, provider_options={"upscale": True}).records[0]["task"]
    mask = hole((64, 64), (10, 10, 30, 20))
    assert len(engine.act(task, "Vary (Region)", "a hat", mask)) == 4
    (body,) = [asked.json() for asked in service.asked if asked.path == "/mj/submit/modal"]
    assert body["prompt"] == "a hat"
    sent = service._mask(body["maskBase64"])
    assert sent.getpixel((15, 15)) == 255 and sent.getpixel((5, 5)) == 0
    assert (np.asarray(sent) == 255).sum() == 200


def test_an_edit_stays_within_its_mask(service: CometService, engine: MidjourneyEngine) -> None:
    picture, mask = photo((200, 120)), hole((200, 120), (50, 40, 90, 80))
    result = made(engine, image=picture, mask=mask, prompt="a moon")
    body = service.asked[0].json()
    assert body["prompt"] == "a moon --v 7 --seed 5"
    kept = np.asarray(mask)[..., 1] > 0
    before, after = np.asarray(picture), np.asarray(result.images[0])
    assert (before[kept] == after[kept]).all()
    assert (before[~kept] != after[~kept]).any()


def test_a_picture_to_start_from_goes_along(service: CometService, engine: MidjourneyEngine) -> None:
    assert made(engine, image=photo()).images[0].size == (96, 64)
    assert len(service.asked[0].json()["base64Array"]) == 1


def test_progress_is_told(engine: MidjourneyEngine) -> None:
    seen: list[float] = []
    engine.generate(ImageRequest(prompt="x", model="v7"), Watch(lambda done, total: seen.append(done / total)))
    assert seen == [0, 0, 0.58]


@pytest.mark.parametrize(
    ("code", "kind", "retryable"),
    [
        (24, ModerationError, False),
        (23, QuotaError, True),
        (3, ProviderError, False),
        (4, ProviderError, False),
        (9, ProviderError, False),
        (777, ProviderError, False),
    ],
)
def test_a_task_that_is_not_taken(
    service: CometService, engine: MidjourneyEngine, code: int, kind: type[ProviderError], retryable: bool
) -> None:
    service.code = code
    with pytest.raises(kind, match=f"code {code}") as caught:
        made(engine)
    assert type(caught.value) is kind
    assert caught.value.retryable is retryable
    assert caught.value.code == str(code)
    assert len(service.asked) == 1


def test_a_task_that_waits_in_line_is_taken(service: CometService, engine: MidjourneyEngine) -> None:
    service.code = 22
    assert len(made(engine)) == 1


@pytest.mark.parametrize(
    ("ends", "reason", "kind"),
    [
        ("FAILURE", "Banned prompt detected", ModerationError),
        ("FAILED", "Sorry! Our AI moderator is unsure", ModerationError),
        ("FAILURE", "timeout", ProviderError),
        ("FAILURE", "", ProviderError),
        ("NEW_STATE", "", ProviderError),
    ],
)
def test_a_task_that_fails(
    service: CometService, engine: MidjourneyEngine, ends: str, reason: str, kind: type[ProviderError]
) -> None:
    service.ends, service.reason = ends, reason
    with pytest.raises(kind) as caught:
        made(engine)
    assert type(caught.value) is kind
    assert reason in str(caught.value)


def test_a_stop_ends_the_waiting(service: CometService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(midjourney, "EVERY", 30.0)
    engine = MidjourneyEngine(config("cometapi", f"{service.url}/v1", 60.0, key=KEY))
    stop = Stop()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    start = time.monotonic()
    with pytest.raises(StoppedError):
        engine.generate(ImageRequest(prompt="x", model="v7"), Watch(stop=stop))
    assert time.monotonic() - start < 1.0
    timer.join()
    engine.close()


def test_versions_not_known_here_are_passed_on(service: CometService, engine: MidjourneyEngine) -> None:
    made(engine, model="v8.1")
    assert "--v 8.1 " in service.asked[0].json()["prompt"]
    with pytest.raises(ModelNotFoundError):
        made(engine, model="v8; rm")
