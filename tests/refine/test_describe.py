"""Captions: from names in the list, with what can be counted in the pixels."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imagewright.errors import RequestError
from imagewright.refine import describe as describing
from imagewright.refine.describe import caption, describe, vocabulary


def heart(side: int = 96, colour: str = "#dd2222", ground: str | None = None) -> Image.Image:
    """Two discs and a triangle."""
    picture = Image.new("RGBA", (side, side), ground or (0, 0, 0, 0))
    draw = ImageDraw.Draw(picture)
    for left in (0.1, 0.48):
        draw.ellipse([side * left, side * 0.15, side * (left + 0.42), side * 0.57], fill=colour)
    draw.polygon([(side * 0.12, side * 0.45), (side * 0.88, side * 0.45), (side * 0.5, side * 0.92)], fill=colour)
    return picture


def test_the_names_are_the_judges_concepts() -> None:
    judges = describing.shipped()
    names = vocabulary(judges)
    assert 1700 < len(names) < 1800 and set(judges.labels["concepts"]) <= set(names)
    assert all(name and name == name.strip() for name in names.values())
    assert len((files("imagewright") / "assets" / "names.txt").read_bytes()) < 40_000


def test_a_heart_is_called_a_heart() -> None:
    found = describe(heart(), 5)
    assert len(found) == 5 and len({one.name for one in found}) == 5
    assert any("heart" in one.name for one in found)
    assert all(0 <= one.score <= 1 and one.name in one.text for one in found)
    assert found == describe(heart(), 5)
    assert found[:2] == describe(heart(), 2)
    json.dumps([vars(one) for one in found])


def test_colour_and_background_are_counted() -> None:
    coloured = frozenset({"kite", "orange"})
    red, on_blue = np.asarray(heart()), np.asarray(heart(ground="#2669e4"))
    assert caption("kite", coloured, red, None) == "a red kite"
    assert caption("kite", coloured, on_blue, "flat") == "a red kite on a blue background, flat style"
    assert caption("orange", coloured, red, None) == "an orange"  # never a red orange
    assert caption("joy", coloured, red, None) == "a joy"
    mixed = red.copy()
    mixed[::2, :, :3] = (38, 105, 228)
    assert caption("kite", coloured, mixed, None) == "a kite"
    striped = on_blue.copy()
    striped[:, ::2, :3] = (240, 240, 240)
    assert "background" not in caption("kite", coloured, striped, None)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (2000, 3)])
def test_odd_sizes_get_captions(size: tuple[int, int]) -> None:
    assert len(describe(Image.new("RGB", size, "white"), 3)) == 3


def test_nothing_to_see_and_senseless_numbers_are_errors() -> None:
    with pytest.raises(RequestError, match="Nothing can be seen"):
        describe(Image.new("RGBA", (20, 20)))
    for n in (0, 101):
        with pytest.raises(RequestError, match="captions"):
            describe(heart(), n)
