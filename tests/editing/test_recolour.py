"""Recolouring: the right colour inside, the same bytes outside."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imagewright.data.recolour import COLOURS, named_share
from imagewright.editing.recolour import parse_colour, recolor
from imagewright.errors import RequestError


def picture(mode: str = "RGBA") -> Image.Image:
    """Shades of orange, some of it transparent, with hidden colours."""
    values = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    values[..., :3] = np.array([200, 110, 30]) + np.linspace(0, 40, 40)[:, None, None].astype(np.uint8)
    values[:10, :10, 3] = 0
    values[10:, :, 3] = 255
    return Image.fromarray(values, "RGBA").convert(mode)


@pytest.mark.parametrize("colour", [*COLOURS, "#12ab9f"])
@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
def test_inside_takes_the_colour_and_outside_keeps_its_bytes(colour: str, mode: str) -> None:
    before = picture(mode)
    area = np.zeros((40, 40), np.uint8)
    area[20:30, 5:25] = 255
    area[20:30, 25] = 100  # half chosen
    after = recolor(before, colour, Image.fromarray(area))
    assert after.mode == mode and after.size == before.size
    old, new = np.asarray(before), np.asarray(after)
    assert np.array_equal(old[area == 0], new[area == 0])
    assert old.shape[2] == 3 or np.array_equal(old[..., 3], new[..., 3])
    inside = np.asarray(after.convert("RGBA"))[20:30, 5:25]
    if colour in COLOURS:
        assert named_share(np.ascontiguousarray(inside), colour) > 0.9
    else:
        assert np.abs(inside[..., :3].reshape(-1, 3).mean(0) - parse_colour(colour)).max() < 25
    assert not np.array_equal(old[20:30, 25], new[20:30, 25])


def test_what_is_transparent_keeps_its_hidden_colours() -> None:
    before = picture()
    after = np.asarray(recolor(before, "blue"))
    hidden = np.asarray(before)[..., 3] == 0
    assert hidden.any() and np.array_equal(after[hidden], np.asarray(before)[hidden])


def test_colours_by_name_and_number() -> None:
    assert parse_colour(" Grey ") == COLOURS["gray"]
    assert parse_colour("#FF8000") == (255, 128, 0)
    for wrong in ("mauve", "#12345", "#1234567", "", "url(x)"):
        with pytest.raises(RequestError, match="Unknown colour"):
            parse_colour(wrong)


def test_nothing_chosen_and_another_size_are_errors() -> None:
    with pytest.raises(RequestError, match="Nothing visible"):
        recolor(picture(), "red", Image.new("L", (40, 40)))
    with pytest.raises(RequestError, match="Nothing visible"):
        recolor(Image.new("RGBA", (4, 4)), "red")
    with pytest.raises(RequestError, match="same size"):
        recolor(picture(), "red", Image.new("L", (4, 4), 255))
