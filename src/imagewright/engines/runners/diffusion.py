"""Diffusion: a sampler of models/samplers.py around the exported denoiser, from noise or from a picture.

When a trace is kept, each step's estimate is decoded and the denoiser's second output, its attention to the words, is
fetched too; for previews, only the estimates of theirs are decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagewright.models.samplers import (
    PROCESSES,
    SAMPLERS,
    guided,
    invert_ddim,
    noise_source,
    observed,
    stopped,
    word_maps,
)
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
        tile: Floats = decoded_as_tile(partial(decode, model, large=options.get("large", False)), latents, np.asarray)
        return tile
    return decode(model, latents, large=options.get("large", False))


def decode(model: Any, latents: Floats, *, large: bool = False) -> Floats:
    """Latents (1, C, h, w) -> pixels (1, 4, H, W), or twice as many a side where the decoder can (`large`)."""
    pixels: Floats = model.run("decoder", ["large" if large else "pixels"], x=latents.astype(np.float32))[0]
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
    start = start_of(source, partial(encode, model), partial(invert, model, words, options["steps"]), shape)
    begun, times = begin(start, noise(), process, options["steps"])
    steps = len(times) - 1
    kept = max(1, round(options.get("stop", 1.0) * steps))
    offset = roller(seed, shape[-1]) if options.get("tile") else None
    maps: dict[float, Floats] | None = {} if watch.tracing and watch.words and offset is None else None

    def rows(x: Floats, t: float, count: int) -> Floats:
        moved = offset(t) if offset else (0, 0)
        x, known, mask = (rolled(part, *moved) for part in (x, start.known, start.mask))
        found: Floats = rolled(estimate(model, words, slice(count), t, x, known, mask, maps), -moved[0], -moved[1])
        return found

    def both(x: Floats, t: float) -> tuple[Floats, Floats]:
        pair = rows(x, t, 2)
        return pair[:1], pair[1:]

    def seen(step: int, t: float, denoised: Floats) -> None:
        watch.told(step, steps)
        watch.seen("step", step, kept, lambda: decode(model, denoised)[0], t=t, sigma=process.levels(t)[1])

    scale, interval = options.get("guidance", 1.0), tuple(options.get("interval", (0.0, 1.0)))  # or it is baked in
    denoise = guided(lambda x, t: rows(x, t, 1), both, scale, interval)
    denoise = anchored(denoise, start, partial(encode, model), partial(decode, model))
    sampler = stopped(SAMPLERS[options["sampler"]], options.get("stop", 1.0))
    x: Floats = sampler(observed(denoise, times, seen), begun, times, process, noise)
    watch.told(steps, steps)
    if maps:
        watch.shown("attention", steps, word_maps(maps, len(watch.words)), words=list(watch.words))
    return x.astype(np.float32)


def estimate(
    model: Any,
    words: Mapping[str, Any],
    rows: slice,
    t: float,
    x: Floats,
    known: Floats,
    mask: Floats,
    maps: dict[float, Floats] | None = None,
) -> Floats:
    """x_0 (B, C, h, w) from one x_t (1, C, h, w), one row for each of the words'. `maps` gets the attention (N, L)."""
    said = {name: value[rows] for name, value in words.items()}
    count = len(said["style"])
    inputs = {"x": x.astype(np.float32), "known": known, "mask": mask}
    inputs = {name: np.repeat(value, count, axis=0) for name, value in inputs.items()}
    outputs = ["denoised"] if maps is None else ["denoised", "attention"]
    found: Floats
    found, *attention = model.run("denoiser", outputs, t=np.full(count, t, np.float32), **inputs, **said)
    if maps is not None:
        maps[t] = attention[0][0]  # of the wanted words
    return found


def invert(model: Any, words: Mapping[str, Any], steps: int, latents: Floats) -> Floats:
    """The noise (1, C, h, w) that leads to latents (1, C, h, w) without the wanted words."""
    process = PROCESSES[model.runtime["process"]]()
    nothing = np.zeros_like(latents), np.zeros_like(latents[:, :1])

    def denoise(x: Floats, t: float) -> Floats:
        return estimate(model, words, slice(1, 2), t, x, *nothing)

    noise: Floats = invert_ddim(denoise, latents, process.times(steps)[::-1], process, rounds=1)
    return noise / np.float32(process.levels(1.0)[1])
