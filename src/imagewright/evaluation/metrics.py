"""Measures of generated pictures against real ones, in numpy; each function names its source.

Shapes: N pictures, D features. `Estimate` carries N and an interval, because a figure without them says little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Z95 = 1.959964
BLOCK = 50  # pictures of a block of the kernel distance, where there are enough
FEWEST = 5  # blocks, so that there is an interval
CHUNK = 512  # rows of a distance matrix at a time


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval and the number of pictures behind it."""

    value: float
    low: float
    high: float
    n: int


def wilson(right: int, n: int) -> Estimate:
    """A share with Wilson's interval (Wilson 1927, J. Am. Stat. Assoc. 22): sound also for 0 of n, and for small n."""
    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0, 0)
    share = right / n
    middle = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * (share * (1 - share) / n + Z95**2 / (4 * n**2)) ** 0.5
    return Estimate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)), n)


def bootstrap(values: Floats, statistic: Callable[[Floats], float] = np.mean, draws: int = 1000) -> Estimate:
    """`statistic` of values (N, ...) with the percentile interval over resamples (Efron 1979)."""
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(0)
    drawn = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(statistic(values)), float(low), float(high), len(values))


def kernel_distance(a: Floats, b: Floats) -> Estimate:
    """KD: unbiased squared MMD with the kernel (x.y / D + 1)^3 (KID, arXiv:1801.01401), over random disjoint blocks
    whose mean is the figure; the interval is a bootstrap over the blocks.

    a (N, D) and b (M, D) are features of length 1: they are brought to length sqrt(D), so that x.y / D is the cosine.
    `n` is the pictures used of each side. May be below 0 where the two are alike.
    """
    n = min(len(a), len(b))
    blocks = max(1, min(n // 2, max(FEWEST, min(20, n // BLOCK))))
    rng = np.random.default_rng(0)
    split_a, split_b = (np.array_split(rng.permutation(len(side))[:n], blocks) for side in (a, b))
    values = np.array([_mmd(a[i], b[j]) for i, j in zip(split_a, split_b, strict=True)])
    found = bootstrap(values)
    return Estimate(found.value, found.low, found.high, n)


def _mmd(a: Floats, b: Floats) -> float:
    n, m = len(a), len(b)
    if min(n, m) < 2:
        return float("nan")
    within_a, within_b, across = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    same_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    same_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(same_a + same_b - 2 * across.mean())


def _kernel(a: Floats, b: Floats) -> Floats:
    cubes: Floats = (a.astype(np.float64) @ b.astype(np.float64).T + 1) ** 3
    return cubes


def frechet_distance(a: Floats, b: Floats) -> float:
    """FD: between Gaussians fitted to features a (N, D) and b (M, D) (arXiv:1706.08500, with other features). Biased
    upwards for few pictures: compare at equal N only."""
    if min(len(a), len(b)) < 2:
        return float("nan")
    a, b = a.astype(np.float64), b.astype(np.float64)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    means = np.square(a.mean(0) - b.mean(0)).sum()
    return float(means + np.trace(cov_a) + np.trace(cov_b) - 2 * mixed)


def density_coverage(real: Floats, fake: Floats, k: int = 5) -> tuple[Estimate, Estimate]:
    """Density (how many real neighbourhoods hold a fake, / k) and coverage (share of real neighbourhoods that hold
    one); arXiv:2002.09797. A neighbourhood reaches to the k-th nearest other real picture. Compare at equal N only."""
    if len(real) <= k or not len(fake):
        nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
        return nothing, nothing
    radius = np.concatenate([np.partition(rows, k, axis=1)[:, k] for rows in _distances(real, real)])
    inside = np.concatenate([rows < radius for rows in _distances(fake, real)])  # (fake, real)
    covered = inside.any(0)
    return bootstrap(inside.sum(1) / k), wilson(int(covered.sum()), len(real))


def _distances(a: Floats, b: Floats) -> list[Floats]:
    """Squared distances of rows of a to all of b, a chunk of rows at a time."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.square(b).sum(1)
    chunks = [a[i : i + CHUNK] for i in range(0, len(a), CHUNK)]
    return [np.square(rows).sum(1)[:, None] + lengths - 2 * rows @ b.T for rows in chunks]


def retrieval(scores: Floats, k: int = 1) -> Estimate:
    """R@k: the share of rows of scores (N, M) whose column 0, the right one, is among the k best. Ties count half, so
    that a judge that gives all the same score is right by chance only."""
    better = (scores[:, 1:] > scores[:, :1]).sum(1) + 0.5 * (scores[:, 1:] == scores[:, :1]).sum(1)
    return wilson(int((better < k).sum()), len(scores))


def psnr(a: Floats, b: Floats) -> Floats:
    """Peak signal-to-noise ratio in dB (N,) of pictures (N, ...) in [0, 1]; at most 100."""
    error = np.square(a.astype(np.float64) - b).reshape(len(a), -1).mean(1)
    decibels: Floats = -10 * np.log10(np.maximum(error, 1e-10))
    return decibels


def ssim(a: Floats, b: Floats) -> Floats:
    """Structural similarity (N,) of pictures (N, H, W, C) in [0, 1]: Wang et al. 2004 (IEEE TIP 13), Gaussian window
    of 11 pixels and deviation 1.5, mean over pixels and channels."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = _blurred(a), _blurred(b)
    var_a = _blurred(a * a) - mean_a**2
    var_b = _blurred(b * b) - mean_b**2
    both = _blurred(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    similar: Floats = top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    each: Floats = similar.mean((1, 2, 3))
    return each


def _blurred(x: Floats) -> Floats:
    """Gaussian blur of (N, H, W, C) along H and W, only where the window fits."""
    place = np.arange(-5, 6)
    weights = np.exp(-(place**2) / (2 * 1.5**2))
    weights /= weights.sum()
    for axis in (1, 2):
        width = x.shape[axis] - len(place) + 1
        shifted = (np.take(x, range(i, i + width), axis=axis) for i in range(len(place)))
        x = np.add.reduce([weight * part for weight, part in zip(weights, shifted, strict=True)])
    return x
