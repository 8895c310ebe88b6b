"""Regions of pixels against slow, obvious references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagewright.editing import regions


def flooded(mask: np.ndarray) -> np.ndarray:
    """Connected parts by flooding from each pixel in reading order."""
    labels, name = np.zeros(mask.shape, int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        name += 1
        todo = [start]
        while todo:
            y, x = todo.pop()
            inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
            if inside and mask[y, x] and not labels[y, x]:
                labels[y, x] = name
                todo += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return labels


@given(seed=st.integers(0, 10_000), height=st.integers(1, 24), width=st.integers(1, 24), share=st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_components_are_those_of_flooding(seed: int, height: int, width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(regions.components(mask), flooded(mask))


def test_a_spiral_is_one_part() -> None:
    mask = np.zeros((101, 101), bool)
    for i in range(0, 50, 4):
        mask[i, i : 101 - i] = mask[i : 101 - i, 100 - i] = mask[100 - i, i + 2 : 101 - i] = True
        mask[i + 4 : 101 - i, i + 2] = mask[i + 4, i + 2 : i + 5] = True
    assert np.array_equal(regions.components(mask), flooded(mask))


def test_growing_and_shrinking() -> None:
    dot = np.zeros((7, 7), bool)
    dot[3, 3] = True
    assert regions.grown(dot, 2).sum() == 13  # a diamond
    assert np.array_equal(regions.shrunk(regions.grown(dot, 2), 2), dot)
    assert regions.shrunk(np.ones((5, 5), bool), 2).all()  # outside the picture there is nothing to shrink from


def test_spread_is_the_mean_of_the_known_neighbours() -> None:
    values, known = np.arange(16.0).reshape(4, 4, 1), np.zeros((4, 4), bool)
    known[0, 0] = known[1, 1] = True
    means, there = regions.spread(values, known, 1)
    assert means[0, 1, 0] == pytest.approx((0 + 5) / 2)
    assert means[2, 2, 0] == pytest.approx(5)
    assert not there[3, 3] and there[0, 0]


def test_segments_follow_colours_and_leave_nothing_small() -> None:
    picture = np.zeros((20, 20, 3))
    picture[:, 10:] = 0.5
    picture[4, 4] = 1.0  # a speck
    labels = regions.segments(picture, scale=0.3, least=5)
    assert labels.max() == 1
    assert len(np.unique(labels[:, :10])) == 1 and labels[0, 0] != labels[0, 19]
