"""Bending requests to shapes, sizes and seeds: what comes out is always allowed, and pictures stay in their place."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hosting import border, hole, photo
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagewright.editing import masks
from imagewright.editing.expand import Margins
from imagewright.engines.hosted import fitting
from imagewright.errors import UnsupportedError

SIZES = st.tuples(st.integers(1, 4096), st.integers(1, 4096))
LISTED = ((2048, 2048), (1024, 1024), (2688, 1512), (1344, 756), (1440, 2560))


@given(SIZES, st.sampled_from([(64, 4096, 16, 2**22), (256, 1440, 32, 1440 * 1440), (64, 3999, 1, 10**7)]))
@settings(max_examples=300, deadline=None)
def test_an_allowed_size_is_allowed(size: tuple[int, int], rule: tuple[int, int, int, int]) -> None:
    least, most, step, pixels = rule
    used = fitting.allowed_size(size, *rule)
    assert all(least <= side <= most and side % step == 0 for side in used) and prod(used) <= pixels


def test_an_allowed_size_stays_as_it_is() -> None:
    for size in ((1024, 1024), (64, 64), (2048, 2048), (4096, 1024), (1920, 1088)):
        assert fitting.allowed_size(size, 64, 4096, 16, 2**22) == size


@pytest.mark.parametrize(
    ("size", "used"),
    [
        ((1, 1), (1024, 1024)),
        ((1024, 1024), (1024, 1024)),
        ((1025, 1025), (2048, 2048)),
        ((4096, 4096), (2048, 2048)),
        ((1280, 720), (1344, 756)),
        ((1920, 1080), (2688, 1512)),
        ((4096, 1), (1344, 756)),
        ((1, 4096), (1440, 2560)),
    ],
)
def test_the_nearest_size_is_of_the_shape_and_large_enough(size: tuple[int, int], used: tuple[int, int]) -> None:
    assert fitting.nearest_size(size, LISTED) == used


@given(SIZES)
@settings(max_examples=100, deadline=None)
def test_the_nearest_ratio_turns_with_the_picture(size: tuple[int, int]) -> None:
    ratios = ("21:9", "16:9", "3:2", "1:1", "2:3", "9:16", "9:21")
    turned = fitting.nearest_ratio((size[1], size[0]), ratios)
    across, down = fitting.ratio_of(fitting.nearest_ratio(size, ratios))
    assert fitting.ratio_of(turned) == (down, across) or size[0] == size[1]


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (230, 110), (64, 64)])
@pytest.mark.parametrize("shape", [(1, 1), (16, 9), (9, 21)])
def test_a_widened_picture_is_cut_back_to_itself(size: tuple[int, int], shape: tuple[int, int]) -> None:
    picture = photo(size)
    widened = fitting.Widened.to(picture, shape)
    assert np.array_equal(np.asarray(widened.cut_back(widened.image)), np.asarray(picture))
    assert widened.image.width >= size[0] and widened.image.height >= size[1]
    error = abs(widened.image.width * shape[1] / (widened.image.height * shape[0]) - 1)
    assert error <= 1 / min(widened.image.size)
    twice = widened.image.resize((2 * widened.image.width, 2 * widened.image.height), Image.Resampling.NEAREST)
    assert widened.cut_back(twice).size == (2 * size[0], 2 * size[1])


def test_the_mask_turns_white_where_it_was_clear() -> None:
    white = np.asarray(fitting.white_mask(hole((96, 64), (30, 20, 60, 40))))
    assert white.shape == (64, 96) and white[20:40, 30:60].min() == 255 and white.sum() == 255 * 20 * 30


def test_margins_are_those_around_one_rectangle_only() -> None:
    mask = border((128, 96), (32, 8, 96, 96))
    margins = fitting.margins_of(mask)
    assert margins == Margins(left=32, right=32, up=8, down=0)
    assert fitting.inner(photo((128, 96)), margins).size == (64, 88)
    with pytest.raises(UnsupportedError, match="only adds"):
        fitting.margins_of(hole())
    with pytest.raises(UnsupportedError, match="keeps nothing"):
        fitting.margins_of(masks.whole((10, 10)))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_a_seed_on_the_wire_is_never_zero(seed: int) -> None:
    used, said = fitting.wire_seed(seed, 2**32 - 2)
    assert 1 <= used <= 2**32 - 2 and (used == seed) == (not said)


@pytest.mark.parametrize("text", ["a" * 50, "word " * 10, "", "ab cd"])
def test_words_are_cut_at_a_space_where_one_is_near(text: str) -> None:
    short, said = fitting.cut_words("prompt", text, 12)
    assert len(short) <= 12 and text.startswith(short) and bool(said) == (short != text)
    assert not said or " " not in text or text[len(short)] == " "


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16", "CMYK"])
def test_pictures_of_any_kind_are_bounded(mode: str) -> None:
    image = Image.new(mode, (300, 200))
    assert prod(fitting.bounded(image, 15_000).size) <= 15_100
    assert fitting.bounded(Image.new(mode, (40, 20)), 10**6, least=256).size == (512, 256)
    assert fitting.flat(fitting.bounded(image, 15_000)).mode == "RGB"
