"""Samplers against a case with a known answer: data from a normal distribution, whose best denoiser is linear."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from imagewright.models.samplers import PROCESSES, SAMPLERS, Process, guided, noise_source

MEAN, DEVIATION = 0.7, 0.5
ODE = ("euler", "heun", "ddim", "dpmpp_2m")


def exact(process: Process):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, DEVIATION^2)."""

    def denoise(x, t):
        alpha, sigma = process.levels(t)
        gain = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    return denoise


def run(sampler: str, process_name: str, steps: int, z: np.ndarray) -> np.ndarray:
    process = PROCESSES[process_name]()
    noise = noise_source(1, z.shape)
    return SAMPLERS[sampler](exact(process), process.start(z), process.times(steps), process, noise)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", ODE)
def test_many_steps_reach_the_exact_flow(sampler: str, process: str) -> None:
    z = np.linspace(-2, 2, 9)
    made = run(sampler, process, 400, z)
    np.testing.assert_allclose(made, MEAN + DEVIATION * z, atol=0.02)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m"])
def test_second_order_beats_first(sampler: str, process: str) -> None:
    z = np.linspace(-2, 2, 9)
    truth = MEAN + DEVIATION * z
    first, second = (np.abs(run(name, process, 20, z) - truth).max() for name in ("euler", sampler))
    assert second < first / 2


@pytest.mark.parametrize("process", PROCESSES)
def test_ancestral_keeps_the_distribution(process: str) -> None:
    z = np.random.default_rng(0).standard_normal(20_000)
    made = run("ancestral", process, 200, z)
    assert abs(made.mean() - MEAN) < 0.02
    assert abs(made.std() - DEVIATION) < 0.03


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_numpy_and_torch_agree(sampler: str, process: str) -> None:
    z = noise_source(3, (4, 5))().astype(np.float64)
    process_ = PROCESSES[process]()
    source = noise_source(1, z.shape)
    made = SAMPLERS[sampler](
        exact(process_),
        process_.start(torch.from_numpy(z)),
        process_.times(12),
        process_,
        lambda: torch.from_numpy(source().astype(np.float64)),
    )
    np.testing.assert_allclose(made.numpy(), run(sampler, process, 12, z), atol=1e-5)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_few_steps_stay_finite(sampler: str, steps: int, process: str) -> None:
    assert np.isfinite(run(sampler, process, steps, np.linspace(-3, 3, 7))).all()


@pytest.mark.parametrize("process", PROCESSES)
def test_slopes_are_the_derivatives_of_the_levels(process: str) -> None:
    found = PROCESSES[process]()
    for t in (0.1, 0.5, 0.9):
        h = 1e-6
        after, before = found.levels(t + h), found.levels(t - h)
        for slope, a, b in zip(found.slopes(t), after, before, strict=True):
            assert math.isclose(slope, (a - b) / (2 * h), rel_tol=1e-4, abs_tol=1e-6)


def test_times_fall_from_one_to_zero() -> None:
    for process in PROCESSES.values():
        times = process().times(7)
        assert times[0] == 1 and times[-1] == 0 and len(times) == 8
        assert all(a > b for a, b in pairwise(times))


def test_noise_is_a_pure_function_of_the_seed() -> None:
    one, two = noise_source(7, (2, 3)), noise_source(7, (2, 3))
    first = one()
    np.testing.assert_array_equal(first, two())
    assert not np.array_equal(first, one())
    assert not np.array_equal(first, noise_source(8, (2, 3))())
    assert first.dtype == np.float32


def test_guidance_acts_inside_its_interval_only() -> None:
    calls = []

    def both(x, t):
        calls.append(t)
        return x + 1, x

    denoise = guided(lambda x, t: x + 1, both, 3.0, (0.2, 0.8))
    assert denoise(0.0, 0.5) == 3.0
    assert denoise(0.0, 0.9) == 1.0 and denoise(0.0, 0.1) == 1.0
    assert calls == [0.5]
    assert guided(lambda x, t: x + 1, both, 1.0, (0, 1))(0.0, 0.5) == 1.0 and calls == [0.5]
