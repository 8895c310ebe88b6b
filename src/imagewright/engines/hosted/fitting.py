"""Bending a request to what a hosted model takes: shapes, sizes, seeds, words, masks.

Hosted models draw in a few shapes (`16:9`) or sizes only: the nearest is asked for. A picture that is to be changed is
widened to that shape by repeating its edge, and what comes back is cut to where the picture was (`Widened`), so that
every pixel stays in its place.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log, prod, sqrt

import numpy as np
from PIL import Image

from imagewright.editing import masks
from imagewright.editing.expand import Margins
from imagewright.errors import UnsupportedError
from imagewright.pictures import encode
from imagewright.request import Adjustment
from imagewright.resampling import resize

ENOUGH = 0.9  # of the side asked for; a tier of resolution that reaches it will do

Size = tuple[int, int]  # width, height in pixels


def ratio_of(name: str) -> Size:
    """(16, 9) of "16:9"."""
    width, _, height = name.partition(":")
    return int(width), int(height)


def nearest_ratio(size: Size, ratios: Sequence[str]) -> str:
    """The name in `ratios` (as "16:9") whose shape is nearest to that of `size`."""
    return min(ratios, key=lambda name: _apart(size, ratio_of(name)))


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """The one of `sizes` of the nearest shape; of several such the smallest that is not smaller than `size`, or else
    the largest."""
    closest = min(_apart(size, one) for one in sizes)
    alike = sorted((one for one in sizes if _apart(size, one) <= closest + 0.03), key=prod)
    return next((one for one in alike if prod(one) >= prod(size)), alike[-1])


def _apart(one: Size, other: Size) -> float:
    return abs(log(one[0] * other[1] / (one[1] * other[0])))


def nearest_tier(size: Size, tiers: Mapping[str, int]) -> str:
    """The first of `tiers` (name: about the side of a square picture; the smallest first) that all but reaches `size`,
    or the last."""
    side = ENOUGH * sqrt(prod(size))
    return next((name for name, reached in tiers.items() if reached >= side), list(tiers)[-1])


def allowed_size(size: Size, least: int, most: int, step: int, pixels: int) -> Size:
    """`size` bent to sides of `least` to `most`, multiples of `step`, and at most so many `pixels`; the shape is kept
    as far as that goes."""
    shrink = min(1.0, sqrt(pixels / prod(size)), most / max(size))
    grow = max(1.0, least / (min(size) * shrink))
    width, height = (min(max(step * round(side * shrink * grow / step), least), most) for side in size)
    while width * height > pixels:
        width, height = (width - step, height) if width >= height else (width, height - step)
    return width, height


@dataclass(frozen=True)
class Widened:
    """A picture with edges repeated until it has another shape. `image` is that, `box` (left, top, right, bottom in
    pixels of `image`) is where the picture lies in it."""

    image: Image.Image
    box: tuple[int, int, int, int]

    @classmethod
    def to(cls, picture: Image.Image, shape: Size) -> Widened:
        """`picture` widened, on both sides alike, to the proportions of `shape`."""
        scale = max(side / part for side, part in zip(picture.size, shape, strict=True))
        width, height = (max(side, round(scale * part)) for side, part in zip(picture.size, shape, strict=True))
        left, top = (width - picture.width) // 2, (height - picture.height) // 2
        right, bottom = left + picture.width, top + picture.height
        around = ((top, height - bottom), (left, width - right))
        pixels = np.pad(np.asarray(picture), around if picture.mode == "L" else (*around, (0, 0)), mode="edge")
        return cls(Image.fromarray(pixels, picture.mode), (left, top, right, bottom))

    def cut_back(self, drawn: Image.Image) -> Image.Image:
        """The part of `drawn` (the widened picture at any size) where the picture was."""
        shares = [edge / side for edge, side in zip(self.box, (*self.image.size, *self.image.size), strict=True)]
        left, top = floor(shares[0] * drawn.width), floor(shares[1] * drawn.height)
        right, bottom = ceil(shares[2] * drawn.width), ceil(shares[3] * drawn.height)
        part = drawn.crop((left, top, max(left + 1, right), max(top + 1, bottom)))
        part.info = {"record": drawn.info["record"]} if "record" in drawn.info else {}
        return part


def white_mask(mask: Image.Image) -> Image.Image:
    """A mask as most services read it (L): white may change, black stays. Ours, as OpenAI's, is clear where it may."""
    return Image.fromarray(masks.hole(mask)).convert("L")


def margins_of(mask: Image.Image) -> Margins:
    """How far the picture ends from each edge, where a mask leaves one whole rectangle as it is.

    Raises UnsupportedError on a mask of another shape.
    """
    kept = ~masks.hole(mask)
    if not kept.any():
        raise UnsupportedError("The mask keeps nothing to expand from.", "Leave some of the picture as it is.")
    left, top, right, bottom = masks.bounds(kept)
    if not kept[top:bottom, left:right].all():
        raise UnsupportedError(
            "This model only adds to the edges of a picture.",
            "Give a mask that keeps one rectangle, as expand does, or choose a model that fills.",
        )
    return Margins(left, kept.shape[1] - right, top, kept.shape[0] - bottom)


def inner(image: Image.Image, margins: Margins) -> Image.Image:
    """`image` without its `margins`."""
    return image.crop((margins.left, margins.up, image.width - margins.right, image.height - margins.down))


def bounded(image: Image.Image, pixels: int, least: int = 1) -> Image.Image:
    """`image` (RGB or RGBA, its shape kept) with at most so many `pixels`, and sides of at least `least`."""
    image = masks.upright(image)
    scale = max(min(1.0, sqrt(pixels / prod(image.size))), least / min(image.size))
    width, height = (max(least, round(scale * side)) for side in image.size)
    return resize(image, (width, height))


def flat(image: Image.Image) -> Image.Image:
    """`image` as RGB, on white where it is clear: some services read alpha as a mask."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def png(image: Image.Image) -> bytes:
    """The bytes of `image` as PNG, without metadata."""
    return encode(image, "png")


def png_base64(image: Image.Image) -> str:
    """`image` as PNG in base64."""
    return base64.b64encode(png(image)).decode("ascii")


def cut_words(field: str, text: str, most: int) -> tuple[str, list[Adjustment]]:
    """`text` of at most so many characters, cut at a space where there is one near, and what to say of it."""
    if len(text) <= most:
        return text, []
    short = text[:most]
    space = short.rfind(" ")
    short = short[:space] if space > most // 2 else short
    said = Adjustment(field, f"{len(text)} characters", f"{len(short)} characters", f"this model reads {most} at most")
    return short, [said]


def wire_seed(seed: int, highest: int) -> tuple[int, list[Adjustment]]:
    """`seed` as a service takes it that knows 1 to `highest` (0: any), and what to say where that is another."""
    if 1 <= seed <= highest:
        return seed, []
    used = 1 + (seed - 1) % highest
    return used, [Adjustment("seed", seed, used, f"this model takes 1 to {highest}")]


def within(value: float, low: float, high: float, field: str) -> tuple[float, list[Adjustment]]:
    """`value` no less than `low` and no more than `high`, and what to say where it was."""
    used = min(max(value, low), high)
    return used, [] if used == value else [Adjustment(field, value, used, f"this model takes {low} to {high}")]
