"""Diffusion: a sampler of models/samplers.py around the exported denoiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagewright.models.samplers import PROCESSES, SAMPLERS, guided, noise_source
from imagewright.watch import Watch

PARTS = ("denoiser", "decoder")
Floats = NDArray[np.float32]


def draw(model: Any, words: Mapping[str, NDArray[Any]], options: Mapping[str, Any], seed: int, watch: Watch) -> Floats:
    """The pixels (1, 4, H, W) of one picture."""
    latents = sample(model, words, options, seed, watch)
    pixels: Floats = model.run("decoder", x=latents)[0]
    return pixels


def sample(
    model: Any, words: Mapping[str, NDArray[Any]], options: Mapping[str, Any], seed: int, watch: Watch
) -> Floats:
    """The latents (1, C, h, w) of one picture."""
    shape = tuple(model.runtime["latent"])
    process, steps = PROCESSES[model.runtime["process"]](), options["steps"]
    times = process.times(steps)
    done = {t: i for i, t in enumerate(times)}
    known = {"known": np.zeros((2, *shape), np.float32), "mask": np.zeros((2, 1, *shape[1:]), np.float32)}
    condition = {**words, **known}

    def rows(x: Floats, t: float, count: int) -> Floats:
        watch.told(done.get(t, 0), steps)
        inputs = {name: value[:count] for name, value in condition.items()}
        estimate: Floats = model.run(
            "denoiser", x=np.repeat(x, count, axis=0), t=np.full(count, t, np.float32), **inputs
        )[0]
        return estimate

    def both(x: Floats, t: float) -> tuple[Floats, Floats]:
        estimate = rows(x, t, 2)
        return estimate[:1], estimate[1:]

    denoise = guided(lambda x, t: rows(x, t, 1), both, options["guidance"], tuple(options["interval"]))
    noise = noise_source(seed, (1, *shape))
    x: Floats = SAMPLERS[options["sampler"]](denoise, process.start(noise()), times, process, noise)
    watch.told(steps, steps)
    return x.astype(np.float32)
