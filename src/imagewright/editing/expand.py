"""Larger canvases: what is added around a picture, in steps of which each sees enough of the one before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from imagewright.editing import masks
from imagewright.errors import RequestError
from imagewright.request import MAX_SIDE

REACH = 0.5  # of a side at most is added to it in one step
ALIKE, MOSTLY = 12, 0.6  # of 255, and of the edge: an even ground goes on evenly
DIRECTIONS = ("left", "right", "up", "down")

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Margins:
    """Pixels to add at each side; negative ones are cut off."""

    left: int = 0
    right: int = 0
    up: int = 0
    down: int = 0

    def around(self, size: Size) -> Size:
        """The size with the margins. Raises RequestError on one that is too large, or where nothing is left."""
        width, height = size[0] + self.left + self.right, size[1] + self.up + self.down
        if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise RequestError(
                f"The picture of {size[0]}x{size[1]} would become {width}x{height}.",
                f"Add or cut less: each side may have 1 to {MAX_SIDE} pixels.",
            )
        return width, height

    @property
    def added(self) -> Margins:
        """Without what is cut off."""
        return Margins(*(max(0, side) for side in self.sides))

    @property
    def cut(self) -> Margins:
        """Without what is added."""
        return Margins(*(min(0, side) for side in self.sides))

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Left, right, up, down."""
        return self.left, self.right, self.up, self.down


def margins(size: Size, left: str = "0", right: str = "0", up: str = "0", down: str = "0") -> Margins:
    """From lengths in pixels or percent of the side. Raises RequestError where they are negative, or all nothing."""
    texts = (left, right, up, down)
    sides = [masks.length(text, size[0] if index < 2 else size[1]) for index, text in enumerate(texts)]
    if min(sides) < 0 or not any(sides):
        raise RequestError(
            "Nothing to add to the picture.", "Say how much at which side, such as --right 64 or --up 25%."
        )
    return Margins(*sides)


def zoom_out(size: Size, factor: float) -> Margins:
    """As much on all sides as makes the picture `factor` times as wide and high. Raises RequestError."""
    if not 1 < factor <= MAX_SIDE:
        raise RequestError(f"The factor to zoom out is {factor}.", "Use more than 1, such as 1.5 or 2.")
    extra = [round(side * factor) - side for side in size]
    if not any(extra):
        raise RequestError(f"The picture of {size[0]}x{size[1]} is too small to zoom out {factor}.", "Use more.")
    left, up = extra[0] // 2, extra[1] // 2
    return Margins(left, extra[0] - left, up, extra[1] - up)


def pan(size: Size, direction: str, amount: str = "25%") -> Margins:
    """The window moves: what it uncovers is added, as much is cut off behind. Raises RequestError."""
    if direction not in DIRECTIONS:
        raise RequestError(f"Cannot pan {direction!r}.", f"Use {', '.join(DIRECTIONS)}.")
    side = size[0] if direction in ("left", "right") else size[1]
    far = masks.length(amount, side)
    if not 0 < far < side:
        raise RequestError(f"Cannot pan by {amount}: the side has {side} pixels.", "Keep some of the picture.")
    behind = {"left": "right", "right": "left", "up": "down", "down": "up"}[direction]
    return Margins(**{direction: far, behind: -far})


def steps(size: Size, wanted: Margins) -> list[Margins]:
    """The margins to add, in steps: each adds REACH of a side at most, so that half of what a model sees is known.

    Raises RequestError where the canvas grows too large.
    """
    left, right, up, down = wanted.added.sides
    wanted.added.around(size)
    found = []
    width, height = size
    while left or right or up or down:
        across, along = (max(1, int(REACH * side)) for side in (width, height))
        step = Margins(*_shared(left, right, across), *_shared(up, down, along))
        found.append(step)
        left, right, up, down = (a - b for a, b in zip((left, right, up, down), step.sides, strict=True))
        width, height = step.around((width, height))
    return found


def _shared(one: int, other: int, most: int) -> tuple[int, int]:
    """`most` at most of `one` and `other` together, by their shares."""
    if one + other <= most:
        return one, other
    first = round(most * one / (one + other))
    return first, most - first


def canvas(picture: Image.Image, extra: Margins) -> tuple[Image.Image, Image.Image]:
    """The picture with added margins (none negative), its own pixels unchanged, and the mask of what is new.

    The margins go on with the colours of the picture's edge until a model fills them.
    """
    picture = masks.eight_bit(picture)
    width, height = extra.around(picture.size)
    around = ((extra.up, extra.down), (extra.left, extra.right))
    larger = np.pad(np.asarray(picture), (*around, (0, 0)), mode="edge")
    hole = np.ones((height, width), bool)
    hole[extra.up : extra.up + picture.height, extra.left : extra.left + picture.width] = False
    return Image.fromarray(larger, picture.mode), masks.mask_of(hole)


def even_edge(picture: Image.Image) -> tuple[int, ...] | None:
    """The colour (RGB or RGBA) of most of a picture's edge, such as nothing around a sticker; None: there is none."""
    pixels = np.asarray(masks.eight_bit(picture))
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]).astype(np.int16)  # (N, 3 or 4)
    if edge.shape[1] == 4:
        edge[edge[:, 3] == 0] = 0  # a hidden colour is none
    middle = np.median(edge, axis=0).astype(np.int16)
    alike = (np.abs(edge - middle).max(axis=1) <= ALIKE).mean()
    return tuple(int(value) for value in middle) if alike >= MOSTLY else None


def cropped(picture: Image.Image, extra: Margins) -> Image.Image:
    """The picture without what negative margins cut off."""
    left, right, up, down = extra.cut.sides
    return picture.crop((-left, -up, picture.width + right, picture.height + down))
