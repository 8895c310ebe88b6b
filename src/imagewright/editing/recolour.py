"""A part of a picture in another colour, as a child would name it; everything else stays byte for byte.

In OKLab, as the training stickers are recoloured (data/recolour.py): light and shade stay, hue and chroma become the
colour's, and what has no colour of its own (eyes, outlines) stays.
"""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from imagewright.data.recolour import COLOURS, recolour
from imagewright.editing import masks
from imagewright.errors import RequestError

_HEX = re.compile(r"#[0-9a-fA-F]{6}")


def parse_colour(text: str) -> tuple[int, int, int]:
    """sRGB, 0-255, of a name of COLOURS or of #rrggbb. Raises RequestError."""
    name = text.strip().lower().replace("grey", "gray")
    if name in COLOURS:
        return COLOURS[name]
    if not _HEX.fullmatch(name):
        raise RequestError(f"Unknown colour {text!r}.", f"Use {', '.join(COLOURS)} or #rrggbb.")
    red, green, blue = bytes.fromhex(name[1:])
    return red, green, blue


def recolor(image: Image.Image, colour: str, area: Image.Image | None = None) -> Image.Image:
    """The picture with `area` (mode L: 255 fully, 0 not at all; None: everywhere) in a colour: a name or #rrggbb.

    Where the area is 0 the pixels are those of `image`. Raises RequestError where nothing visible is chosen.
    """
    target = parse_colour(colour)
    image = masks.eight_bit(image)
    pixels = np.asarray(image.convert("RGBA"))
    share = np.full(pixels.shape[:2], 255, np.uint8) if area is None else np.asarray(area.convert("L"))
    if share.shape != pixels.shape[:2]:
        raise RequestError(f"The area is {area and area.size} and the image {image.size}.", "Make them the same size.")
    chosen = (share > 0) & (pixels[..., 3] > 0)
    if not chosen.any():
        raise RequestError("Nothing visible is chosen to take a colour.", "Choose a part that shows something.")
    rows, columns = np.flatnonzero(chosen.any(1)), np.flatnonzero(chosen.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    part = pixels[box].copy()
    part[..., 3][~chosen[box]] = 0  # so that only what is chosen decides what the body is
    new = recolour(part, target)[..., :3]
    weight = (share[box] / 255.0)[..., None] * chosen[box][..., None]
    out = pixels.copy()
    out[box][..., :3] = np.rint(pixels[box][..., :3] + weight * (new.astype(float) - pixels[box][..., :3]))
    return Image.fromarray(out, "RGBA").convert(image.mode)
