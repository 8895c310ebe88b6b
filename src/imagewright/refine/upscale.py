"""To the asked size and background: resample, pad, composite.

Each step returns (picture, what it did), or (picture, None) where there was nothing to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from imagewright.request import Adjustment, ImageRequest

Step = dict[str, Any]
_WHITE = "#ffffff"
SHARPEN = 1.0  # share of the difference from the blurred picture that is added
FAINT = 1 / 64  # alpha below it is nothing


def as_rgb(image: Image.Image) -> Image.Image:
    """A copy of `image` as RGBA where it has transparency, else as RGB."""
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def resample(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Step | None]:
    """`image` scaled, aspect kept, to the largest that fits into `size` (width, height).

    Smaller: LANCZOS. Larger: by doubling, each time sharpened, which keeps the outlines of drawn pictures crisp. Both
    work on premultiplied alpha, so that hidden colours do not bleed into the edges.
    """
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if inner == image.size:
        return image, None
    larger = inner[0] > image.width
    scaled = _enlarge(image, inner) if larger else _reduce(image, inner)
    filter_ = "bicubic, sharpened" if larger else "lanczos"
    return scaled, {"step": "resample", "filter": filter_, "from": list(image.size), "to": list(inner)}


def _reduce(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    premultiplied = image.convert("RGBa") if image.mode == "RGBA" else image
    return premultiplied.resize(size, Image.Resampling.LANCZOS).convert(image.mode)


def _enlarge(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """In floating point, because a sharpened edge overshoots: colour and alpha by the same share, which their ratio
    forgets, but only if neither is clipped before."""
    pixels = np.asarray(image, np.float32) / 255  # (H, W, 3 or 4)
    if image.mode == "RGBA":
        pixels = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], axis=-1)
    planes = [_sharply(Image.fromarray(plane), size) for plane in np.moveaxis(pixels, -1, 0)]
    pixels = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    if image.mode == "RGBA":
        alpha = pixels[..., 3:]
        colour = np.where(alpha > FAINT, pixels[..., :3] / np.maximum(alpha, FAINT), 0)
        pixels = np.concatenate([colour, np.where(alpha > FAINT, alpha, 0)], axis=-1)
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8), image.mode)


def _sharply(plane: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A plane of mode F, doubled and sharpened until it has `size`."""
    while plane.size != size:
        step = (min(2 * plane.width, size[0]), min(2 * plane.height, size[1]))
        up = plane.resize(step, Image.Resampling.BICUBIC)
        blurred = up.resize(plane.size, Image.Resampling.BOX).resize(step, Image.Resampling.BICUBIC)
        plane = Image.fromarray(np.asarray(up) + SHARPEN * (np.asarray(up) - np.asarray(blurred)))
    return plane


def pad(image: Image.Image, size: tuple[int, int], background: str) -> tuple[Image.Image, Step | None]:
    """`image` in the middle of a canvas of `size`: clear where it has alpha, else the background's colour."""
    if image.size == size:
        return image, None
    fill = (0, 0, 0, 0) if image.mode == "RGBA" else _colour(background)
    canvas = Image.new(image.mode, size, fill)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas, {"step": "pad", "from": list(image.size), "to": list(size)}


def lay_on(image: Image.Image, background: str, output_format: str) -> tuple[Image.Image, Step | None]:
    """`image` on its background: white, black or #rrggbb; `transparent` keeps alpha, `opaque` is white.

    `auto` keeps alpha where the format can hold it (png, webp) and is white for jpeg.
    """
    keeps_alpha = background == "transparent" or (background == "auto" and output_format != "jpeg")
    if image.mode != "RGBA" or keeps_alpha:
        return image, None
    colour = _colour(background)
    canvas = Image.new("RGBA", image.size, colour)
    return Image.alpha_composite(canvas, image).convert("RGB"), {"step": "background", "colour": colour}


def unmet(images: Sequence[Image.Image], request: ImageRequest) -> list[Adjustment]:
    """An adjustment where a background was asked for and the model's pictures have no alpha to lay on it."""
    if request.background in ("auto", "opaque") or all(image.has_transparency_data for image in images):
        return []
    return [Adjustment("background", request.background, "opaque", "this model paints its own background")]


def _colour(background: str) -> str:
    if background.startswith("#"):
        return background.lower()
    return "#000000" if background == "black" else _WHITE
