"""The chain from a request to finished pictures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import imagewright
from imagewright.errors import RequestError, UnsupportedError
from imagewright.pictures import open_picture
from imagewright.provenance import metadata
from imagewright.provenance.seal import seal


def test_generate_gives_pictures_and_records() -> None:
    result = imagewright.generate("a red fox", model="fake/blocks", seed=5, n=3)
    assert [record["seed"] for record in result.records] == [5, 6, 7]
    assert (result.engine, result.model, len(result)) == ("fake", "blocks", 3)
    for image, record in zip(result, result.records, strict=True):
        assert image.mode == "RGBA" and image.size == (32, 32)
        assert image.info["imagewright"] == record
        assert record["prompt"] == "a red fox" and record["refine"] == [] and record["version"] == 1


def test_picture_i_of_a_batch_can_be_made_alone() -> None:
    batch = imagewright.generate("a red fox", model="fake/blocks", seed=5, n=3)
    alone = imagewright.generate("a red fox", model="fake/blocks", seed=7)
    assert np.array_equal(np.asarray(batch[2]), np.asarray(alone[0]))


def test_size_and_background_are_made_and_recorded() -> None:
    result = imagewright.generate("x", model="fake/blocks", seed=1, size=(90, 60), background="#ffcc00")
    assert result[0].size == (90, 60) and result[0].mode == "RGB"
    assert result[0].getpixel((0, 0)) == (255, 204, 0)
    assert [step["step"] for step in result.records[0]["refine"]] == ["resample", "pad", "background"]
    assert result.records[0]["size"] == [90, 60] and result.adjustments == ()


def test_jpeg_is_white_behind() -> None:
    result = imagewright.generate("x", model="fake/blocks", seed=1, size=(64, 32), output_format="jpeg")
    assert result[0].mode == "RGB" and result[0].getpixel((0, 0)) == (255, 255, 255)


def test_what_cannot_be_honoured_is_said_and_recorded() -> None:
    result = imagewright.generate(
        "x",
        model="fake/opaque",
        n=5,
        size=(99, 99),
        num_inference_steps=9,
        background="#ffcc00",
        negative_prompt="y",
    )
    told = {adjustment.field for adjustment in result.adjustments}
    assert told == {"n", "size", "num_inference_steps", "background", "negative_prompt"}
    assert {adjustment["field"] for adjustment in result.records[0]["adjustments"]} == told
    assert len(result) == 2 and result[0].size == (24, 24)
    stored = metadata.read(open_picture(seal(result[0], result.records[0]).data)).record
    assert stored == result.records[0]


@pytest.mark.parametrize("fields", [{"style": "oil"}, {"sampler": "x"}])
def test_what_would_change_the_meaning_is_an_error(fields: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError):
        imagewright.generate("x", model="fake/blocks", **fields)


def test_a_mask_is_never_dropped() -> None:
    image = imagewright.generate("x", model="fake/blocks")[0]
    with pytest.raises(RequestError, match="needs the image"):
        imagewright.generate("x", model="fake/blocks", mask=image)
    with pytest.raises(UnsupportedError, match="mask"):
        imagewright.generate("x", model="fake/blocks", image=image, mask=image)


def test_where_a_model_paints_a_background_it_is_cut_out_or_said_to_stay() -> None:
    result = imagewright.generate("x", model="fake/opaque", background="transparent")
    said = next(one for one in result.adjustments if one.field == "background")
    assert (said.used == "cut out") == result[0].has_transparency_data
    assert result.records[0]["adjustments"][-1]["field"] == "background"


@given(
    prompt=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200).filter(str.strip)
)
@settings(max_examples=40, deadline=None)
def test_any_prompt_yields_a_valid_file_whose_record_round_trips(prompt: str) -> None:
    result = imagewright.generate(prompt, model="fake/blocks", seed=1, plain=True)
    opened = open_picture(seal(result[0], result.records[0]).data)
    assert metadata.read(opened).record == result.records[0]
    assert np.array_equal(np.asarray(opened), np.asarray(result[0]))
