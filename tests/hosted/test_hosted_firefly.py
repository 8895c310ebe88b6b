"""Firefly's engine against a stand-in with tokens, uploads, jobs and a store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from firefly_service import Firefly
from hosting import Only, border, config, hole, photo
from standin import Asked, Reply, StandIn, as_json

from imagewright.config import Config
from imagewright.engines.hosted import firefly
from imagewright.engines.hosted.firefly import FireflyEngine
from imagewright.errors import (
    CredentialError,
    ModerationError,
    PromptError,
    ProviderError,
    ProviderTimeoutError,
    QuotaError,
    StoppedError,
    UnsupportedError,
)
from imagewright.request import ImageRequest
from imagewright.watch import Stop, Watch
from imagewright.workshop import Workshop

TOKEN = "/ims/token/v3"
DRAWING = ["image5", "image4_standard", "image4_ultra", "image3"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firefly, "POLL", 0.005)


@pytest.fixture
def service() -> Iterator[Firefly]:
    with Firefly() as running:
        yield running


def configured(service: Firefly, **others: Any) -> Config:
    """Both credentials, and where the stand-in is."""
    told = {"client_id": service.client, "client_secret": service.secret, "token_url": service.url + TOKEN, **others}
    return config("firefly", service.url, **told)


@pytest.fixture
def engine(service: Firefly) -> Iterator[FireflyEngine]:
    with closing(FireflyEngine(configured(service))) as made:
        yield made


def bodies(service: Firefly) -> list[dict[str, Any]]:
    """What the jobs were submitted with."""
    return [job["body"] for job in service.jobs.values()]


@pytest.mark.parametrize("model", DRAWING)
def test_every_model_draws(service: Firefly, engine: FireflyEngine, model: str) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model=model, seed=5))
    record = result.records[0]
    assert record["seed"] == 5 and record["job_id"] == "urn:ff:jobs:0" and record["request_id"] == "ff-1"
    assert record["content_class"] == "art" and record["provider"] == "firefly"
    submitted = next(asked for asked in service.asked if asked.path.endswith("generate-async"))
    assert submitted.headers["x-model-version"] == model and result[0].size == (64, 64)


@pytest.mark.parametrize(
    ("model", "size", "used"),
    [
        ("image3", (1024, 1024), {"width": 1024, "height": 1024}),
        ("image3", (1920, 1080), {"width": 2688, "height": 1512}),
        ("image3", (600, 800), {"width": 896, "height": 1152}),
        ("image4_ultra", (512, 512), {"width": 2048, "height": 2048}),
        ("image4_standard", (1080, 1920), {"width": 1440, "height": 2560}),
    ],
)
def test_the_nearest_size_is_asked_for(
    service: Firefly, engine: FireflyEngine, model: str, size: tuple[int, int], used: dict[str, int]
) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model=model, size=size))
    assert bodies(service)[0]["size"] == used
    assert [(one.field, one.requested) for one in result.adjustments] == [("size", size)]


def test_the_newest_takes_a_ratio_and_a_level(service: Firefly, engine: FireflyEngine) -> None:
    engine.generate(ImageRequest(prompt="a fox", model="image5", size=(1280, 720)))
    assert (bodies(service)[0]["aspectRatio"], bodies(service)[0]["resolutionLevel"]) == ("16:9", "1MP")


@pytest.mark.parametrize(("model", "sizes"), [("image3", [4, 2]), ("image5", [1] * 6)])
def test_pictures_are_made_as_many_a_job_as_there_may_be(
    service: Firefly, engine: FireflyEngine, model: str, sizes: list[int]
) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model=model, n=6, seed=2**32 - 2))
    assert [body["numVariations"] for body in bodies(service)] == sizes
    assert [record["seed"] for record in result.records] == [2**32 - 2, 2**32 - 1, 0, 1, 2, 3]


def test_what_was_drawn_before_a_job_fails_is_kept(service: Firefly, engine: FireflyEngine) -> None:
    usual, jobs = service._make, 0

    def make(asked: Asked) -> Reply:
        nonlocal jobs
        jobs += 1
        return usual(asked) if jobs == 1 else service.failure(500, "trouble")

    service._make = make  # type: ignore[method-assign]
    result = engine.generate(ImageRequest(prompt="a fox", model="image3", n=6, seed=10))
    assert [record["seed"] for record in result.records] == [10, 11, 12, 13]
    said = next(one for one in result.adjustments if one.field == "n")
    assert (said.requested, said.used) == (6, 4) and "trouble" in said.reason


def test_classes_presets_and_a_picture_make_the_style(service: Firefly, engine: FireflyEngine) -> None:
    engine.generate(ImageRequest(prompt="a fox", model="image3", style="photo", negative_prompt="dogs"))
    request = ImageRequest(
        prompt="a fox", model="image4_ultra", style="art_deco", style_images=(photo(),), style_weight=1.5
    )
    engine.generate(request)
    first, second = bodies(service)
    assert first["contentClass"] == "photo" and first["negativePrompt"] == "dogs" and "style" not in first
    reference = {"source": {"uploadId": "upload-0"}}
    assert second["style"] == {"presets": ["art_deco"], "strength": 75, "imageReference": reference}
    with pytest.raises(UnsupportedError, match="style of one picture"):
        engine.generate(ImageRequest(prompt="a fox", model="image3", style_images=(photo(), photo())))


def test_words_that_are_too_long_or_not_allowed_are_said(service: Firefly, engine: FireflyEngine) -> None:
    with pytest.raises(PromptError, match="this model reads 1,024"):
        engine.generate(ImageRequest(prompt="a fox " * 200, model="image3"))
    result = engine.generate(ImageRequest(prompt="partly fox", negative_prompt="dog " * 300, model="image3"))
    assert len(bodies(service)[0]["negativePrompt"]) <= 1024
    assert {one.field for one in result.adjustments} == {"prompt", "negative_prompt"}
    assert any("not allowed" in one.reason for one in result.adjustments)


def test_further_fields_of_theirs_are_passed_on(service: Firefly, engine: FireflyEngine) -> None:
    engine.generate(ImageRequest(prompt="a fox", model="image4_ultra", provider_options={"visualIntensity": 7}))
    payload = {"prompt_reasoner": "quality"}
    engine.generate(ImageRequest(prompt="a fox", model="image5", provider_options={"modelSpecificPayload": payload}))
    assert bodies(service)[0]["visualIntensity"] == 7 and bodies(service)[1]["modelSpecificPayload"] == payload


def test_a_mask_is_uploaded_white_where_it_was_clear_and_all_else_stays(
    service: Firefly, engine: FireflyEngine
) -> None:
    picture = photo((200, 150))
    mask = hole((200, 150), (60, 50, 120, 100))
    result = engine.generate(ImageRequest(prompt="a hat", model="fill", image=picture, mask=mask))
    image, white = (service.uploads[name] for name in ("upload-0", "upload-1"))
    assert image.mode == "RGB" and set(np.unique(np.asarray(white))) == {0, 255}
    assert np.asarray(white)[white.height // 2, white.width * 90 // 200] == 255 and white.getpixel((2, 2)) == 0
    used = bodies(service)[0]["size"]
    assert image.width / image.height == pytest.approx(used["width"] / used["height"], rel=0.01)
    before, after = np.asarray(picture), np.asarray(result[0])
    changed = (before != after).any(axis=-1)
    assert changed[50:100, 60:120].any() and not changed[:50].any() and not changed[100:].any()


def test_expanding_places_what_is_kept(service: Firefly, engine: FireflyEngine) -> None:
    mask = border((128, 96), (32, 16, 96, 96))
    result = engine.generate(ImageRequest(prompt="a meadow", model="expand", image=photo((128, 96)), mask=mask))
    inset = bodies(service)[0]["placement"]["inset"]
    assert inset["bottom"] == 0 < inset["top"] < inset["left"] and list(service.uploads) == ["upload-0"]
    assert np.array_equal(np.asarray(result[0])[16:, 32:96], np.asarray(photo((128, 96)))[16:, 32:96])


def test_what_a_model_cannot_do_is_refused_before_anything_is_sent(service: Firefly, engine: FireflyEngine) -> None:
    for request in (
        ImageRequest(prompt="a hat", model="image3", image=photo()),
        ImageRequest(prompt="a hat", model="image5", style="photo"),
        ImageRequest(prompt="a hat", model="image3", style="nothing"),
        ImageRequest(prompt="a hat", model="fill"),
        ImageRequest(prompt="a hat", model="expand", image=photo()),
        ImageRequest(prompt="a hat", model="expand", image=photo(), mask=hole()),
    ):
        with pytest.raises(UnsupportedError):
            engine.generate(request)
    assert service.asked == []


def test_one_token_serves_until_it_ends(service: Firefly, engine: FireflyEngine) -> None:
    for _ in range(2):
        engine.generate(ImageRequest(prompt="a fox", model="image3"))
    assert service.count(TOKEN) == 1


def test_a_token_that_ends_soon_is_renewed_before_it_does(service: Firefly, engine: FireflyEngine) -> None:
    service.lasts = round(firefly.EARLY)
    engine.generate(ImageRequest(prompt="a fox", model="image3"))
    assert service.count(TOKEN) == len(service.asked) // 2  # one for each call that needs it, but for the picture's


def test_a_token_that_is_refused_is_renewed_once(service: Firefly, engine: FireflyEngine) -> None:
    engine.generate(ImageRequest(prompt="a fox", model="image3"))
    service.tokens.append("another")  # as if the first had been taken back
    engine.generate(ImageRequest(prompt="a fox", model="image3"))
    assert service.count(TOKEN) == 2
    service.tokens.append("another")
    service.next.extend([as_json({"error_code": "unauthorized"}, 401)])
    service.secret = "p8e-changed"
    with pytest.raises(CredentialError, match="invalid client_secret"):
        engine.generate(ImageRequest(prompt="a fox", model="image3"))
    assert service.count(TOKEN) == 3


def test_threads_share_one_token(service: Firefly, engine: FireflyEngine) -> None:
    def draw() -> None:
        engine.generate(ImageRequest(prompt="a fox", model="image3"))

    threads = [threading.Thread(target=draw) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.count(TOKEN) == 1 and len(service.jobs) == 6


def test_credentials_that_are_wrong_or_missing_are_said(service: Firefly) -> None:
    request = ImageRequest(prompt="a fox", model="image3")
    wrong = FireflyEngine(configured(service, client_secret="p8e-wrong"))
    with closing(wrong), pytest.raises(CredentialError, match="invalid client_secret") as caught:
        wrong.generate(request)
    assert "p8e-wrong" not in str(caught.value) and service.count(TOKEN) == 1
    with pytest.raises(CredentialError, match="FIREFLY_CLIENT_SECRET"):
        FireflyEngine(config("firefly", service.url, client_id="client-7")).generate(request)


def test_a_used_up_quota_is_no_wrong_key(service: Firefly, engine: FireflyEngine) -> None:
    service.spent = True
    with pytest.raises(QuotaError, match="no credit left") as caught:
        engine.generate(ImageRequest(prompt="a fox", model="image3"))
    assert not caught.value.retryable


@pytest.mark.parametrize("words", ["forbidden", "withheld"])
def test_moderation_before_and_after_is_one_error_and_never_repeated(
    service: Firefly, engine: FireflyEngine, words: str
) -> None:
    with pytest.raises(ModerationError) as caught:
        engine.generate(ImageRequest(prompt=f"a {words} fox", model="image3"))
    assert not caught.value.retryable and service.count("/v3/images/generate-async") == 1


def test_a_wrong_field_is_told_by_its_name(service: Firefly, engine: FireflyEngine) -> None:
    wrong = {"loc": ["body", "contentClass"], "msg": "not permitted", "type": "type_error.enum"}
    token = as_json({"access_token": "token-canary-9", "expires_in": 999})
    told = {"error_code": "validation_error", "message": "invalid", "validation_errors": [wrong]}
    service.next.extend([token, as_json(told, 422)])
    with pytest.raises(ProviderError, match="body/contentClass: not permitted") as caught:
        engine.generate(ImageRequest(prompt="a fox", model="image3"))
    assert not caught.value.retryable and caught.value.code == "validation_error"


def test_a_job_that_fails_says_why(service: Firefly, engine: FireflyEngine) -> None:
    service.looks = 0
    failed = {"status": "failed", "error_code": "runtime_error", "message": "out of memory"}
    accepted = {"jobId": "1", "statusUrl": f"{service.url}/v3/status/1"}
    token = as_json({"access_token": "token-canary-9", "expires_in": 999})
    service.next.extend([token, as_json(accepted, 202), as_json(failed)])
    with pytest.raises(ProviderError, match="the job failed: out of memory") as caught:
        engine.generate(ImageRequest(prompt="a fox", model="image3"))
    assert caught.value.retryable and caught.value.code == "runtime_error"


def test_a_stop_cancels_the_job(service: Firefly, engine: FireflyEngine) -> None:
    service.looks, stop = 10**6, Stop()
    threading.Timer(0.3, stop.set).start()
    start = time.monotonic()
    with pytest.raises(StoppedError):
        engine.generate(ImageRequest(prompt="a fox", model="image3"), Watch(stop=stop))
    assert time.monotonic() - start < 1.5
    assert service.jobs["urn:ff:jobs:0"]["status"] == "cancelled"


def test_a_job_that_takes_too_long_is_cancelled(service: Firefly) -> None:
    service.looks = 10**6
    told = {"client_id": service.client, "client_secret": service.secret, "token_url": service.url + TOKEN}
    short = FireflyEngine(config("firefly", service.url, timeout=0.5, **told))
    with closing(short), pytest.raises(ProviderTimeoutError):
        short.generate(ImageRequest(prompt="a fox", model="image3"))
    assert service.jobs["urn:ff:jobs:0"]["status"] == "cancelled"


def test_credentials_go_to_no_stranger_that_a_job_names(service: Firefly, engine: FireflyEngine) -> None:
    with StandIn() as stranger:
        service.elsewhere = stranger.url
        with pytest.raises(ProviderError, match="not its own"):
            engine.generate(ImageRequest(prompt="a fox", model="image3"))
        assert stranger.asked == []


def test_pictures_elsewhere_are_fetched_without_credentials(service: Firefly, engine: FireflyEngine) -> None:
    with Firefly() as store:
        store.jobs["urn:ff:jobs:0"] = {"size": (2048, 2048)}
        service.stored = store.url
        engine.generate(ImageRequest(prompt="a fox", model="image3"))
        (asked,) = store.asked
    assert service.tokens[0] not in repr(asked) and service.client not in repr(asked)


def test_pictures_are_not_fetched_from_just_anywhere(service: Firefly, engine: FireflyEngine) -> None:
    service.stored = "https://example.com"
    with pytest.raises(ProviderError, match="not fetched from"):
        engine.generate(ImageRequest(prompt="a fox", model="image3"))


def test_through_the_workshop_the_record_is_whole(service: Firefly, engine: FireflyEngine) -> None:
    made = Workshop(Only(engine)).make(ImageRequest(prompt="a fox", model="image3", seed=4))
    record = made[0].info["imagewright"]
    assert record["provider"] == "firefly" and record["seed"] == 4
    assert not any(secret in repr(record) for secret in (service.secret, service.client, service.tokens[0]))
