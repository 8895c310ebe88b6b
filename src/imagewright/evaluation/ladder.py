"""Do the measures measure? Real pictures are spoilt step by step, and the measure that should notice must follow.

- blur and noise: the kernel distance rises;
- dropped modes (fewer and fewer concepts, shown again and again): coverage falls;
- copying (more and more pictures replaced by training pictures): the copy rate rises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from imagewright.evaluation.copies import CopyFinder
from imagewright.evaluation.features import Reals
from imagewright.evaluation.metrics import density_coverage, kernel_distance
from imagewright.refine.judge import Bytes, Judges

Spoil = Callable[[Bytes, float, Bytes], Bytes]  # (pictures, how much from 0 to 1, training pictures) -> pictures


@dataclass(frozen=True)
class Rung:
    """A way to spoil pictures, how much at each step, the measure that should notice, and whether that rises."""

    spoil: Spoil
    levels: tuple[float, ...]
    measure: str
    rises: bool


def blurred(rgba: Bytes, level: float, training: Bytes) -> Bytes:
    """A Gaussian blur whose deviation is `level` tenths of the side."""
    radius = level * rgba.shape[1] / 10
    images = [Image.fromarray(picture, "RGBA").filter(ImageFilter.GaussianBlur(radius)) for picture in rgba]
    return np.stack([np.asarray(image) for image in images])


def noisy(rgba: Bytes, level: float, training: Bytes) -> Bytes:
    """Normal noise of deviation 128 * `level` on the colours, as far as alpha lets it show."""
    noise = np.random.default_rng(0).normal(0, 128 * level, rgba[..., :3].shape)
    colour = np.clip(rgba[..., :3] + noise, 0, rgba[..., 3:]).round().astype(np.uint8)
    return np.concatenate([colour, rgba[..., 3:]], axis=3)


def dropped(rgba: Bytes, level: float, training: Bytes) -> Bytes:
    """The first 1 - `level` of the pictures, again and again."""
    kept = max(1, round(len(rgba) * (1 - level)))
    return rgba[np.arange(len(rgba)) % kept]


def copied(rgba: Bytes, level: float, training: Bytes) -> Bytes:
    """The first `level` of the pictures replaced by training pictures."""
    count = round(len(rgba) * level)
    return np.concatenate([training[:count], rgba[count:]])


LADDER = {
    "blur": Rung(blurred, (0.0, 0.8, 1.3, 2.0), "KD", rises=True),
    "noise": Rung(noisy, (0.0, 0.2, 0.5, 1.0), "KD", rises=True),
    "dropped modes": Rung(dropped, (0.0, 0.5, 0.75, 0.9), "coverage", rises=False),
    "copying": Rung(copied, (0.0, 0.3, 0.6, 1.0), "copies", rises=True),
}


def climb(rung: Rung, judges: Judges, pictures: Bytes, reference: Reals, finder: CopyFinder) -> list[float]:
    """The measure at each level, for real `pictures` (N, S, S, 4) that are not among the `reference`."""
    values = []
    for level in rung.levels:
        spoilt = rung.spoil(pictures, level, finder.training.rgba())
        features = judges.embed(spoilt)
        if rung.measure == "KD":
            values.append(kernel_distance(features, reference.features).value)
        elif rung.measure == "coverage":
            values.append(density_coverage(reference.features, features)[1].value)
        else:
            values.append(float(finder.copied(finder.nearest(spoilt, features)).mean()))
    return values


def monotone(rung: Rung, values: list[float]) -> bool:
    """Whether every step moves the measure the way it should."""
    steps = np.diff(values)
    return bool((steps > 0).all() if rung.rises else (steps < 0).all())
