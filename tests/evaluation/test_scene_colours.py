"""The rule that tells whether the things of a scene have the colours that were asked for."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imagewright.evaluation.scenes import BY_PIXELS, colours_by_pixels, has_its_colours

SIDE = 64
LEFT, RIGHT, ABOVE, BELOW = (4, 20, 26, 42), (38, 20, 60, 42), (20, 4, 42, 26), (20, 38, 42, 60)


def picture(*things: tuple[tuple[int, int, int, int], str], ground: str | None = None) -> np.ndarray[Any, Any]:
    """Discs in boxes, (SIDE, SIDE, 4) premultiplied."""
    drawn = Image.new("RGBA", (SIDE, SIDE), ground or (0, 0, 0, 0))
    for box, colour in things:
        ImageDraw.Draw(drawn).ellipse(box, fill=colour)
    return np.asarray(drawn.convert("RGBa"))


def asked(*colours: str | None, relation: str | None = None) -> dict[str, Any]:
    return {"objects": [{"colour": colour} for colour in colours], "relation": relation}


def test_one_thing_has_its_colour_on_any_ground() -> None:
    for ground in (None, "#fcd828", "white"):
        blue = picture((LEFT, "#2669e4"), ground=ground)
        assert has_its_colours(blue, asked("blue")) is True
        assert has_its_colours(blue, asked("green")) is False
    assert has_its_colours(picture(ground="#2669e4"), asked("blue")) is False, "the ground is no thing"
    assert has_its_colours(picture(), asked("blue")) is False
    assert has_its_colours(picture((LEFT, "blue")), asked(None)) is None


@pytest.mark.parametrize(
    "relation,first,second",
    [("left", LEFT, RIGHT), ("right", RIGHT, LEFT), ("above", ABOVE, BELOW), ("below", BELOW, ABOVE)],
)
def test_two_things_have_theirs_where_they_stand(relation: str, first: Any, second: Any) -> None:
    right = picture((first, "#de2026"), (second, "#34a53c"))
    wrong = picture((first, "#34a53c"), (second, "#de2026"))
    both = picture((first, "#de2026"), (second, "#de2026"))
    for colours in (("red", "green"), ("red", None), (None, "green")):
        told = asked(*colours, relation=relation)
        assert has_its_colours(right, told) is True
        assert has_its_colours(wrong, told) is False
    assert has_its_colours(both, asked("red", "green", relation=relation)) is False
    share = colours_by_pixels(np.stack([right, both, right]), [asked("red", "green", relation=relation)] * 3)[BY_PIXELS]
    assert share.n == 3 and share.value == pytest.approx(2 / 3)
    assert colours_by_pixels(np.stack([right]), [asked(None, None, relation=relation)]) == {}
