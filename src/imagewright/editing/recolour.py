"""A part of a picture in another colour, as a child would name it; everything else stays byte for byte.

In OKLab, as the training stickers are recoloured (data/recolour.py): light and shade stay, hue and chroma become the
colour's, and what has no colour of its own (eyes, outlines) stays.
"""

from __future__ import annotations

import re

import numpy as np
from PIL import Image

from imagewright.data.recolour import COLOURS, toned
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
    # By distinct colours, because a large picture has far fewer of these than pixels.
    packed = pixels[chosen][:, :3].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    distinct, which = np.unique(packed, return_inverse=True)
    weights = np.bincount(which, pixels[chosen][:, 3]).astype(np.float64)
    rgb = np.stack([distinct >> 16, distinct >> 8 & 255, distinct & 255], -1).astype(np.uint8)
    new = toned(rgb, weights, target)[which]
    out = pixels.copy()
    parts = share[chosen][:, None].astype(np.uint16)
    out[chosen, :3] = (new * parts + out[chosen][:, :3] * (255 - parts) + 127) // 255
    return Image.fromarray(out, "RGBA").convert(image.mode)
