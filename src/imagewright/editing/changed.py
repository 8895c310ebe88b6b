"""Where an instruction changed a picture: the rest is taken from the original again, at its own resolution.

A model that follows instructions draws the whole picture anew, at its own size and through its own autoencoder. Where
what it drew is the original but for that, the original is better.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from imagewright.editing import masks
from imagewright.editing.masks import Hole
from imagewright.resampling import resize

DIFFERENT = 0.14  # mean difference (of 1), averaged around a pixel, that is more than a model's own error
AROUND = 1 / 32  # of the longer side: the radius over which differences are averaged
GROWN = 1 / 64  # of the longer side, so that the softer edge of what changed goes with it
MOSTLY = 0.9  # changed: all of it is new


def where(before: Image.Image, after: Image.Image, size: tuple[int, int]) -> Hole:
    """Which pixels (H, W) of a picture of `size` (W, H) changed from `before` to `after`, both of its aspect."""
    after = after if after.size == before.size else resize(after, before.size)
    one, other = (np.asarray(image.convert("RGBA").convert("RGBa"), np.float32) for image in (before, after))
    difference = Image.fromarray(np.abs(one - other).mean(axis=-1).astype(np.uint8))
    side = max(before.size)
    near = difference.filter(ImageFilter.BoxBlur(round(AROUND * side)))
    grown = masks.grown(np.asarray(near) > 255 * DIFFERENT, round(GROWN * side))
    hole: Hole = np.asarray(Image.fromarray(grown).convert("L").resize(size, Image.Resampling.BILINEAR)) > 127
    return np.ones_like(hole) if hole.mean() > MOSTLY else hole
