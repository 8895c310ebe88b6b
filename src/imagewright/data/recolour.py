"""A picture in another colour, so that a child would call it by that colour's name.

Done in OKLab (Ottosson 2020), where lightness and hue do not disturb each other: the body's lightness is
moved to the named colour's and its contrast kept, its hue and chroma become the colour's. The body is what
has a hue; where that is the smaller part, the largest of the white, grey and black parts goes with it.
Eyes, teeth and outlines stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 38),
    "orange": (250, 135, 15),
    "yellow": (252, 216, 40),
    "green": (52, 165, 60),
    "blue": (38, 105, 228),
    "purple": (135, 60, 190),
    "pink": (250, 145, 190),
    "brown": (125, 75, 40),
    "black": (38, 38, 42),
    "white": (242, 242, 244),
    "gray": (140, 142, 146),
}
TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
CONTRAST = 0.75  # of the picture's own light and shade that is kept
NAMED_SHARE = 0.6  # of the visible picture that must look like the named colour


def to_oklab(rgb: Floats) -> Floats:
    """sRGB in [0, 1] (..., 3) -> L, a, b."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.cbrt(linear @ TO_LMS.T) @ TO_LAB.T)


def from_oklab(lab: Floats) -> Floats:
    """L, a, b (..., 3) -> sRGB clipped to [0, 1]."""
    linear = np.clip((lab @ np.linalg.inv(TO_LAB).T) ** 3 @ np.linalg.inv(TO_LMS).T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def _ramp(x: Floats, low: float, high: float) -> Floats:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def body(lab: Floats, alpha: Floats) -> Floats:
    """How much each pixel (n,) belongs to what takes the colour, in [0, 1]."""
    light, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    coloured = _ramp(chroma, 0.03, 0.07)
    if coloured @ alpha >= 0.45 * alpha.sum():
        return coloured
    white, black = _ramp(light, 0.86, 0.92), 1 - _ramp(light, 0.3, 0.38)
    greys = [(1 - coloured) * part for part in (white, black, (1 - white) * (1 - black))]
    return coloured + max(greys, key=lambda part: float(part @ alpha))


def recolour(pixels: NDArray[np.uint8], colour: str | tuple[int, int, int]) -> NDArray[np.uint8]:
    """(H, W, 4) straight RGBA -> the same picture in a colour of COLOURS, or in an sRGB one, 0-255."""
    seen = pixels[..., 3] > 0
    out = pixels.copy()
    target = COLOURS[colour] if isinstance(colour, str) else colour
    out[seen, :3] = toned(pixels[seen][:, :3], pixels[seen][:, 3] / 255.0, target)
    return out


def toned(rgb: NDArray[np.uint8], weights: Floats, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The colours (n, 3) of a picture, each of so much weight in it, as they are once it has the sRGB `colour`."""
    lab = to_oklab(rgb / 255.0)  # (n, 3)
    share = body(lab, weights)
    target = to_oklab(np.array(colour) / 255.0)
    middle = _weighted_median(lab[:, 0], share * weights)
    light = np.clip(target[0] + CONTRAST * (lab[:, 0] - middle), target[0] - 0.22, min(target[0] + 0.18, 0.99))
    fade = 1 - 0.6 * _ramp(np.abs(light - target[0]), 0.1, 0.3)  # shade and shine carry less colour
    new = np.stack([light, target[1] * fade, target[2] * fade], 1)
    mixed = lab + share[:, None] * (new - lab)
    return np.rint(from_oklab(mixed) * 255).astype(np.uint8)


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)]) if total[-1] > 0 else 0.5


def named_share(pixels: NDArray[np.uint8], colour: str) -> float:
    """The part of the visible picture whose nearest colour of COLOURS is `colour`, in [0, 1]."""
    return named_shares(pixels).get(colour, 0.0)


def named_shares(pixels: NDArray[np.uint8]) -> dict[str, float]:
    """The part of the visible picture (H, W, 4) that is nearest to each of COLOURS, where any is."""
    seen = pixels[..., 3] > 0
    alpha = pixels[seen][:, 3] / 255.0
    names, which = np.unique(nearest_colour(pixels[seen] / 255.0), return_inverse=True)
    parts = np.bincount(which, alpha, minlength=len(names))
    return {str(name): float(part / alpha.sum()) for name, part in zip(names, parts, strict=True)}


def nearest_colour(rgb: NDArray[Any]) -> NDArray[np.str_]:
    """(..., 3 or more) straight colours in [0, 1] -> (...) the name of the nearest of COLOURS."""
    lab = to_oklab(np.asarray(rgb[..., :3], np.float64))
    anchors = to_oklab(np.array(list(COLOURS.values())) / 255.0)  # (11, 3)
    # hue tells colours apart better than lightness does, so lightness counts less
    distance = ((lab[..., None, :] - anchors) ** 2 * np.array([0.35, 1.0, 1.0])).sum(-1)
    names: NDArray[np.str_] = np.array(list(COLOURS))[distance.argmin(-1)]
    return names


def mean_oklab(pixels: NDArray[np.uint8]) -> Floats:
    """The mean colour (3,) of the visible picture, in OKLab."""
    seen = pixels[..., 3] > 0
    alpha = pixels[seen][:, 3] / 255.0
    return np.asarray(to_oklab(pixels[seen][:, :3] / 255.0).T @ alpha / alpha.sum())
