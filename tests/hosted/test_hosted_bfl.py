"""Black Forest Labs' engine against a stand-in that knows the fields of every model."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from bfl_service import FIELDS, Bfl
from hosting import Only, border, config, hole, photo
from PIL import Image
from standin import StandIn, as_json

from imagewright.engines.hosted import bfl
from imagewright.engines.hosted.bfl import BFLEngine
from imagewright.errors import ModerationError, ProviderError, QuotaError, RequestError, StoppedError, UnsupportedError
from imagewright.request import ImageRequest
from imagewright.watch import Stop, Watch
from imagewright.workshop import Workshop

DRAWING = sorted(name for name in FIELDS if not name.endswith(("fill", "expand")))
EDITING = [name for name in DRAWING if name.startswith(("flux-2", "flux-3", "flux-kontext"))]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfl, "POLL", 0.005)


@pytest.fixture
def service() -> Iterator[Bfl]:
    with Bfl() as running:
        yield running


@pytest.fixture
def engine(service: Bfl) -> Iterator[BFLEngine]:
    with closing(BFLEngine(config("bfl", f"{service.url}/v1", key=service.key))) as made:
        yield made


def body(service: Bfl) -> dict[str, Any]:
    """What the first task was submitted with."""
    found: dict[str, Any] = service.tasks["task-0"]["body"]
    return found


def decoded(data: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data)), formats=("PNG",))


def test_the_models_are_theirs() -> None:
    assert set(bfl.MODELS) == set(FIELDS)


@pytest.mark.parametrize("model", DRAWING)
def test_every_model_draws(service: Bfl, engine: BFLEngine, model: str) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model=model, seed=5, size=(1300, 731)))
    record = result.records[0]
    assert record["task_id"] == "task-0" and record["cost"] == pytest.approx(0.04) and record["output_mp"] == 1.05
    assert result[0].width / result[0].height == pytest.approx(1300 / 731, rel=0.03)
    seeded = "seed" in FIELDS[model]
    assert record["seed"] == (5 if seeded else 99)
    said = {one.field for one in result.adjustments}
    assert said == ({"size"} if seeded else {"size", "seed"})
    assert [asked.path for asked in service.asked] == [f"/v1/{model}", *["/v1/get_result"] * 3, "/delivery/task-0.png"]


@pytest.mark.parametrize(
    ("model", "size", "used"),
    [
        ("flux-2-pro", (1000, 1000), (992, 992)),
        ("flux-2-pro", (4096, 4096), (2048, 2048)),
        ("flux-2-pro", (1, 1), (64, 64)),
        ("flux-pro-1.1", (1792, 1024), (1440, 832)),
        ("flux-dev", (64, 64), (256, 256)),
        ("flux-pro", (4096, 205), (1440, 256)),
    ],
)
def test_free_sizes_are_bent_to_those_allowed(
    service: Bfl, engine: BFLEngine, model: str, size: tuple[int, int], used: tuple[int, int]
) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model=model, size=size))
    assert (body(service)["width"], body(service)["height"]) == used == result[0].size
    assert [(one.field, one.used) for one in result.adjustments] == [("size", used)]


@pytest.mark.parametrize(
    ("size", "tier"), [((700, 700), "768sq"), ((1024, 1024), "1k"), ((2048, 2048), "2k"), ((4096, 4096), "4k")]
)
def test_the_newest_draw_in_tiers(service: Bfl, engine: BFLEngine, size: tuple[int, int], tier: str) -> None:
    engine.generate(ImageRequest(prompt="a fox", model="flux-3-image", size=size))
    assert body(service) == {"prompt": "a fox", "aspect_ratio": "1:1", "resolution": tier}


def test_steps_and_guidance_stay_within_what_a_model_takes(service: Bfl, engine: BFLEngine) -> None:
    request = ImageRequest(
        prompt="a fox", model="flux-2-flex", num_inference_steps=200, guidance_scale=1, size=(64, 64)
    )
    result = engine.generate(request)
    assert (body(service)["steps"], body(service)["guidance"]) == (50, 1.5)
    assert {(one.field, one.used) for one in result.adjustments} == {
        ("num_inference_steps", 50),
        ("guidance_scale", 1.5),
    }


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("flux-2-pro", {"safety_tolerance": 0}),
        ("flux-3-image", {"grounding": False, "version": "latest"}),
        ("flux-pro-1.1-ultra", {"raw": True}),
        ("flux-dev", {"prompt_upsampling": True}),
    ],
)
def test_further_fields_of_theirs_are_passed_on_but_no_address(
    service: Bfl, engine: BFLEngine, model: str, options: dict[str, object]
) -> None:
    told = {**options, "webhook_url": "https://example.com"}
    result = engine.generate(ImageRequest(prompt="a fox", model=model, provider_options=told))
    assert body(service).items() >= options.items() and "webhook_url" not in body(service)
    assert "provider_options.webhook_url" in {one.field for one in result.adjustments}


def test_several_pictures_are_several_tasks_with_seeds_that_follow(service: Bfl, engine: BFLEngine) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro", size=(64, 64), seed=2**32 - 1, n=3))
    assert [record["seed"] for record in result.records] == [2**32 - 1, 0, 1]
    assert len(service.tasks) == 3


@pytest.mark.parametrize("model", EDITING)
def test_an_instruction_goes_with_the_picture_in_its_place(service: Bfl, engine: BFLEngine, model: str) -> None:
    picture = photo((200, 120))
    result = engine.generate(ImageRequest(prompt="make it red", model=model, image=picture, instruction=True))
    sent = body(service)
    seen = decoded(sent["images"][0] if "images" in sent else sent["input_image"])
    shape = (sent["width"], sent["height"]) if "width" in sent else tuple(map(int, sent["aspect_ratio"].split(":")))
    assert seen.width / seen.height == pytest.approx(shape[0] / shape[1], rel=0.01)
    assert result[0].size == picture.size and result.records[0]["instruction"] is True
    assert "strength" not in {one.field for one in result.adjustments}


@pytest.mark.parametrize(("model", "most"), [("flux-2-pro", 8), ("flux-2-klein-4b", 4), ("flux-3-image", 10)])
def test_further_pictures_go_along_as_far_as_a_model_takes_them(
    service: Bfl, engine: BFLEngine, model: str, most: int
) -> None:
    others = tuple(photo((64, 48)) for _ in range(most - 1))
    engine.generate(
        ImageRequest(prompt="all of them", model=model, image=photo((64, 64)), images=others, instruction=True)
    )
    sent = body(service)
    names = [f"input_image_{number}" for number in range(2, most + 1)]
    pictures = sent["images"][1:] if "images" in sent else [sent[name] for name in names]
    least = 256 if model.startswith("flux-3") else 48
    assert [min(decoded(one).size) for one in pictures] == [least] * (most - 1)
    with pytest.raises(UnsupportedError, match=f"takes {most} pictures"):
        engine.generate(ImageRequest(prompt="more", model=model, image=photo(), images=(*others, photo())))


def test_a_mask_turns_white_where_it_was_clear_and_all_else_stays(service: Bfl, engine: BFLEngine) -> None:
    picture = photo((400, 300))
    mask = hole((400, 300), (100, 80, 220, 200))
    result = engine.generate(
        ImageRequest(prompt="a hat", model="flux-pro-1.0-fill", image=picture, mask=mask, quality="low")
    )
    sent = body(service)
    assert (
        set(np.unique(np.asarray(decoded(sent["mask"])))) == {0, 255} and sent["steps"] == 25 and sent["guidance"] == 60
    )
    seen = np.asarray(decoded(sent["mask"]))
    assert seen[seen.shape[0] // 2, seen.shape[1] * 160 // 400] == 255 and seen[2, 2] == 0
    assert decoded(sent["image"]).mode == "RGB"  # an alpha channel would be a second mask
    before, after = np.asarray(picture), np.asarray(result[0])
    changed = (before != after).any(axis=-1)
    assert changed[80:200, 100:220].any() and not changed[:80].any() and not changed[200:].any()


def test_expanding_sends_what_is_kept_and_how_much_to_add(service: Bfl, engine: BFLEngine) -> None:
    mask = border((128, 96), (32, 0, 96, 96))
    result = engine.generate(
        ImageRequest(prompt="a meadow", model="flux-pro-1.0-expand", image=photo((128, 96)), mask=mask)
    )
    sent, kept = body(service), decoded(body(service)["image"])
    assert sent["top"] == sent["bottom"] == 0 and sent["left"] == pytest.approx(sent["right"], abs=2)
    assert kept.width / (kept.width + sent["left"] + sent["right"]) == pytest.approx(0.5, abs=0.02)
    assert np.array_equal(np.asarray(result[0])[:, 32:96], np.asarray(photo((128, 96)))[:, 32:96])


def test_what_a_model_cannot_do_is_refused_before_anything_is_sent(service: Bfl, engine: BFLEngine) -> None:
    for request in (
        ImageRequest(prompt="a hat", model="flux-2-pro", image=photo(), mask=hole()),
        ImageRequest(prompt="a hat", model="flux-pro-1.1", image=photo()),
        ImageRequest(prompt="a hat", model="flux-pro-1.0-fill"),
        ImageRequest(prompt="a hat", model="flux-pro-1.0-fill", image=photo()),
        ImageRequest(prompt="a hat", model="flux-pro-1.0-expand", image=photo(), mask=hole()),
    ):
        with pytest.raises(UnsupportedError):
            engine.generate(request)
    assert service.asked == []


@pytest.mark.parametrize(("words", "code"), [("forbidden", "Request Moderated"), ("withheld", "Content Moderated")])
def test_moderation_before_and_after_is_one_error_and_never_repeated(
    service: Bfl, engine: BFLEngine, words: str, code: str
) -> None:
    with pytest.raises(ModerationError) as caught:
        engine.generate(ImageRequest(prompt=f"a {words} fox", model="flux-2-pro", size=(64, 64)))
    assert caught.value.code == code and not caught.value.retryable and len(service.tasks) == 1
    assert ("Moderation Reasons: violence" in caught.value.message) == (words == "forbidden")


def test_a_task_that_fails_says_why(engine: BFLEngine) -> None:
    with pytest.raises(ProviderError, match="Error: why: out of memory") as caught:
        engine.generate(ImageRequest(prompt="a crash", model="flux-2-pro", size=(64, 64)))
    assert caught.value.retryable


def test_no_credit_is_not_asked_for_again(service: Bfl, engine: BFLEngine) -> None:
    service.credit = 1
    with pytest.raises(QuotaError, match="Insufficient credits") as caught:
        engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro"))
    assert not caught.value.retryable and len(service.asked) == 1


def test_a_wrong_field_is_told_by_its_name(service: Bfl, engine: BFLEngine) -> None:
    wrong = {"detail": [{"loc": ["body", "width"], "msg": "too much", "type": "value_error"}]}
    service.next.append(as_json(wrong, 422))
    with pytest.raises(ProviderError, match="body/width: too much") as caught:
        engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro"))
    assert not caught.value.retryable and caught.value.code == "value_error"


def test_a_link_that_has_ended_is_said_and_may_be_tried_again(service: Bfl, engine: BFLEngine) -> None:
    service.ended = True
    with pytest.raises(ProviderError, match="no longer where bfl put it") as caught:
        engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro", size=(64, 64)))
    assert (caught.value.code, caught.value.retryable, caught.value.status) == ("expired", True, 403)
    assert service.count("/delivery/task-0.png") == 1


def test_the_key_goes_to_no_stranger_that_a_task_names(service: Bfl, engine: BFLEngine) -> None:
    with StandIn() as stranger:
        service.elsewhere = f"{stranger.url}/v1/get_result?id=task-0"
        with pytest.raises(ProviderError, match="not its own"):
            engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro", size=(64, 64)))
        assert stranger.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "http://api.bfl.ai/v1/get_result?id=1",
        "https://bfl.ai.example.com/x",
        "https://evilbfl.ai/x",
        "https://user@example.com/bfl.ai",
        "https://169.254.169.254/latest",
        "file:///etc/passwd",
        "//api.bfl.ai/x",
        "",
    ],
)
def test_odd_addresses_get_nothing(service: Bfl, engine: BFLEngine, address: str) -> None:
    service.elsewhere = address or "x"
    with pytest.raises(ProviderError):
        engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro", size=(64, 64)))
    service.elsewhere, service.sample = "", address or "x"
    with pytest.raises(ProviderError, match="not fetched from"):
        engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro", size=(64, 64)))
    assert not any(asked.path.startswith("/delivery") for asked in service.asked)


def test_a_picture_elsewhere_is_fetched_without_the_key(service: Bfl, engine: BFLEngine) -> None:
    with Bfl() as store:
        store.tasks["task-9"] = {"size": (64, 64)}
        service.sample = f"{store.url}/delivery/task-9.png"
        engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro", size=(64, 64)))
        (asked,) = store.asked
    assert Bfl.key not in repr(asked)


def test_a_stop_ends_the_looking_within_a_second(service: Bfl, engine: BFLEngine) -> None:
    service.looks, stop = 10**6, Stop()
    threading.Timer(0.2, stop.set).start()
    start = time.monotonic()
    with pytest.raises(StoppedError):
        engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro", size=(64, 64)), Watch(stop=stop))
    assert time.monotonic() - start < 1.2


def test_the_deadline_ends_the_looking(service: Bfl) -> None:
    service.looks = 10**6
    short = config("bfl", f"{service.url}/v1", timeout=0.3, key=service.key)
    with closing(BFLEngine(short)) as engine, pytest.raises(ProviderError, match=r"within 0\.3 s"):
        engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro", size=(64, 64)))


def test_the_progress_is_told(engine: BFLEngine) -> None:
    seen: list[tuple[int, int]] = []
    watch = Watch(lambda done, total: seen.append((done, total)))
    engine.generate(ImageRequest(prompt="a fox", model="flux-2-pro", size=(64, 64)), watch)
    assert (50, 100) in seen


def test_expanding_too_far_is_refused(service: Bfl, engine: BFLEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfl, "EXPAND", 50)
    mask = border((128, 96), (32, 0, 96, 96))
    with pytest.raises(RequestError, match="at most 50 pixels"):
        engine.generate(ImageRequest(prompt="a meadow", model="flux-pro-1.0-expand", image=photo((128, 96)), mask=mask))
    assert service.asked == []


def test_through_the_workshop_the_record_is_whole(engine: BFLEngine) -> None:
    made = Workshop(Only(engine)).make(ImageRequest(prompt="a fox", model="flux-2-pro", size=(64, 64), seed=4))
    record = made[0].info["imagewright"]
    assert record["provider"] == "bfl" and record["seed"] == 4 and Bfl.key not in repr(record)
