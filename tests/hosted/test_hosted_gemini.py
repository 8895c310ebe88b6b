"""Gemini's engine against a stand-in that refuses what the API does not know."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO

import numpy as np
import pytest
from gemini_service import MODELS, SIGNATURE, Gemini
from hosting import Only, config, hole, photo
from PIL import Image
from standin import Asked, as_json

from imagewright.engines.hosted import gemini
from imagewright.engines.hosted.gemini import GeminiEngine, generate_body
from imagewright.errors import CredentialError, ModerationError, ProviderError, UnsupportedError
from imagewright.request import ImageRequest
from imagewright.workshop import Workshop

FLASH = "gemini-3.1-flash-image"


@pytest.fixture
def service() -> Iterator[Gemini]:
    with Gemini() as running:
        yield running


@pytest.fixture
def engine(service: Gemini) -> Iterator[GeminiEngine]:
    with closing(GeminiEngine(config("gemini", f"{service.url}/v1beta", key=service.key))) as made:
        yield made


def told(asked: Asked) -> dict[str, str]:
    """What shape was asked for."""
    found: dict[str, str] = asked.json()["generationConfig"]["imageConfig"]
    return found


def inline(asked: Asked) -> list[Image.Image]:
    """The pictures of a request."""
    parts = [part["inlineData"]["data"] for part in asked.json()["contents"][-1]["parts"] if "inlineData" in part]
    return [Image.open(BytesIO(base64.b64decode(data)), formats=("PNG",)) for data in parts]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_draws_and_its_thoughts_are_skipped(service: Gemini, engine: GeminiEngine, model: str) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model=model))
    assert np.asarray(result[0].convert("RGB"))[0, 0].tolist() == [170, 51, 17]  # and not the blue of the draft
    record = result.records[0]
    assert record["usage"]["candidatesTokenCount"] == 1120 and record["words"] == "Here it is."
    assert record["model_version"] == model and record["response_id"] == "resp-1" and record["seed"] is None
    assert record["thought_signature"] == SIGNATURE
    assert result.adjustments == () and result[0].size == (64, 64)  # no size was asked for
    assert set(gemini.MODELS) == set(MODELS)


@pytest.mark.parametrize(
    ("model", "size", "ratio", "tier"),
    [
        (FLASH, (1024, 1024), "1:1", "1K"),
        (FLASH, (1920, 1080), "16:9", "2K"),
        (FLASH, (512, 512), "1:1", "512"),
        (FLASH, (1000, 250), "4:1", "512"),
        (FLASH, (4096, 4096), "1:1", "4K"),
        (FLASH, (4096, 512), "8:1", "2K"),
        ("gemini-3-pro-image", (512, 512), "1:1", "1K"),
        ("gemini-3-pro-image", (1000, 250), "21:9", "1K"),
        ("gemini-3.1-flash-lite-image", (4096, 4096), "1:1", "1K"),
        ("gemini-nano-banana-2.1", (1, 1), "1:1", "1K"),
    ],
)
def test_the_nearest_shape_and_tier_are_asked_for(
    service: Gemini, engine: GeminiEngine, model: str, size: tuple[int, int], ratio: str, tier: str
) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model=model, size=size))
    assert told(service.asked[0]) == {"aspectRatio": ratio, "imageSize": tier}
    assert [(one.field, one.requested, one.used) for one in result.adjustments] == [("size", size, result[0].size)]


@pytest.mark.parametrize(("aspect", "ratio"), [((3, 2), "3:2"), ((7, 1), "21:9")])
def test_a_shape_that_was_asked_for_is_said_too(
    service: Gemini, engine: GeminiEngine, aspect: tuple[int, int], ratio: str
) -> None:
    result = engine.generate(ImageRequest(prompt="a fox", model="gemini-3-pro-image", aspect=aspect))
    assert told(service.asked[0])["aspectRatio"] == ratio
    assert [one.field for one in result.adjustments] == ["size"]
    assert [one["field"] for one in result.records[0]["adjustments"]] == ["size"]


def test_what_the_models_have_no_field_for_is_said(service: Gemini, engine: GeminiEngine) -> None:
    service.small = 1
    request = ImageRequest(prompt="a fox", seed=3, negative_prompt="dogs", num_inference_steps=9, guidance_scale=2)
    result = engine.generate(request)
    said = {one.field for one in result.adjustments}
    assert said == {"seed", "negative_prompt", "num_inference_steps", "guidance_scale"}
    assert result[0].size == (1024, 1024)


def test_several_pictures_are_several_calls(service: Gemini, engine: GeminiEngine) -> None:
    assert len(engine.generate(ImageRequest(prompt="a fox", n=3))) == 3
    assert len(service.asked) == 3


def test_an_instruction_goes_with_the_picture_in_its_place(service: Gemini, engine: GeminiEngine) -> None:
    picture = photo((200, 110))
    result = engine.generate(ImageRequest(prompt="make it red", image=picture, instruction=True))
    (seen,) = inline(service.asked[0])
    assert told(service.asked[0])["aspectRatio"] == "16:9" and seen.width / seen.height == pytest.approx(16 / 9, 0.01)
    assert result[0].size == picture.size and "strength" not in {one.field for one in result.adjustments}


def test_what_comes_back_lies_where_the_picture_was(service: Gemini, engine: GeminiEngine) -> None:
    """A model that gives back what it was shown gives back the picture."""

    def echo(_: tuple[int, int]) -> dict[str, object]:
        return {"role": "model", "parts": [service.asked[-1].json()["contents"][0]["parts"][1]]}

    service._drawn = echo  # type: ignore[assignment]
    picture = photo((230, 110))  # of no ratio that there is
    result = engine.generate(ImageRequest(prompt="the same", image=picture, strength=1))
    before, after = (np.asarray(image, np.int16) for image in (picture, result[0]))
    assert after.shape == before.shape and np.abs(before - after).max() <= 4


def test_without_an_instruction_the_strength_is_said_to_count_for_nothing(engine: GeminiEngine) -> None:
    result = engine.generate(ImageRequest(prompt="a red fox", image=photo(), strength=0.3))
    assert [(one.field, one.requested, one.used) for one in result.adjustments] == [("strength", 0.3, None)]


def test_further_pictures_go_along_in_order(service: Gemini, engine: GeminiEngine) -> None:
    big = Image.new("RGBA", (3000, 2000), "#20c020")
    engine.generate(ImageRequest(prompt="both", image=photo(), images=(big, photo((50, 50)))))
    first, second, third = inline(service.asked[0])
    assert first.size[0] / first.size[1] == pytest.approx(3 / 2, 0.01)
    assert second.width * second.height <= gemini.REFERENCE * 1.01 and third.size == (50, 50)


def test_a_mask_is_refused_before_anything_is_sent(service: Gemini, engine: GeminiEngine) -> None:
    with pytest.raises(UnsupportedError, match="mask"):
        engine.generate(ImageRequest(prompt="a hat", image=photo(), mask=hole()))
    assert service.asked == []


@pytest.mark.parametrize(("words", "code"), [("forbidden", "PROHIBITED_CONTENT"), ("withheld", "IMAGE_SAFETY")])
def test_a_block_before_and_after_is_one_error_and_never_repeated(
    service: Gemini, engine: GeminiEngine, words: str, code: str
) -> None:
    with pytest.raises(ModerationError) as caught:
        engine.generate(ImageRequest(prompt=f"a {words} fox"))
    assert caught.value.code == code and not caught.value.retryable and len(service.asked) == 1


def test_words_instead_of_a_picture_are_passed_on(service: Gemini, engine: GeminiEngine) -> None:
    with pytest.raises(ProviderError, match=r"drew no picture \(NO_IMAGE\): I would rather talk") as caught:
        engine.generate(ImageRequest(prompt="let us talk"))
    assert not isinstance(caught.value, ModerationError) and caught.value.code == "NO_IMAGE"
    assert len(service.asked) == 1


def test_a_wrong_key_is_an_error_of_credentials_although_it_is_a_400(service: Gemini) -> None:
    wrong = config("gemini", f"{service.url}/v1beta", key="AIza-wrong")
    with closing(GeminiEngine(wrong)) as engine, pytest.raises(CredentialError, match="does not accept the key"):
        engine.generate(ImageRequest(prompt="a fox"))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"candidates": []},
        {"candidates": [None]},
        {"candidates": [{"content": {"parts": None}}]},
        {"candidates": [{"content": {"parts": [{"inlineData": {"data": 5}}]}}]},
        {"candidates": [{"content": {"parts": [{"inlineData": {"data": "AAAA"}}]}}]},
        {"candidates": {"content": 1}, "promptFeedback": "x"},
    ],
)
def test_an_odd_answer_is_a_clear_error(service: Gemini, engine: GeminiEngine, body: dict[str, object]) -> None:
    service.next.append(as_json(body))
    with pytest.raises(ProviderError):
        engine.generate(ImageRequest(prompt="a fox"))


def test_either_alphabet_of_base64_is_read(service: Gemini, engine: GeminiEngine) -> None:
    data = noisy((64, 64))
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        part = {"inlineData": {"mimeType": "image/png", "data": encode(data).decode()}}
        service.next.append(as_json({"candidates": [{"content": {"parts": [part]}}]}))
        assert engine.generate(ImageRequest(prompt="a fox"))[0].info["original"][0] == data


def noisy(size: tuple[int, int]) -> bytes:
    """A PNG whose base64 has every character."""
    out = BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def test_a_later_turn_gives_back_the_earlier_ones_with_their_signatures(service: Gemini) -> None:
    first = generate_body(ImageRequest(prompt="a fox"), FLASH)
    answer = service._drawn((1024, 1024))
    later = generate_body(ImageRequest(prompt="make it red"), FLASH, [*first["contents"], answer])
    assert [turn["role"] for turn in later["contents"]] == ["user", "model", "user"]
    assert service._contents(later) == [{"text": "make it red"}]


def test_through_the_workshop_the_record_is_whole(engine: GeminiEngine) -> None:
    made = Workshop(Only(engine)).make(ImageRequest(prompt="a fox", model=FLASH))
    record = made[0].info["imagewright"]
    assert record["provider"] == "gemini" and record["size"] == [64, 64] and Gemini.key not in repr(record)
