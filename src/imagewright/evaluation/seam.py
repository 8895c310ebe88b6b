"""Whether one sees where a filled or expanded part begins.

How much neighbouring pixels differ across the border of the hole, divided by how much neighbours on the same side
differ close to it: 1 is a border like any other place, a pasted patch has several times that. Colours are premultiplied
RGBA, 0-255, so that hidden colours do not count. A ratio near 1 says nothing of what is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from imagewright.editing import masks
from imagewright.editing.regions import Floats, Mask, grown
from imagewright.errors import RequestError

BAND = 4  # pixels on each side of the border with which it is compared
LEAST = 1.0  # of 255, added to both, so that two even areas do not divide by nothing


@dataclass(frozen=True)
class Seam:
    """Mean differences of neighbours `across` the border, `inside` the hole and `outside` it, of 255; `ratio`: across
    against the mean of the two sides, 1 where the border is like them."""

    across: float
    inside: float
    outside: float

    @property
    def ratio(self) -> float:
        """1: no seam; larger: the more one sees it."""
        return (self.across + LEAST) / ((self.inside + self.outside) / 2 + LEAST)


def seam(before: Image.Image, mask: Image.Image, after: Image.Image) -> Seam:
    """The seam of `after`, made from `before` (its canvas, for expanding) where `mask` lets it change, as a request's.

    What lies outside is looked up in `before`. Raises RequestError where sizes differ or the mask has no border.
    """
    if not before.size == mask.size == after.size:
        raise RequestError(
            f"Sizes differ: {before.size}, mask {mask.size}, {after.size}.", "Give three pictures of one size."
        )
    hole = masks.hole(mask)
    if hole.all():
        raise RequestError("The mask lets everything change: it has no border.", "Give the mask of a part.")
    old, new = _premultiplied(before), _premultiplied(after)
    pixels = np.where(hole[..., None], new, old)
    near = grown(hole, BAND) & grown(~hole, BAND)
    kinds: dict[str, list[Floats]] = {"across": [], "inside": [], "outside": []}
    for axis in (0, 1):
        differences = np.abs(np.diff(pixels, axis=axis)).mean(-1)
        one, other = _pairs(hole, axis)
        close = np.logical_and(*_pairs(near, axis))
        kinds["across"].append(differences[one != other])
        kinds["inside"].append(differences[close & one & other])
        kinds["outside"].append(differences[close & ~one & ~other])
    means = {name: np.concatenate(found) for name, found in kinds.items()}
    return Seam(**{name: float(found.mean()) if found.size else 0.0 for name, found in means.items()})


def _pairs(values: Mask, axis: int) -> tuple[Mask, Mask]:
    """Each pixel but the last along an axis, and the one after it."""
    moved = np.moveaxis(values, axis, 0)
    return np.moveaxis(moved[:-1], 0, axis), np.moveaxis(moved[1:], 0, axis)


def _premultiplied(image: Image.Image) -> Floats:
    return np.asarray(image.convert("RGBA").convert("RGBa"), np.float64)
