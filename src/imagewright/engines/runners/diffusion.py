"""Diffusion: a sampler of models/samplers.py around the exported denoiser, from noise or from a picture.

When someone looks on, each step's estimate is decoded and the denoiser's second output, its attention to the words,
is fetched too.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagewright.models.samplers import PROCESSES, SAMPLERS, ended, guided, noise_source, observed, word_maps
from imagewright.models.start import anchored, begin, decoded_as_tile, rolled, roller, start_of
from imagewright.source import Source
from imagewright.watch import Watch

PARTS = ("denoiser", "decoder")
Floats = NDArray[np.float32]


def draw(
    model: Any,
    words: Mapping[str, Any],
    options: Mapping[str, Any],
    seed: int,
    watch: Watch,
    source: Source | None = None,
) -> Floats:
    """The pixels (1, 4, H, W) of one picture."""
    latents = sample(model, words, options, seed, watch, source)
    if options.get("tile"):
        tile: Floats = decoded_as_tile(partial(decode, model), latents, np.asarray)
        return tile
    return decode(model, latents)


def decode(model: Any, latents: Floats) -> Floats:
    """Latents (1, C, h, w) -> pixels (1, 4, H, W)."""
    pixels: Floats = model.run("decoder", x=latents.astype(np.float32))[0]
    return pixels


def encode(model: Any, pixels: Floats) -> Floats:
    """Pixels (1, 4, H, W) -> latents (1, C, h, w)."""
    latents: Floats = model.run("encoder", pixels=pixels.astype(np.float32))[0]
    return latents


def sample(
    model: Any,
    words: Mapping[str, Any],
    options: Mapping[str, Any],
    seed: int,
    watch: Watch,
    source: Source | None = None,
) -> Floats:
    """The latents (1, C, h, w) of one picture."""
    shape, process = tuple(model.runtime["latent"]), PROCESSES[model.runtime["process"]]()
    noise = noise_source(seed, (1, *shape))
    start = start_of(source, partial(encode, model), shape)
    begun, times = begin(start, noise(), process, options["steps"])
    times = ended(times, options.get("stop", 1.0))
    steps = len(times) - 1
    offset = roller(seed, shape[-1]) if options.get("tile") else None
    pieces = watch.words if watch.tracing and offset is None else ()
    maps: dict[float, Floats] = {}
    outputs = ["denoised", "attention"] if pieces else ["denoised"]

    def rows(x: Floats, t: float, count: int) -> Floats:
        y, z = offset(t) if offset else (0, 0)
        seen = {
            name: np.repeat(rolled(part, y, z), count, axis=0)
            for name, part in (("x", x), ("known", start.known), ("mask", start.mask))
        }
        said = {name: value[:count] for name, value in words.items()}
        estimate, *attention = model.run("denoiser", outputs, t=np.full(count, t, np.float32), **seen, **said)
        if attention:
            maps[t] = attention[0][0]  # (N, L) of the wanted words
        found: Floats = rolled(estimate, -y, -z)
        return found

    def both(x: Floats, t: float) -> tuple[Floats, Floats]:
        estimate = rows(x, t, 2)
        return estimate[:1], estimate[1:]

    def seen(step: int, t: float, estimate: Floats) -> None:
        watch.told(step, steps)
        if watch.tracing:
            watch.shown("step", step, decode(model, estimate)[0], t=t, sigma=process.levels(t)[1])

    denoise = guided(lambda x, t: rows(x, t, 1), both, options["guidance"], tuple(options["interval"]))
    denoise = anchored(denoise, start, partial(encode, model), partial(decode, model))
    x: Floats = SAMPLERS[options["sampler"]](observed(denoise, times, seen), begun, times, process, noise)
    watch.told(steps, steps)
    if maps:
        watch.shown("attention", steps, word_maps(maps, len(pieces)), words=list(pieces))
    return x.astype(np.float32)
