"""Processes and samplers, written once for torch tensors and numpy arrays: only arithmetic, no framework.

A process gives x_t = alpha_t * x_0 + sigma_t * noise for t from 0 (data) to 1 (noise). A sampler is a pure function
`sample_<name>(denoise, x, times, process, noise)`: `denoise(x, t)` estimates x_0 from x_t, `x` is the start at
times[0], `times` falls to 0, `noise()` gives fresh standard normal numbers shaped like x (only stochastic samplers
call it). Each returns x_0.

Sources: Euler and Heun on the probability-flow ODE (arXiv:2206.00364, algorithm 1), Heun with churn (algorithm 2
there), DDIM (arXiv:2010.02502, equation 12), DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2), ancestral sampling with
either of DDPM's two fixed variances (arXiv:2006.11239, section 3.2), multistep consistency sampling (arXiv:2303.01469,
algorithm 1), called lcm as elsewhere.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

Array = Any  # torch.Tensor or numpy.ndarray
Denoise = Callable[[Array, float], Array]
Noise = Callable[[], Array]
LEAST_NOISE = 0.1  # of inversion, where the data's deviation is 1


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
    """Variance preserving, alpha^2 + sigma^2 = 1: alpha^2 is alpha-bar of arXiv:2102.09672, equation 17.

    alpha ends at `least`, because noise tells nothing of x_0 where alpha is 0; the paper clips beta for that.
    """

    offset, least = 0.008, 1e-3

    def _angle(self, t: Any) -> Any:
        return (t + self.offset) / (1 + self.offset) * (math.pi / 2)

    def levels(self, t: Any) -> tuple[Any, Any]:
        first = math.cos(self._angle(0.0))
        if isinstance(t, float):
            alpha = max(self.least, math.cos(self._angle(t)) / first)
            return alpha, math.sqrt(1 - alpha**2)
        alpha = (self._angle(t).cos() / first).clip(self.least, 1.0)
        return alpha, (1 - alpha**2) ** 0.5

    def slopes(self, t: float) -> tuple[float, float]:
        alpha, sigma = self.levels(t)
        d_alpha = -math.pi / 2 / (1 + self.offset) * math.sin(self._angle(t)) / math.cos(self._angle(0.0))
        return d_alpha, -alpha * d_alpha / sigma


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

    def time(self, sigma: Any) -> Any:
        """The t of a noise level, also of one beyond sigma_min and sigma_max."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (sigma ** (1 / self.rho) - low) / (high - low)

    def times(self, steps: int) -> list[float]:
        """Karras' sigmas for steps, then sigma = 0."""
        return [1 - i / max(1, steps - 1) for i in range(steps - 1)] + [1e-9 if steps > 1 else 1.0, 0.0]


PROCESSES: dict[str, Callable[[], Process]] = {"flow": Flow, "cosine": Cosine, "edm": EDM}


def predicted_noise(x: Array, denoised: Array, t: float, process: Process) -> Array:
    """The noise that x_t holds if x_0 is `denoised`."""
    alpha, sigma = process.levels(t)
    return (x - alpha * denoised) / sigma


def posterior(x: Array, denoised: Array, t: float, s: float, process: Process) -> tuple[Array, float, float]:
    """The mean of q(x_s | x_t, x_0), s < t, and two variances (arXiv:2006.11239, equations 6 and 7).

    The variances are the paper's tilde beta_t, exact where x_0 is one point, and beta_t, exact where x_0 ~ N(0, 1)
    (section 3.2). Both are written for any alpha and sigma; where alpha^2 + sigma^2 = 1 they are the paper's.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.levels(t), process.levels(s)
    kept = alpha_t / alpha_s  # sqrt(1 - beta_t): what a step of the forward chain keeps
    added = sigma_t**2 - kept**2 * sigma_s**2  # beta_t: the variance that it adds
    mean = (alpha_s * added * denoised + kept * sigma_s**2 * x) / sigma_t**2  # equation 7
    spread_t, spread_s = alpha_t**2 + sigma_t**2, alpha_s**2 + sigma_s**2
    return mean, added * sigma_s**2 / sigma_t**2, spread_s * (1 - kept**2 * spread_s / spread_t)


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


def sample_heun_sde(
    denoise: Denoise, x: Array, times: Sequence[float], process: Process, noise: Noise, churn: float = 0.5
) -> Array:
    """Heun's steps, each begun `churn` of its length further up, on fresh noise (arXiv:2206.00364, algorithm 2)."""
    for t, s in pairwise(times):
        higher = min(1.0, t + churn * (t - s))
        (alpha_t, sigma_t), (alpha, sigma) = process.levels(t), process.levels(higher)
        if higher > t:
            kept = alpha / alpha_t
            x = kept * x + math.sqrt(max(0.0, sigma**2 - (kept * sigma_t) ** 2)) * noise()
        x = sample_heun(denoise, x, (higher, s), process, noise)
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
    """DDPM's sampler with the smaller fixed variance, tilde beta_t; the same as DDIM with eta 1."""
    return _ancestral(denoise, x, times, process, noise, wide=False)


def sample_ancestral_wide(denoise: Denoise, x: Array, times: Sequence[float], process: Process, noise: Noise) -> Array:
    """DDPM's sampler with the larger fixed variance, beta_t."""
    return _ancestral(denoise, x, times, process, noise, wide=True)


def _ancestral(denoise: Denoise, x: Array, times: Sequence[float], process: Process, noise: Noise, wide: bool) -> Array:
    """arXiv:2006.11239, algorithm 2: the last step adds nothing."""
    for t, s in pairwise(times):
        x, small, large = posterior(x, denoise(x, t), t, s, process)
        if s > 0:
            x = x + math.sqrt(max(0.0, large if wide else small)) * noise()
    return x


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


def sample_lcm(denoise: Denoise, x: Array, times: Sequence[float], process: Process, noise: Noise) -> Array:
    """Noise each estimate of x_0 anew: multistep consistency sampling. Only a consistency model's estimates are samples
    of the data; another's are means of what x_t may come from, and too smooth."""
    for t, s in pairwise(times):
        x = denoise(x, t)
        if s > 0:
            alpha, sigma = process.levels(s)
            x = alpha * x + sigma * noise()
    return x


def _lambda(t: float, process: Process) -> float:
    alpha, sigma = process.levels(t)
    if alpha <= 0:
        return -math.inf
    return math.inf if sigma <= 0 else math.log(alpha / sigma)


NOISY = ("ancestral", "ancestral_wide", "heun_sde")  # add fresh noise at each step
STEADY = "dpmpp_2m"
SAMPLERS: dict[str, Callable[..., Array]] = {
    "euler": sample_euler,
    "heun": sample_heun,
    "ddim": sample_ddim,
    "dpmpp_2m": sample_dpmpp_2m,
    "ancestral": sample_ancestral,
    "ancestral_wide": sample_ancestral_wide,
    "heun_sde": sample_heun_sde,
    "lcm": sample_lcm,
}


def stopped(sampler: Callable[..., Array], stop: float) -> Callable[..., Array]:
    """`sampler` that makes only the first `stop` (a share, up to 1) of the steps, at least one: the last of them is the
    estimate of x_0 from there."""

    def sample(denoise: Denoise, x: Array, times: Sequence[float], process: Process, noise: Noise) -> Array:
        steps = len(times) - 1
        kept = max(1, round(stop * steps))
        if kept >= steps:
            return sampler(denoise, x, times, process, noise)
        return denoise(sampler(denoise, x, times[:kept], process, noise), times[kept - 1])

    return sample


def observed(denoise: Denoise, times: Sequence[float], seen: Callable[[int, float, Array], None]) -> Denoise:
    """`denoise` that calls seen(step, t, estimate of x_0) with the first estimate in each of the steps of `times`."""
    latest = -1

    def watched(x: Array, t: float) -> Array:
        nonlocal latest
        estimate = denoise(x, t)
        step = sum(time > t for time in times)
        if step > latest:
            latest = step
            seen(step, t, estimate)
        return estimate

    return watched


def invert_ddim(denoise: Denoise, x: Array, times: Sequence[float], process: Process, rounds: int) -> Array:
    """x_1 from x_0, over `times` from 0 to 1: `sample_ddim` backwards (arXiv:2010.02502, section 4.3).

    A step back is implicit, x_s = alpha_s D(x_t, t) + (sigma_s / sigma_t) (x_t - alpha_t D(x_t, t)), and is solved for
    x_t by `rounds` fixed-point iterations from the explicit guess. The first goes from 0 at once to a noise level of
    LEAST_NOISE, where it asks for D(x_t, t) = x_0: what the model cannot draw would else become strong noise, and the
    code no longer look like any other.
    """
    levels = {t: process.levels(t) for t in times}
    first = next(i for i, t in enumerate(times) if i and levels[t][1] >= LEAST_NOISE * levels[t][0])
    data, alpha = x, levels[times[first]][0]
    x = alpha * data
    for _ in range(1 + rounds):
        x = x + alpha * (data - denoise(x, times[first]))
    for s, t in pairwise(times[first:]):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = levels[s], levels[t]
        denoised = denoise(x, s)
        for _ in range(rounds):
            denoised = denoise(alpha_t * denoised + sigma_t / sigma_s * (x - alpha_s * denoised), t)
        x = alpha_t * denoised + sigma_t / sigma_s * (x - alpha_s * denoised)
    return x


def word_maps(attention: Mapping[float, Array], words: int) -> Array:
    """Attention (N, L) by t -> one map for each of the first `words` tokens, (words, h, w): the mean over the last
    third of the steps, where the picture's parts have found their places."""
    late = sorted(attention)[: max(1, len(attention) // 3)]
    mean = sum(attention[t] for t in late) / len(late)
    side = math.isqrt(mean.shape[0])
    return mean[:, :words].T.reshape(words, side, side)


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
