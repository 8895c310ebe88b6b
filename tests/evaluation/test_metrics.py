"""The measures on numbers whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from imagewright.evaluation import metrics


def unit(rng: np.random.Generator, n: int, shift: float = 0.0, d: int = 16) -> np.ndarray:
    x = rng.normal(size=(n, d)) + shift
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_wilson_is_that_of_the_textbook_and_never_claims_certainty() -> None:
    half = metrics.wilson(50, 100)
    assert (half.low, half.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert metrics.wilson(0, 50).high == pytest.approx(0.0713, abs=1e-3)
    assert metrics.wilson(0, 0).n == 0


def test_the_kernel_distance_is_unbiased_and_grows_with_the_difference() -> None:
    rng = np.random.default_rng(0)
    alike = [metrics.kernel_distance(unit(rng, 100), unit(rng, 100)).value for _ in range(30)]
    assert abs(np.mean(alike)) < 3 * np.std(alike) / 30**0.5  # around 0, not above it
    values = [metrics.kernel_distance(unit(rng, 300), unit(rng, 300, shift)).value for shift in (0.2, 0.5, 1.0)]
    assert 0 < values[0] < values[1] < values[2]
    found = metrics.kernel_distance(unit(rng, 300), unit(rng, 300, 0.5))
    assert found.low < found.value < found.high and found.n == 300


def test_the_frechet_distance_of_shifted_gaussians_is_the_square_of_the_shift() -> None:
    x = np.random.default_rng(0).normal(size=(500, 4))
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_distance(x, x + np.array([3, 0, 0, 0])) == pytest.approx(9, rel=1e-6)
    assert metrics.frechet_distance(x, 2 * x) == pytest.approx(np.trace(np.cov(x.T)), rel=0.05)


def test_density_and_coverage_tell_a_lost_mode_from_an_outlier() -> None:
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(100, 4)), rng.normal(size=(100, 4)) + 50])
    density, coverage = metrics.density_coverage(real, real)
    assert coverage.value == 1 and density.value >= 1
    lost = metrics.density_coverage(real, np.concatenate([real[:100], real[:100]]))[1]
    assert lost.value == 0.5
    assert metrics.density_coverage(real, real + 1000)[0].value == 0


def test_retrieval_counts_the_first_column_and_ties_bring_nothing() -> None:
    scores = np.array([[3.0, 1, 2], [1, 3, 2], [2, 3, 1]])
    assert metrics.retrieval(scores).value == pytest.approx(1 / 3)
    assert metrics.retrieval(scores, 2).value == pytest.approx(2 / 3)
    assert metrics.retrieval(np.zeros((50, 100))).value == 0


def test_psnr_and_ssim() -> None:
    a = np.random.default_rng(0).random((2, 32, 32, 3))
    assert metrics.psnr(a, a + 0.1) == pytest.approx([20, 20])
    assert metrics.ssim(a, a) == pytest.approx([1, 1])
    assert (metrics.ssim(a, a.mean((1, 2), keepdims=True) + 0 * a) < 0.2).all()
    assert metrics.ssim(a, np.clip(a + 0.02, 0, 1)).min() > 0.95


def test_the_bootstrap_of_a_constant_is_that_constant() -> None:
    found = metrics.bootstrap(np.full(20, 3.0))
    assert (found.value, found.low, found.high, found.n) == (3, 3, 3, 20)
