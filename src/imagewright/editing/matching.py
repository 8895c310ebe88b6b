"""Colours at a seam: what a model draws is brought in line with the picture that it was drawn for.

A model draws the surroundings of a hole again as well, never quite as they are. By how much they differ beside the hole
is known, and taken, spread smoothly, off what it drew inside; less and less with the distance. Like the membrane of
Poisson image editing (Perez, Gangnet and Blake, 2003), but of the model's own error instead of the picture's colours,
so that a new thing at the seam keeps its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from imagewright.editing import masks
from imagewright.editing.fields import Floats, depth, surroundings
from imagewright.editing.masks import Hole

RING = 2  # of the model's pixels beside the hole, from which its error is known
FADE = 16  # of the model's pixels inside the hole, over which the correction ends

Pixels = NDArray[np.uint8]


def matched(new: Pixels, old: Pixels, hole: Hole, pixel: float) -> Pixels:
    """`new` (H, W, 4) in line with `old` (H, W, 3 or 4) around the hole (H, W). Bytes, alpha not premultiplied.

    `pixel`: how many of these pixels are one of the model's.
    """
    ring, fade = max(1, round(RING * pixel)), max(1, round(FADE * pixel))
    left, top, right, bottom = masks.bounds(hole)
    part = slice(max(0, top - ring), bottom + ring), slice(max(0, left - ring), right + ring)
    inside = hole[part]
    beside = ~inside & (depth(~inside, ring + 1) <= ring)
    if not beside.any():
        return new
    drawn = premultiplied(new[part])
    error = surroundings(premultiplied(old[part]) - drawn, ~beside)
    share = np.clip(1 - depth(inside, fade) / fade, 0, 1)
    corrected = np.clip(drawn + error * share[..., None], 0, 255)
    alpha = corrected[..., 3:]
    colour = np.where(alpha > 0.5, corrected[..., :3] * 255 / np.maximum(alpha, 0.5), 0).clip(0, 255)
    straight = np.concatenate([colour, alpha], axis=-1).round().astype(np.uint8)
    result = new.copy()
    result[part] = np.where(inside[..., None], straight, new[part])
    return result


def premultiplied(pixels: Pixels) -> Floats:
    """(..., 3 or 4) bytes -> (..., 4), premultiplied, 0 to 255."""
    if pixels.shape[-1] == 3:
        alpha = np.full((*pixels.shape[:-1], 1), 255, np.float32)
    else:
        alpha = pixels[..., 3:].astype(np.float32)
    return np.concatenate([pixels[..., :3] * (alpha / 255), alpha], axis=-1)
