"""Pictures of known truth, drawn by Pillow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

TIMES = 4  # drawn so much larger, then reduced: soft edges whose alpha is known
Floats = NDArray[np.float64]


def ring(side: int = 96, colour: str = "#c02020") -> Image.Image:
    """A ring with a hole, on nothing."""
    large = Image.new("L", (side * TIMES, side * TIMES))
    draw = ImageDraw.Draw(large)
    draw.ellipse([side * TIMES * share for share in (0.2, 0.25, 0.8, 0.85)], fill=255)
    draw.ellipse([side * TIMES * share for share in (0.4, 0.45, 0.6, 0.65)], fill=0)
    picture = Image.new("RGBA", (side, side), colour)
    picture.putalpha(large.resize((side, side), Image.Resampling.BOX))
    return picture


def over(picture: Image.Image, ground: str | Image.Image) -> Image.Image:
    """RGB, laid on a colour or a picture."""
    below = Image.new("RGBA", picture.size, ground) if isinstance(ground, str) else ground.convert("RGBA")
    return Image.alpha_composite(below, picture).convert("RGB")


def alpha(picture: Image.Image) -> Floats:
    """(H, W) in [0, 1]."""
    return np.asarray(picture.convert("RGBA").getchannel("A")) / 255.0


def sloped(side: int, noise: float = 0.0) -> Image.Image:
    """A sky: from light to dark blue, a little noisy."""
    rows = np.linspace(1.0, 0.6, side)[:, None, None] * np.array([150.0, 190.0, 240.0])
    values = np.broadcast_to(rows, (side, side, 3)) + np.random.default_rng(0).normal(0, noise, (side, side, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
