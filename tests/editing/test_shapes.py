"""Sizes of models that draw only some: the nearest shape, then the nearest area; and what an edit sends."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagewright.editing import place
from imagewright.editing.shapes import nearest, shaped
from imagewright.request import Capabilities, ImageRequest

SOME = Capabilities(size=(1024, 1024), any_size=False, sizes=((1024, 1024), (1536, 1024), (1024, 1536), (512, 512)))
FREE = Capabilities(size=(1024, 1024), any_size=False, sides=(16, 3840, 16), pixels=(655_360, 8_294_400), ratio=3.0)
sizes = st.tuples(st.integers(1, 4096), st.integers(1, 4096))


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ((1024, 1024), (1024, 1024)),
        ((600, 600), (512, 512)),
        ((2000, 2000), (1024, 1024)),
        ((1600, 1000), (1536, 1024)),
        ((1, 4096), (1024, 1536)),
    ],
)
def test_of_some_sizes(size: tuple[int, int], found: tuple[int, int]) -> None:
    assert nearest(size, SOME) == found


def test_of_one_size() -> None:
    assert nearest((5, 7), Capabilities(size=(64, 48), any_size=False)) == (64, 48)


@given(sizes)
def test_free_sizes_stay_within_all_bounds(size: tuple[int, int]) -> None:
    width, height = nearest(size, FREE)
    assert width % 16 == height % 16 == 0
    assert 655_360 <= width * height <= 8_294_400
    assert max(width, height) <= min(3840, 3 * min(width, height))
    asked = min(max(log(size[0] / size[1]), -log(3)), log(3))
    assert abs(log(width / height) - asked) < 0.07


@given(sizes)
def test_what_can_be_drawn_stays_as_it_is(size: tuple[int, int]) -> None:
    for can in (SOME, FREE):
        drawn = nearest(size, can)
        assert nearest(drawn, can) == drawn


def test_the_shape_for_an_edit() -> None:
    assert shaped((800, 600), FREE) is FREE
    assert shaped((900, 600), SOME).size == (1536, 1024)
    assert shaped((80, 80), SOME).size == (1024, 1024)  # not the smallest of its shape: that of the usual area
    long = shaped((3000, 200), FREE)
    assert long.sides is None and long.size[0] / long.size[1] == pytest.approx(3, rel=0.05)


@given(sizes)
def test_a_hole_goes_out_in_a_size_of_the_model(size: tuple[int, int]) -> None:
    hole = np.ones((max(1, size[1] // 40), max(1, size[0] // 40)), bool)
    for can in (SOME, FREE):
        _, drawn = place.frame(hole, can)
        assert nearest(drawn, can) == drawn


@pytest.mark.parametrize("size", [(50, 40), (90, 20), (1, 30)])
def test_a_picture_goes_out_in_a_size_of_the_model(size: tuple[int, int]) -> None:
    request = ImageRequest(prompt="x", image=Image.new("RGB", size), size=size)
    for can in (SOME, FREE):
        cut, _ = place.cut(request, can)
        assert cut is not None and cut.request.size is not None
        assert nearest(cut.request.size, can) == cut.request.size
        assert cut.restored(Image.new("RGB", cut.request.size))[0].size == size
