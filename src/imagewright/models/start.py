"""From a picture to where a diffusion sampler starts and what its network sees. Arithmetic and numpy, no torch.

Image to image starts from the noised picture (SDEdit, arXiv:2108.01073, section 3). In a fill the network sees the
cells that stay, as it was trained to; its estimate keeps them at every step, as blended latent diffusion does
(arXiv:2206.02779, section 4.1). Deviation: a cell that stays in part is set together in pixels and encoded again,
because one cell is many pixels wide: that halves the seam. A blend starts between the pictures, from the noise between
those that lead to them (inverted DDIM, arXiv:2010.02502, section 4.3). Pictures that tile are rolled by another offset
at each step, so that the network never knows where the border is, and their edges are decoded from inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from imagewright.models.samplers import Array, Denoise, Process
from imagewright.source import Floats, Source

Maybe = Any  # an Array or None
Coder = Callable[[Array], Array]
RENEWED = 0.3  # of the noise of a blend, so that another seed is another picture


@dataclass(frozen=True)
class Start:
    """What the network sees: `known` (1, C, h, w) and `mask` (1, 1, h, w), 1 in cells that stay, -1 where the known
    picture is the one to change, else 0. `origin` (1, C, h, w), if any, is where sampling starts at t = `strength`,
    with the seed's noise, or in a blend with `noise` (1, C, h, w) and some of the seed's.
    Of a fill: `pixels` (1, 4, H, W), `hole` (1, 1, H, W), and the cells that stay as a whole (`stays`) and in part
    (`shared`), (1, 1, h, w)."""

    known: Array
    mask: Array
    origin: Maybe = None
    strength: float = 1.0
    noise: Maybe = None
    pixels: Maybe = None
    hole: Maybe = None
    stays: Maybe = None
    shared: Maybe = None

    def map(self, convert: Callable[[Array], Array]) -> Start:
        """The same with arrays of another kind."""
        found = {name: value for name, value in vars(self).items() if hasattr(value, "shape")}
        return replace(self, **{name: convert(value) for name, value in found.items()})


def start_of(source: Source | None, encode: Coder, invert: Coder, shape: tuple[int, ...]) -> Start:
    """How to sample latents of `shape` (C, h, w) from `source`. `encode`: pixels to latents, `invert`: latents to
    noise, one picture at a time, in numpy."""
    nothing, empty = np.zeros((1, *shape), np.float32), np.zeros((1, 1, *shape[1:]), np.float32)
    if source is None:
        return Start(nothing, empty)
    if len(source.pixels) > 1:
        each = [encode(one[None]) for one in source.pixels]
        between = np.mean(each, axis=0)
        return Start(nothing, empty, between, source.strength, middle([invert(latents) for latents in each]))
    latents, hole = encode(source.pixels), source.hole
    if hole is None:
        known, mask = (latents, empty - 1) if source.instruction else (nothing, empty)
        return Start(known, mask, latents, source.strength)
    stays, touched = untouched(hole, shape[-1]), 1 - untouched(1 - hole, shape[-1])
    filled = encode(np.where(hole > 0, diffused(source.pixels, hole), source.pixels))
    known, mask = (latents, empty - 1) if source.instruction else (filled, stays)
    return Start(known, mask, latents, source.strength, None, source.pixels, hole, stays, touched - stays)


def begin(start: Start, noise: Array, process: Process, steps: int) -> tuple[Array, list[float]]:
    """x at the first of the times, and the times: fewer steps where sampling starts later."""
    if start.noise is not None:
        noise = math.sqrt(1 - RENEWED**2) * start.noise + RENEWED * noise
    if start.origin is None or start.strength == 1:
        return process.start(noise), process.times(steps)
    if start.strength == 0:
        return start.origin, [0.0]
    times = [start.strength * t for t in process.times(math.ceil(start.strength * steps))]
    alpha, sigma = process.levels(times[0])
    return alpha * start.origin + sigma * noise, times


def middle(noises: Sequence[Floats]) -> Floats:
    """Between standard normal arrays, as long as they are: their mean would be shorter, and hold less noise."""
    mean = np.mean(noises, axis=0)
    length = np.mean([np.linalg.norm(noise) for noise in noises])
    found: Floats = (mean * (length / np.linalg.norm(mean))).astype(np.float32)
    return found


def departed(codes: Sequence[Floats], drawn: Floats, strength: float) -> Floats:
    """A Gaussian code (1, N) that is the pictures' (their middle) where `strength` is 0 and `drawn` where it is 1; on
    the way, on an arc, so that it is as long as codes are."""
    code = middle(codes) if len(codes) > 1 else codes[0]
    angle = strength * math.pi / 2
    found: Floats = (math.cos(angle) * code + math.sin(angle) * drawn).astype(np.float32)
    return drawn if strength == 1 else found


def anchored(denoise: Denoise, start: Start, encode: Coder, decode: Coder) -> Denoise:
    """`denoise` whose estimate shows the pixels outside the start's hole as they are."""
    if start.hole is None:
        return denoise
    kept = start.stays * (start.known if (start.mask > 0).any() else start.origin)

    def denoised(x: Array, t: float) -> Array:
        estimate = kept + (1 - start.stays) * denoise(x, t)
        if not (start.shared > 0).any():
            return estimate
        pixels = start.hole * decode(estimate).clip(-1, 1) + (1 - start.hole) * start.pixels
        return start.shared * encode(pixels) + (1 - start.shared) * estimate

    return denoised


def untouched(hole: Floats, side: int) -> Floats:
    """(1, 1, H, W), 1 where a picture may change -> (1, 1, side, side), 1 where a cell stays as a whole."""
    length = hole.shape[-1]
    spans = [slice(i * length // side, -(-(i + 1) * length // side)) for i in range(side)]
    touched = [[hole[0, 0, rows, columns].max() for columns in spans] for rows in spans]
    return 1 - np.array(touched, np.float32)[None, None]


def diffused(pixels: Floats, hole: Floats, rounds: int = 64) -> Floats:
    """`pixels` (1, C, H, W) with the hole (1, 1, H, W) filled from around it, as heat spreads, so that what was there
    cannot be read from its surroundings after encoding."""
    inside = hole > 0
    kept = ~inside[0, 0]
    mean = pixels[:, :, kept].mean(axis=-1)[:, :, None, None] if kept.any() else np.float32(-1)
    x = np.where(inside, mean, pixels)
    for _ in range(rounds):
        wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        around = wide[:, :, :-2, 1:-1] + wide[:, :, 2:, 1:-1] + wide[:, :, 1:-1, :-2] + wide[:, :, 1:-1, 2:]
        x = np.where(inside, around / 4, pixels)
    return x.astype(np.float32)


def roller(seed: int, side: int) -> Callable[[float], tuple[int, int]]:
    """The offset (rows, columns) of the latents at each t, drawn from the seed."""

    def offset(t: float) -> tuple[int, int]:
        y, x = np.random.Generator(np.random.Philox([seed, round(t * 2**32)])).integers(0, side, 2)
        return int(y), int(x)

    return offset


def rolled(x: Array, rows: int, columns: int) -> Array:
    """`x` (B, C, h, w) moved down and right, what leaves at one edge coming in at the other."""
    height, width = x.shape[2:]
    x = x[:, :, [(i - rows) % height for i in range(height)]]
    return x[:, :, :, [(i - columns) % width for i in range(width)]]


def decoded_as_tile(decode: Coder, latents: Array, kind: Callable[[Floats], Array]) -> Array:
    """Pixels (1, 4, H, W) that go on at the opposite edges: four decoded pictures, rolled by halves, each seen where it
    is far from its own border. `kind`: numpy to the kind of array."""
    side = latents.shape[-1]
    total: Any = 0
    for rows in (0, side // 2):
        for columns in (0, side // 2):
            pixels = decode(rolled(latents, rows, columns))
            wave = np.sin(np.pi * (np.arange(pixels.shape[-1]) + 0.5) / pixels.shape[-1]) ** 2
            window = kind((wave[:, None] * wave).astype(np.float32)[None, None])  # these add up to 1
            cell = pixels.shape[-1] // side
            total = total + rolled(window * pixels, -rows * cell, -columns * cell)
    return total
