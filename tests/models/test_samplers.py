"""Samplers against a case with a known answer: data from a normal distribution, whose best denoiser is linear."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from imagewright.models.samplers import (
    EDM,
    PROCESSES,
    SAMPLERS,
    Cosine,
    Process,
    guided,
    noise_source,
    observed,
    posterior,
    word_maps,
)

MEAN, DEVIATION = 0.7, 0.5
ODE = ("euler", "heun", "ddim", "dpmpp_2m")
SDE = ("ancestral", "ancestral_wide", "heun_sde")


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
@pytest.mark.parametrize("sampler", [*ODE, *SDE])
def test_every_sampler_keeps_mean_and_deviation(sampler: str, process: str) -> None:
    z = np.random.default_rng(0).standard_normal(5_000)
    made = run(sampler, process, 150, z)
    assert abs(made.mean() - MEAN) < 0.02
    assert abs(made.std() - DEVIATION) < 0.03


def test_stochastic_samplers_forget_where_they_began() -> None:
    z = np.random.default_rng(0).standard_normal(1_000)
    for sampler in (*ODE, *SDE):
        correlation = np.corrcoef(z, run(sampler, "flow", 50, z))[0, 1]
        assert correlation < 0.9 if sampler in SDE else correlation > 0.999, sampler


def test_cosine_is_equation_17() -> None:
    """arXiv:2102.09672, equation 17: alpha-bar = f(t) / f(0), f(t) = cos^2((t / T + s) / (1 + s) pi / 2), s = 0.008."""
    f = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    for t in (0.0, 0.1, 0.5, 0.9, 0.99):
        alpha, sigma = Cosine().levels(t)
        assert math.isclose(alpha**2, f(t) / f(0), rel_tol=1e-12)
        assert math.isclose(alpha**2 + sigma**2, 1, rel_tol=1e-12)
        torch.testing.assert_close(
            torch.stack(Cosine().levels(torch.tensor(t))), torch.tensor([alpha, sigma]), atol=1e-3, rtol=1e-5
        )


@pytest.mark.parametrize("sampler", ["ancestral", "ancestral_wide"])
def test_ancestral_sampling_is_the_discrete_ddpm(sampler: str) -> None:
    """The same numbers as algorithm 2 of arXiv:2006.11239, written out with betas and a network that predicts eps."""
    N, process = 25, Cosine()
    alpha_bar = np.array([process.levels(i / N)[0] ** 2 for i in range(N + 1)])
    beta = 1 - alpha_bar[1:] / alpha_bar[:-1]

    def eps(x, t):
        return (x - process.levels(t)[0] * exact(process)(x, t)) / process.levels(t)[1]

    z = np.linspace(-2, 2, 9)
    noise, x = noise_source(5, z.shape), z * process.levels(1.0)[1]
    for i in range(N, 0, -1):
        b, now, before = beta[i - 1], alpha_bar[i], alpha_bar[i - 1]
        mean = (x - b / np.sqrt(1 - now) * eps(x, i / N)) / np.sqrt(1 - b)  # equation 11
        variance = b if sampler == "ancestral_wide" else (1 - before) / (1 - now) * b  # section 3.2
        x = mean + np.sqrt(variance) * noise() if i > 1 else mean
    made = SAMPLERS[sampler](
        exact(process), process.start(z), [i / N for i in range(N, -1, -1)], process, noise_source(5, z.shape)
    )
    np.testing.assert_allclose(made, x, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("process_name", PROCESSES)
def test_posterior_agrees_with_bayes(process_name: str) -> None:
    """q(x_s | x_t, x_0) by conditioning the joint normal of x_s and x_t, and the variance for x_0 ~ N(0, 1)."""
    process, s, t, x0, x_t = PROCESSES[process_name](), 0.3, 0.7, 0.4, 1.1
    (alpha_s, sigma_s), (alpha_t, sigma_t) = process.levels(s), process.levels(t)
    covariance = alpha_t / alpha_s * sigma_s**2
    mean, small, large = posterior(x_t, x0, t, s, process)
    assert math.isclose(mean, alpha_s * x0 + covariance / sigma_t**2 * (x_t - alpha_t * x0), rel_tol=1e-9)
    assert math.isclose(small, sigma_s**2 - covariance**2 / sigma_t**2, rel_tol=1e-9)
    joint = alpha_t / alpha_s * (alpha_s**2 + sigma_s**2)
    assert math.isclose(large, alpha_s**2 + sigma_s**2 - joint**2 / (alpha_t**2 + sigma_t**2), rel_tol=1e-9)


def test_edm_time_is_the_inverse_of_its_sigma() -> None:
    process = EDM()
    for t in (0.1, 0.5, 1.0, 1.2):
        assert math.isclose(process.time(process.levels(t)[1]), t, rel_tol=1e-9)
    assert math.isclose(process.levels(process.time(0.5))[1], 0.5, rel_tol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_step_is_seen_once(sampler: str) -> None:
    process, z, steps = PROCESSES["flow"](), np.zeros(3), []
    times = process.times(6)
    denoise = observed(exact(process), times, lambda step, t, estimate: steps.append((step, t)))
    SAMPLERS[sampler](denoise, process.start(z), times, process, noise_source(0, z.shape))
    assert [step for step, _ in steps] == list(range(6))
    assert all(times[step] <= t <= times[max(0, step - 1)] for step, t in steps)


def test_word_maps_are_those_of_the_last_third() -> None:
    attention = {t: np.full((4, 3), t) + np.arange(4)[:, None] for t in (0.9, 0.8, 0.6, 0.5, 0.3, 0.1)}
    maps = word_maps(attention, 2)
    np.testing.assert_allclose(maps, np.stack([np.arange(4).reshape(2, 2) + 0.2] * 2))


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
