"""The record inside files."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagewright.errors import PictureError
from imagewright.pictures import encode, open_picture
from imagewright.provenance import metadata, record
from imagewright.request import ImageRequest

FORMATS = ["png", "jpeg", "webp"]


def made(prompt: str = "a red fox", **fields: object) -> dict[str, object]:
    """A record as the workshop writes it."""
    engine = {
        "software": "imagewright 0",
        "engine": "fake",
        "model": "blocks",
        "prompt": prompt,
        "seed": 7,
        **fields,
    }
    image = Image.new("RGBA", (8, 8), "red")
    return record.finish(engine, ImageRequest(prompt="x"), image, [{"step": "pad"}])


def stored(text: dict[str, object], output_format: str) -> metadata.Metadata:
    """What is read back after writing `text` into a picture."""
    data = encode(Image.new("RGB", (8, 8)), output_format, **metadata.save_options(text, output_format))
    return metadata.read(open_picture(data))


@pytest.mark.parametrize("output_format", FORMATS)
def test_round_trip(output_format: str) -> None:
    text = made("a fox\nwith “quotes” and 狐 🦊", negative_prompt="rain", num_inference_steps=4)
    found = stored(text, output_format)
    assert found.record == text
    assert found.digital_source_type == "trainedAlgorithmicMedia"
    assert found.parameters is not None
    assert found.parameters.startswith(
        "a fox\nwith “quotes” and 狐 🦊\nNegative prompt: rain\nSteps: 4, Seed: 7, Size: 8x8"
    )


@given(st.text(st.characters(), max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_text_round_trips(prompt: str) -> None:
    text = made(prompt)
    for output_format in FORMATS:
        assert stored(text, output_format).record == text


@pytest.mark.parametrize("character", ["狐", "🦊", "x"])
def test_the_longest_prompts_fit_or_say_that_they_were_cut(character: str) -> None:
    text = made(character * 32_000)
    assert stored(text, "png").record == text
    found = stored(text, "jpeg").record
    assert found is not None
    if character == "x":
        assert found == text
    else:
        assert found["prompt"] == character * 2000 and found["shortened"] is True
        with pytest.raises(PictureError, match="too long"):
            record.to_request(found)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', "null", "[" * 100_000, "x" * 2_000_000])
def test_foreign_json_is_no_record(text: str) -> None:
    assert record.from_json(text) is None


def test_no_path_of_this_machine_is_recorded() -> None:
    assert "path" not in made(path="/home/someone/models")


def test_foreign_exif_never_raises() -> None:
    for exif in (
        b"",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40,
        b"Exif\0\0" + bytes(range(200)),
    ):
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, "JPEG", exif=exif)
        assert metadata.read(open_picture(out.getvalue())).record is None


def test_a_record_becomes_its_request_again() -> None:
    request = record.to_request(made(num_inference_steps=4, guidance_scale=2.5, negative_prompt="rain"))
    assert (request.prompt, request.seed, request.size) == ("a red fox", 7, (8, 8))
    assert (request.num_inference_steps, request.guidance_scale, request.negative_prompt) == (4, 2.5, "rain")
    assert request.model is None, "a file never chooses a model by itself"


@pytest.mark.parametrize(
    "change",
    [{"prompt": 3}, {"prompt": None}, {"size": "8x8"}, {"size": [8]}, {"seed": "1"}, {"sampler": {}}],
)
def test_a_damaged_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PictureError, match="damaged"):
        record.to_request({**made(), **change})


def test_pictures_made_from_pictures_are_refused() -> None:
    with pytest.raises(PictureError, match="another picture"):
        record.to_request(made(image_sha256="ab" * 32))
