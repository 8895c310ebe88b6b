"""Pictures as the networks take and give them, and those that a model starts from. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """`pixels` (1, 4, H, W), premultiplied RGBA in [-1, 1], at the model's own size, or (K, 4, H, W): K pictures to
    blend; `hole` (1, 1, H, W), 1 where the picture may change and 0 where it stays, or None: everywhere. `strength`:
    how much may change, 0 (nothing) to 1 (only words count). `instruction`: the words say what to change, not what to
    show.
    """

    pixels: Floats
    hole: Floats | None = None
    strength: float = 1.0
    instruction: bool = False

    @classmethod
    def of(cls, image: Image.Image, mask: Image.Image | None, strength: float, instruction: bool) -> Source:
        """From a picture at the model's size, and its mask (OpenAI's: transparent where the picture may change)."""
        if mask is None:
            return cls(_pixels(image), None, strength, instruction)
        opaque = np.asarray(mask.convert("RGBA").getchannel("A"), np.float32)[None, None] / 255
        return cls(_pixels(image), (opaque < 0.5).astype(np.float32), strength, instruction)

    @classmethod
    def blending(cls, images: Sequence[Image.Image], strength: float) -> Source:
        """From several pictures at the model's size."""
        return cls(np.concatenate([_pixels(image) for image in images]), strength=strength)


def _pixels(image: Image.Image) -> Floats:
    """(1, 4, H, W), premultiplied RGBA in [-1, 1]."""
    rgba = np.asarray(image.convert("RGBA"), np.float32) / 255  # (H, W, 4)
    rgba[..., :3] *= rgba[..., 3:]
    pixels: Floats = np.ascontiguousarray(rgba.transpose(2, 0, 1)[None] * 2 - 1, np.float32)
    return pixels


def to_picture(pixels: Floats) -> Image.Image:
    """(1, 4, H, W), premultiplied RGBA in [-1, 1] -> a straight-alpha RGBA picture."""
    rgba = (np.clip(pixels[0], -1, 1).transpose(1, 2, 0) + 1) / 2  # (H, W, 4)
    alpha = np.where(rgba[..., 3:] < 1 / 64, 0.0, rgba[..., 3:])  # faint haze is decoder noise, not glass
    alpha = np.where(alpha > 1 - 1 / 64, 1.0, alpha)
    colour = np.where(alpha > 0, rgba[..., :3] / np.maximum(alpha, 1 / 64), 0.0)
    straight = np.concatenate([np.clip(colour, 0, 1), alpha], axis=-1)
    return Image.fromarray((straight * 255).round().astype(np.uint8), "RGBA")
