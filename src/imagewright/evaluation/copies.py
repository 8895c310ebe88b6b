"""Is a picture a copy of a training picture?

A picture counts as a copy if its nearest training picture is nearer in features *and* in pixels than the 1st
percentile of what real held-out pictures have. Held-out pictures are no copies, so at most one honest picture in a
hundred is called one by either distance alone, and fewer by both. Features alone would call every good red apple a
copy, because it is their job to bring red apples together; pixels alone would call two plain discs copies.
The nearest picture is the one nearest in pixels among the NEAREST nearest in features, for held-out pictures too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagewright.evaluation.features import Reals
from imagewright.refine.judge import Bytes, Floats, over_grey

NEAREST = 10
PERCENTILE = 1.0
SIDE = 32  # pixels are compared at half size, so that a shift by one of 64 pixels is forgiven
CHUNK = 256


@dataclass(frozen=True)
class Nearest:
    """The nearest training picture of each of N pictures: its `index` there, the distance in `features` (1 - cosine)
    and in `pixels` (root mean square, 0 to 1)."""

    index: NDArray[np.int64]
    features: Floats
    pixels: Floats


class CopyFinder:
    """Compares pictures to training pictures; the bars come from real held-out pictures."""

    def __init__(self, training: Reals, held_rgba: Bytes, held_features: Floats) -> None:
        self.training = training
        self.held_out = len(held_features)
        found = self.nearest(held_rgba, held_features)
        self.bars = (
            (float(np.percentile(found.features, PERCENTILE)), float(np.percentile(found.pixels, PERCENTILE)))
            if self.held_out
            else (0.0, 0.0)
        )

    def nearest(self, rgba: Bytes, features: Floats) -> Nearest:
        """The nearest training picture of each picture (N, S, S, 4) with features (N, D)."""
        index, far, apart = [], [], []
        for start in range(0, len(features), CHUNK):
            stop = min(start + CHUNK, len(features))
            distance = 1 - features[start:stop] @ self.training.features.T  # (n, training)
            k = min(NEAREST, distance.shape[1])
            candidates = np.argpartition(distance, k - 1, axis=1)[:, :k]
            small = halved(rgba[start:stop])
            others = halved(self.training.rgba(candidates.reshape(-1))).reshape(stop - start, k, -1)
            pixels = np.sqrt(np.square(small.reshape(stop - start, 1, -1) - others).mean(2))  # (n, k)
            best, rows = pixels.argmin(1), np.arange(stop - start)
            index.append(candidates[rows, best])
            far.append(distance[rows, candidates[rows, best]])
            apart.append(pixels[rows, best])
        if not index:
            return Nearest(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))
        return Nearest(np.concatenate(index), np.concatenate(far), np.concatenate(apart))

    def copied(self, found: Nearest) -> NDArray[np.bool_]:
        """Which of them are copies (N,)."""
        return np.asarray((found.features < self.bars[0]) & (found.pixels < self.bars[1]))


def halved(rgba: Bytes) -> Floats:
    """(N, S, S, 4) premultiplied RGBA over grey at SIDE pixels -> (N, 3, SIDE, SIDE) in [0, 1]."""
    factor = max(1, rgba.shape[1] // SIDE)
    small = np.empty((len(rgba), 3, rgba.shape[1] // factor, rgba.shape[1] // factor), np.float32)
    for start in range(0, len(rgba), CHUNK):  # floats of many pictures at their full size would be a gigabyte
        rgb = (over_grey(np.asarray(rgba[start : start + CHUNK])) + 1) / 2
        N, C, S, _ = rgb.shape
        small[start : start + N] = rgb.reshape(N, C, S // factor, factor, S // factor, factor).mean((3, 5))
    return small
