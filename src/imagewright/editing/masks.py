"""Masks: where a picture may change.

A mask follows OpenAI: what is fully transparent may change, all else stays. One without an alpha channel is black and
white, as other tools paint them: white (128 and more) may change. Inside, a mask is a hole: (H, W) bool, True where
the picture may change.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from imagewright.errors import RequestError
from imagewright.pictures import encode, save_atomic
from imagewright.request import Adjustment

Hole = NDArray[np.bool_]

ASPECT = 0.02  # by how much a mask's aspect may differ from its picture's to be resized to it
_LENGTH = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*(%|px)?\s*")


def hole(mask: Image.Image) -> Hole:
    """(H, W) bool, where the picture may change. Raises RequestError where nothing may."""
    if mask.has_transparency_data:
        found = np.asarray(mask.convert("RGBA").getchannel("A")) == 0
        fix = "Make it fully transparent where the picture may change, or paint that white in a mask without alpha."
    else:
        found = np.asarray(eight_bit(mask).convert("L")) >= 128
        fix = "Paint white where the picture may change, or give a mask that is transparent there."
    if not found.any():
        raise RequestError("The mask is empty: nothing may change.", fix)
    return np.ascontiguousarray(found)


def mask_of(hole: Hole) -> Image.Image:
    """The mask of a hole (H, W): LA, transparent where the picture may change."""
    values = np.zeros((*hole.shape, 2), np.uint8)
    values[..., 1] = np.where(hole, 0, 255)
    return Image.fromarray(values, "LA")


def whole(size: tuple[int, int]) -> Image.Image:
    """The mask of a picture of `size` (width, height) that may change everywhere."""
    return mask_of(np.ones((size[1], size[0]), bool))


def inverted(mask: Image.Image) -> Image.Image:
    """The mask that lets change what this one keeps. Raises RequestError where that is nothing."""
    turned = ~hole(mask)
    if not turned.any():
        raise RequestError("The inverted mask is empty: nothing may change.", "Do not invert it.")
    return mask_of(turned)


def region(text: str, size: tuple[int, int]) -> Image.Image:
    """The mask of a rectangle, `x,y,w,h` in pixels or percent, in a picture of `size`. Raises RequestError."""
    fix = "Give x,y,width,height from the left top, such as 10,20,64,64 or 25%,25%,50%,50%."
    parts = text.split(",")
    if len(parts) != 4:
        raise RequestError(f"{text!r} is no region.", fix)
    x, y, w, h = (length(part, side) for part, side in zip(parts, (*size, *size), strict=True))
    left, top, right, bottom = max(0, x), max(0, y), min(size[0], x + w), min(size[1], y + h)
    if right <= left or bottom <= top:
        raise RequestError(f"The region {text!r} has no pixel in the picture of {size[0]}x{size[1]}.", fix)
    found = np.zeros((size[1], size[0]), bool)
    found[top:bottom, left:right] = True
    return mask_of(found)


def length(text: str, side: int) -> int:
    """Pixels of `12`, `12px` or `12.5%` (of `side`). Raises RequestError."""
    match = _LENGTH.fullmatch(text)
    if match is None or len(match[1]) > 12:
        raise RequestError(f"{text!r} is no length.", "Give pixels (64) or a share of the side (25%).")
    return round(float(match[1]) / 100 * side if match[2] == "%" else float(match[1]))


def fitted(mask: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, list[Adjustment]]:
    """A mask, as someone gives it, for a picture of `size`: resized, and said, where only its scale differs.

    Raises RequestError on another aspect or an empty mask.
    """
    found = hole(mask)
    if mask.size == size:
        return mask_of(found), []
    if abs(mask.width * size[1] / (mask.height * size[0]) - 1) > ASPECT:
        raise RequestError(
            f"The mask is {mask.width}x{mask.height} and the picture {size[0]}x{size[1]}.", "Make them the same size."
        )
    resized = np.asarray(Image.fromarray(found).resize(size, Image.Resampling.NEAREST))
    if not resized.any():
        raise RequestError("Nothing is left of the mask at the picture's size.", "Make it at the picture's size.")
    return mask_of(resized), [Adjustment("mask", mask.size, size, "resized to the picture")]


def grown(found: Hole, by: int) -> Hole:
    """The hole and what lies up to `by` pixels beside it."""
    for axis, side in enumerate(found.shape):
        before = np.insert(np.cumsum(found, axis, dtype=np.int32), 0, 0, axis)  # how many True there are before each
        at = np.arange(side)
        ends, starts = np.minimum(at + by + 1, side), np.maximum(at - by, 0)
        found = before.take(ends, axis) > before.take(starts, axis)
    return found


def save(mask: Image.Image, path: Path) -> None:
    """Writes a mask as PNG, to be used again. Raises OutputError."""
    save_atomic(encode(mask_of(hole(mask)), "png"), path)


def eight_bit(image: Image.Image) -> Image.Image:
    """`image` as RGBA where it has transparency, else as RGB, with 8 bits a channel, and nothing of its metadata.

    16-bit grey is divided by 257 and rounded; palettes are looked up, CMYK is converted as Pillow does.
    """
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    mode = "RGBA" if image.has_transparency_data else "RGB"
    found = image.convert(mode) if image.mode != mode else image.copy()
    found.info = {}
    return found


def upright(image: Image.Image) -> Image.Image:
    """As `eight_bit`, and turned as a camera's EXIF says."""
    return eight_bit(ImageOps.exif_transpose(image))


def told(found: Hole) -> dict[str, Any]:
    """What a record says of a hole: its share of the picture and the box around it (x, y, w, h)."""
    left, top, right, bottom = bounds(found)
    return {"area": round(float(found.mean()), 6), "box": [left, top, right - left, bottom - top]}


def bounds(found: Hole) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (exclusive) of the True pixels; there is at least one."""
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
