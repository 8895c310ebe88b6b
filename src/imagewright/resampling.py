"""Resampling of pictures: premultiplied alpha, so that hidden colours do not bleed into the edges."""

from __future__ import annotations

import numpy as np
from PIL import Image

SHARPEN = 1.0  # share of the difference from the blurred picture that is added
FAINT = 1 / 64  # alpha below it is nothing


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` (RGB or RGBA) at `size` (width, height), aspect not kept.

    Larger in both: by doubling, each time sharpened, which keeps the outlines of drawn pictures crisp. Else: LANCZOS.
    """
    if size == image.size:
        return image
    larger = size[0] >= image.width and size[1] >= image.height
    return _enlarge(image, size) if larger else _reduce(image, size)


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
