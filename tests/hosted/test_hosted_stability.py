"""Stability's engine against a stand-in that knows every field of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from io import BytesIO

import numpy as np
import pytest
from hosting import Only, border, config, hole, photo
from PIL import Image
from stability_service import STYLES, Stability
from standin import Asked

from imagewright.engines.hosted import stability
from imagewright.engines.hosted.stability import StabilityEngine
from imagewright.errors import ModerationError, PromptError, RequestError, UnsupportedError
from imagewright.request import ImageRequest
from imagewright.workshop import Workshop

MADE = ["core", "ultra", "sd3.5-large", "sd3.5-large-turbo", "sd3.5-medium"]


@pytest.fixture
def service() -> Iterator[Stability]:
    with Stability() as running:
        yield running


@pytest.fixture
def engine(service: Stability) -> Iterator[StabilityEngine]:
    with closing(StabilityEngine(config("stability", service.url, key=service.key))) as made:
        yield made


def sent(asked: Asked) -> Image.Image:
    """The picture of a request."""
    return Image.open(BytesIO(asked.files()["image"][0].data), formats=("PNG",))


@pytest.mark.parametrize("model", MADE)
def test_every_model_draws(service: Stability, engine: StabilityEngine, model: str) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model=model, seed=5, negative_prompt="dogs"))
    assert [image.size for image in result] == [(1024, 1024)]
    record = result.records[0]
    assert record["seed"] == 5 and record["request_id"] == "req-5" and record["provider"] == "stability"
    assert record["credits"] == stability.MODELS[model].credits and record["model"] == model
    assert service.asked[0].texts()["negative_prompt"] == "dogs" and result.adjustments == ()


def test_the_styles_are_theirs(service: Stability, engine: StabilityEngine) -> None:
    assert set(stability.STYLES) == STYLES
    engine.generate(ImageRequest(prompt="a fox", model="core", style="low-poly"))
    assert service.asked[0].texts()["style_preset"] == "low-poly"
    with pytest.raises(UnsupportedError, match="no style"):
        engine.generate(ImageRequest(prompt="a fox", model="ultra", style="low-poly"))


def test_the_nearest_shape_is_drawn_and_said(service: Stability, engine: StabilityEngine) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model="core", size=(1920, 1080), quality="high"))
    assert service.asked[0].texts()["aspect_ratio"] == "16:9"
    assert result[0].size == (1344, 768)
    assert {(one.field, one.used) for one in result.adjustments} == {("size", (1344, 768)), ("quality", "auto")}


@pytest.mark.parametrize(("seed", "used"), [(0, 4_294_967_294), (1, 1), (4_294_967_294, 4_294_967_294), (2**32 - 1, 1)])
def test_zero_which_means_any_is_never_sent(service: Stability, engine: StabilityEngine, seed: int, used: int) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model="core", seed=seed))
    assert service.asked[0].texts()["seed"] == str(used) and result.records[0]["seed"] == used
    assert [one.field for one in result.adjustments] == ([] if seed == used else ["seed"])


def test_several_pictures_are_several_calls_with_seeds_that_follow(service: Stability, engine: StabilityEngine) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model="core", seed=40, n=3))
    assert [record["seed"] for record in result.records] == [40, 41, 42]
    assert sorted(asked.texts()["seed"] for asked in service.asked) == ["40", "41", "42"]


def test_words_that_are_too_long_are_refused_or_cut_and_that_is_said(
    service: Stability, engine: StabilityEngine
) -> None:
    with pytest.raises(PromptError, match="this model reads 10,000"):
        engine.generate(ImageRequest(prompt="fox " * 5000, model="core"))
    assert service.asked == []
    result = engine.generate(ImageRequest(prompt="a fox", negative_prompt="dog " * 5000, model="core"))
    assert len(service.asked[0].texts()["negative_prompt"]) <= 10_000
    assert [(one.field, one.requested) for one in result.adjustments] == [("negative_prompt", "20000 characters")]


def test_further_fields_of_theirs_are_passed_on(service: Stability, engine: StabilityEngine) -> None:
    options = {"grow_mask": 12, "webhook": "x"}
    request = ImageRequest(prompt="a hat", model="inpaint", image=photo(), mask=hole(), provider_options=options)
    result = engine.generate(request)
    assert service.asked[0].texts()["grow_mask"] == "12"
    assert [one.field for one in result.adjustments] == ["provider_options.webhook"]


def test_guidance_stays_within_what_the_model_takes(service: Stability, engine: StabilityEngine) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model="sd3.5-large", guidance_scale=30))
    assert service.asked[0].texts()["cfg_scale"] == "10"
    assert [(one.field, one.used) for one in result.adjustments] == [("guidance_scale", 10)]


@pytest.mark.parametrize("model", ["ultra", "sd3.5-medium"])
def test_a_picture_is_changed_by_a_strength(service: Stability, engine: StabilityEngine, model: str) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model=model, image=photo((200, 100)), strength=0.4))
    asked = service.asked[0]
    assert asked.texts()["strength"] == "0.4" and result[0].size == (200, 100)
    whole = np.asarray(sent(asked).convert("RGB"))  # widened to a ratio of theirs by repeating its edge
    assert whole.shape[1] / whole.shape[0] == pytest.approx(16 / 9, 0.01)
    assert result.records[0]["strength"] == 0.4


def test_a_mask_turns_white_where_it_was_clear_and_all_else_stays(service: Stability, engine: StabilityEngine) -> None:
    picture = photo()
    result = engine.generate(ImageRequest(prompt="a hat", model="inpaint", image=picture, mask=hole(), seed=3))
    files = service.asked[0].files()
    mask = np.asarray(Image.open(BytesIO(files["mask"][0].data), formats=("PNG",)))
    assert set(np.unique(mask)) == {0, 255} and mask.mean() / 255 == pytest.approx(600 / (96 * 64), rel=0.2)
    row, column = 30 * mask.shape[0] // 64, 45 * mask.shape[1] // 96
    assert mask[row, column] == 255 and mask[2, 2] == 0
    before, after = np.asarray(picture), np.asarray(result[0])
    changed = (before != after).any(axis=-1)
    assert changed[20:40, 30:60].any() and not changed[:20].any() and not changed[40:].any()
    assert result.records[0]["changed_outside_mask"] == 0


def test_erasing_takes_no_words_and_says_so(service: Stability, engine: StabilityEngine) -> None:
    request = ImageRequest(prompt="a hat", model="erase", image=photo(), mask=hole())
    result = engine.generate(request)
    assert "prompt" not in service.asked[0].texts()
    assert [(one.field, one.requested) for one in result.adjustments] == [("prompt", "a hat")]


def test_outpainting_sends_what_is_kept_and_how_much_to_add(service: Stability, engine: StabilityEngine) -> None:
    request = ImageRequest(
        prompt="a meadow", model="outpaint", image=photo((128, 96)), mask=border((128, 96), (32, 0, 96, 80))
    )
    result = engine.generate(request)
    texts, kept = service.asked[0].texts(), sent(service.asked[0])
    assert {"left", "right", "down"} <= set(texts) and "up" not in texts
    assert int(texts["left"]) == pytest.approx(int(texts["right"]), abs=2)
    whole = (kept.width + int(texts["left"]) + int(texts["right"]), kept.height + int(texts["down"]))
    assert whole[0] / whole[1] == pytest.approx(128 / 96, rel=0.02) and result[0].size == (128, 96)
    assert np.array_equal(np.asarray(result[0])[:80, 32:96], np.asarray(photo((128, 96)))[:80, 32:96])


def test_outpainting_refuses_a_hole_in_the_middle(service: Stability, engine: StabilityEngine) -> None:
    with pytest.raises(UnsupportedError, match="only adds to the edges"):
        engine.generate(ImageRequest(prompt="a hat", model="outpaint", image=photo(), mask=hole()))
    with pytest.raises(RequestError, match="outpaint cannot add"):
        mask = border((200, 100), (0, 0, 200, 20))
        engine.generate(ImageRequest(prompt="a hat", model="outpaint", image=photo((200, 100)), mask=mask))
    assert service.asked == []


def test_what_a_model_cannot_do_is_refused_before_anything_is_sent(service: Stability, engine: StabilityEngine) -> None:
    for request in (
        ImageRequest(prompt="a hat", model="ultra", image=photo(), mask=hole()),
        ImageRequest(prompt="a hat", model="core", image=photo()),
        ImageRequest(prompt="make it blue", model="ultra", image=photo(), instruction=True),
        ImageRequest(prompt="a hat", model="inpaint"),
        ImageRequest(prompt="a hat", model="inpaint", image=photo()),
    ):
        with pytest.raises(UnsupportedError):
            engine.generate(request)
    assert service.asked == []


@pytest.mark.parametrize(("words", "code"), [("forbidden", "content_moderation"), ("blurred", "CONTENT_FILTERED")])
def test_moderation_before_and_after_is_one_error_and_never_repeated(
    service: Stability, engine: StabilityEngine, words: str, code: str
) -> None:
    with pytest.raises(ModerationError) as caught:
        engine.generate(ImageRequest(prompt=f"a {words} fox", model="core"))
    assert caught.value.code == code and not caught.value.retryable and len(service.asked) == 1


@pytest.mark.parametrize("kind", ["fast", "conservative", "creative"])
def test_upscaling(service: Stability, engine: StabilityEngine, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stability, "POLL", 0.01)
    result = engine.upscale(photo(), kind, prompt="" if kind == "fast" else "a slope")  # type: ignore[arg-type]
    assert result[0].size == (384, 256)
    assert result.records[0]["credits"] == (1 if kind == "fast" else 25)
    assert result.records[0]["model"] == f"upscale-{kind}" and "image_sha256" in result.records[0]
    assert len(service.asked) == (4 if kind == "creative" else 1)


def test_upscaling_asks_for_what_it_needs_first(service: Stability, engine: StabilityEngine) -> None:
    with pytest.raises(RequestError, match="1,048,576 pixels"):
        engine.upscale(Image.new("RGB", (2000, 1000)))
    with pytest.raises(RequestError, match="needs words"):
        engine.upscale(photo(), "conservative")
    assert service.asked == []


def test_the_background_goes_and_things_are_replaced(service: Stability, engine: StabilityEngine) -> None:
    assert engine.remove_background(photo())[0].mode == "RGBA"
    record = engine.search_and_replace(photo(), "the hat", "a crown").records[0]
    assert record["prompt"] == "a crown" and record["credits"] == 4
    assert service.asked[1].texts()["search_prompt"] == "the hat"


def test_through_the_workshop_the_record_is_whole(service: Stability, engine: StabilityEngine) -> None:
    made = Workshop(Only(engine)).make(ImageRequest(prompt="a fox", model="core", seed=8))
    record = made[0].info["imagewright"]
    assert record["engine"] == "stability" and record["provider"] == "stability" and record["seed"] == 8
    assert service.key not in repr(record)
