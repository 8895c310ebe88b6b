"""Holes filled from around them, without a model: what surrounds them goes on, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from editing.painters import any_hole, anything
from PIL import Image

from imagewright import verbs
from imagewright.editing import masks
from imagewright.editing.complete import completed


@pytest.mark.parametrize("seed", range(8))
def test_nothing_but_the_hole_changes(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(5):
        picture = masks.eight_bit(anything(random, most=90))
        hole = any_hole(random, picture.size)
        result = completed(picture, hole)
        assert result.mode == picture.mode and result.size == picture.size
        assert np.array_equal(np.asarray(result)[~hole], np.asarray(picture)[~hole])
        assert np.array_equal(np.asarray(completed(picture, hole)), np.asarray(result)), "the same every time"


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("side", [64, 300])
def test_stripes_go_on(side: int, upright: bool) -> None:
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, (np.arange(side) // (side // 16)) % 2 == 1] = (240, 120, 10)
    stripes = stripes if upright else stripes.transpose(1, 0, 2)
    spoiled = stripes.copy()
    hole = np.zeros((side, side), bool)
    hole[side // 3 : side // 2, side // 3 : side // 2] = True
    spoiled[hole] = (0, 0, 255)
    found = np.asarray(completed(Image.fromarray(spoiled), hole))
    wrong = (np.abs(found.astype(int) - stripes).max(axis=-1) > 40)[hole].mean()
    assert wrong < 0.1


def test_what_was_in_the_hole_leaves_no_trace() -> None:
    picture = Image.new("RGBA", (80, 60), (0, 0, 0, 0))
    picture.paste((10, 200, 30, 255), (30, 20, 50, 40))
    filled = verbs.fill(picture, region="28,18,24,24")
    assert np.asarray(filled[0])[..., 3].max() == 0
    record = filled.records[0]
    assert (record["model"], record["verb"], record["changed_outside_mask"]) == (None, "fill", 0)
    assert record["refine"] == [{"step": "complete"}] and not filled.adjustments


def test_what_no_model_hears_is_said() -> None:
    result = verbs.fill(Image.new("RGB", (40, 40), "red"), region="4,4,9,9", n=2, seed=3, output_format="jpeg")
    assert [one.field for one in result.adjustments] == ["n", "seed", "output_format"]
    assert len(result) == 1 and np.asarray(result[0]).reshape(-1, 3).tolist() == [[255, 0, 0]] * 1600
    drawn = verbs.fill(Image.new("RGB", (40, 40)), region="4,4,9,9", model="fake/painter")
    assert drawn.records[0]["model"] == "painter" and [one.field for one in drawn.adjustments] == ["prompt"]


def test_a_picture_that_is_all_hole_becomes_one_colour() -> None:
    picture = anything(np.random.default_rng(1), most=40, modes=("RGB",))
    found = np.asarray(completed(picture, np.ones(picture.size[::-1], bool)))
    assert len(np.unique(found.reshape(-1, 3), axis=0)) == 1
