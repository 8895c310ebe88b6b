"""Processes and samplers, written once for torch tensors and numpy arrays: only arithmetic, no framework.

A process gives x_t = alpha_t * x_0 + sigma_t * noise for t from 0 (data) to 1 (noise). A sampler is a pure function
`sample_<name>(denoise, x, times, process, noise)`: `denoise(x, t)` estimates x_0 from x_t, `x` is the start at
times[0], `times` falls to 0, `noise()` gives fresh standard normal numbers shaped like x (only stochastic samplers
call it). Each returns x_0.

Sources: Euler and Heun on the probability-flow ODE (arXiv:2206.00364, algorithm 1), DDIM (arXiv:2010.02502,
equation 12), DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2), ancestral sampling as DDIM with eta 1
(arXiv:2006.11239).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Array = Any  # torch.Tensor or numpy.ndarray
Denoise = Callable[[Array, float], Array]
Noise = Callable[[], Array]


class Process(ABC):
    """Signal and noise level over t in [0, 1], with their derivatives."""

    @abstractmethod
    def levels(self, t: Any) -> tuple[Any, Any]:
        """(alpha_t, sigma_t) for a float or an array of t."""

    @abstractmethod
    def slopes(self, t: float) -> tuple[float, float]:
        """(d alpha / dt, d sigma / dt)."""

    def times(self, steps: int) -> list[float]:
        """steps + 1 times from 1 down to 0, even unless the process says otherwise."""
        return [1 - i / steps for i in range(steps + 1)]

    def start(self, noise: Array) -> Array:
        """x_1 for standard normal noise."""
        return noise * self.levels(1.0)[1]


class Flow(Process):
    """Straight lines: alpha = 1 - t, sigma = t (rectified flow, arXiv:2209.03003; flow matching, arXiv:2210.02747)."""

    def levels(self, t: Any) -> tuple[Any, Any]:
        return 1 - t, t

    def slopes(self, t: float) -> tuple[float, float]:
        return -1.0, 1.0


class Cosine(Process):
    """Variance preserving: alpha = cos(pi t / 2), sigma = sin(pi t / 2) (arXiv:2102.09672, equation 17 with s = 0)."""

    def levels(self, t: Any) -> tuple[Any, Any]:
        angle = t * (math.pi / 2)
        if isinstance(angle, float):
            return max(0.0, math.cos(angle)), math.sin(angle)
        return angle.cos(), angle.sin()

    def slopes(self, t: float) -> tuple[float, float]:
        angle = t * math.pi / 2
        return -math.pi / 2 * math.sin(angle), math.pi / 2 * math.cos(angle)


class EDM(Process):
    """Variance exploding: alpha = 1, sigma from 0 over sigma_min to sigma_max (arXiv:2206.00364).

    t is Karras' ramp: sigma = (t * sigma_max^(1/rho) + (1 - t) * sigma_min^(1/rho))^rho (equation 5), and 0 at t = 0.
    """

    sigma_min, sigma_max, rho = 0.002, 80.0, 7.0

    def _root(self, t: Any) -> Any:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return low + t * (high - low)

    def levels(self, t: Any) -> tuple[Any, Any]:
        if isinstance(t, float):
            return 1.0, 0.0 if t == 0 else self._root(t) ** self.rho
        return t * 0 + 1, self._root(t) ** self.rho

    def slopes(self, t: float) -> tuple[float, float]:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return 0.0, self.rho * self._root(t) ** (self.rho - 1) * (high - low)

    def times(self, steps: int) -> list[float]:
        """Karras' sigmas for steps, then sigma = 0."""
        return [1 - i / max(1, steps - 1) for i in range(steps - 1)] + [1e-9 if steps > 1 else 1.0, 0.0]


PROCESSES: dict[str, Callable[[], Process]] = {"flow": Flow, "cosine": Cosine, "edm": EDM}


def predicted_noise(x: Array, denoised: Array, t: float, process: Process) -> Array:
    """The noise that x_t holds if x_0 is `denoised`."""
    alpha, sigma = process.levels(t)
    return (x - alpha * denoised) / sigma


def sample_euler(denoise: Denoise, x: Array, times: Sequence[float], process: Process, noise: Noise) -> Array:
    """First order: one network call a step."""
    for t, s in pairwise(times):
        x = x + _slope(x, denoise(x, t), t, s, process)
    return x


def sample_heun(denoise: Denoise, x: Array, times: Sequence[float], process: Process, noise: Noise) -> Array:
    """Second order: two network calls a step, one in the last."""
    for t, s in pairwise(times):
        step = _slope(x, denoise(x, t), t, s, process)
        if s > 0:
            ahead = x + step
            back = _slope(ahead, denoise(ahead, s), s, t, process)
            step = (step - back) / 2
        x = x + step
    return x


def _slope(x: Array, denoised: Array, t: float, s: float, process: Process) -> Array:
    """(dx/dt) * (s - t) on the probability-flow ODE. In the EDM process time is sigma itself, as in its paper."""
    eps = predicted_noise(x, denoised, t, process)
    if isinstance(process, EDM):
        return eps * (process.levels(s)[1] - process.levels(t)[1])
    d_alpha, d_sigma = process.slopes(t)
    return (d_alpha * denoised + d_sigma * eps) * (s - t)


def sample_ddim(
    denoise: Denoise, x: Array, times: Sequence[float], process: Process, noise: Noise, eta: float = 0.0
) -> Array:
    """Keep the predicted noise and lower its level; eta > 0 renews a part of it."""
    for t, s in pairwise(times):
        denoised = denoise(x, t)
        eps = predicted_noise(x, denoised, t, process)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.levels(t), process.levels(s)
        ratio = alpha_t * sigma_s / (alpha_s * sigma_t)  # of the noise-to-signal ratios, <= 1
        fresh = eta * sigma_s * math.sqrt(max(0.0, 1 - ratio**2))
        x = alpha_s * denoised + math.sqrt(max(0.0, sigma_s**2 - fresh**2)) * eps
        if fresh > 0:
            x = x + fresh * noise()
    return x


def sample_ancestral(denoise: Denoise, x: Array, times: Sequence[float], process: Process, noise: Noise) -> Array:
    """DDPM's own sampler: DDIM with eta 1."""
    return sample_ddim(denoise, x, times, process, noise, eta=1.0)


def sample_dpmpp_2m(denoise: Denoise, x: Array, times: Sequence[float], process: Process, noise: Noise) -> Array:
    """Second order from one network call a step, in the half log signal-to-noise ratio lambda."""
    previous, h_previous = None, 0.0
    for t, s in pairwise(times):
        denoised = denoise(x, t)
        alpha_s, sigma_s = process.levels(s)
        sigma_t = process.levels(t)[1]
        h = _lambda(s, process) - _lambda(t, process)  # infinite in the first and last step of most processes
        guess = denoised
        if previous is not None and math.isfinite(h) and math.isfinite(h_previous):
            guess = denoised + (denoised - previous) * (h / (2 * h_previous))
        x = sigma_s / sigma_t * x - alpha_s * math.expm1(-h) * guess
        previous, h_previous = denoised, h
    return x


def _lambda(t: float, process: Process) -> float:
    alpha, sigma = process.levels(t)
    if alpha <= 0:
        return -math.inf
    return math.inf if sigma <= 0 else math.log(alpha / sigma)


SAMPLERS: dict[str, Callable[..., Array]] = {
    "euler": sample_euler,
    "heun": sample_heun,
    "ddim": sample_ddim,
    "dpmpp_2m": sample_dpmpp_2m,
    "ancestral": sample_ancestral,
}


def guided(
    conditional: Denoise,
    both: Callable[[Array, float], tuple[Array, Array]],
    scale: float,
    interval: tuple[float, float],
) -> Denoise:
    """Classifier-free guidance (arXiv:2207.12598) inside an interval of t (arXiv:2404.07724).

    `both(x, t)` gives the conditional and the unconditional estimate. Outside the interval, and at scale 1, only the
    conditional one is computed.
    """

    def denoise(x: Array, t: float) -> Array:
        if scale == 1 or not interval[0] <= t <= interval[1]:
            return conditional(x, t)
        cond, uncond = both(x, t)
        return uncond + scale * (cond - uncond)

    return denoise


def noise_source(seed: int, shape: Sequence[int]) -> Callable[[], np.ndarray]:
    """A stream of standard normal float32 arrays of `shape`: numpy's Philox counter keyed by the seed, so that one
    seed is one picture on every machine and at any batch size."""
    generator = np.random.Generator(np.random.Philox(seed))
    return lambda: generator.standard_normal(tuple(shape), dtype=np.float32)
