"""From a picture to where a diffusion sampler starts and what its network sees. Numpy and arithmetic, no torch.

Image to image starts from the noised picture (SDEdit, arXiv:2108.01073, section 3). A fill shows the network the
cells that stay, as it was trained to see them; its estimate's known pixels are put back at every step, as blended
latent diffusion does with latents (arXiv:2206.02779, section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from imagewright.models.samplers import Array, Denoise, Process
from imagewright.source import Floats, Source

Encode = Callable[[Floats], Floats]  # pixels (1, 4, H, W) -> latents (1, C, h, w)


@dataclass(frozen=True)
class Start:
    """`known` (1, C, h, w) and `mask` (1, 1, h, w) go into the network; the mask is 1 in cells that stay, -1 where
    the known picture is to be changed by an instruction, 0 where nothing is known. `origin` (1, C, h, w), if any, is
    the picture that sampling starts from at t = `strength`."""

    known: Floats
    mask: Floats
    origin: Floats | None = None
    strength: float = 1.0


def start_of(source: Source | None, encode: Encode, shape: tuple[int, ...]) -> Start:
    """How to sample latents of `shape` (C, h, w) from `source`."""
    mask = np.zeros((1, 1, *shape[1:]), np.float32)
    if source is None:
        return Start(np.zeros((1, *shape), np.float32), mask)
    latents, strength = encode(source.pixels), source.strength
    if source.instruction:
        return Start(latents, mask - 1, latents, strength)
    if source.hole is None:
        return Start(np.zeros_like(latents), mask, latents, strength)
    known = encode(np.where(source.hole > 0, diffused(source.pixels, source.hole), source.pixels))
    return Start(known, known_cells(source.hole, shape[-1]), latents, strength)


def begin(start: Start, origin: Array | None, noise: Array, process: Process, steps: int) -> tuple[Array, list[float]]:
    """x at the first of the times, and the times: fewer steps where sampling starts later. `origin`: the start's, as an
    array of the noise's kind."""
    if origin is None or start.strength == 1:
        return process.start(noise), process.times(steps)
    if start.strength == 0:
        return origin, [0.0]
    times = [start.strength * t for t in process.times(math.ceil(start.strength * steps))]
    alpha, sigma = process.levels(times[0])
    return alpha * origin + sigma * noise, times


def anchored(denoise: Denoise, known: Array, mask: Array) -> Denoise:
    """`denoise` whose estimate holds the known picture in the cells that stay."""
    if not (mask > 0).any():
        return denoise
    stays = mask.clip(0, 1)
    return lambda x, t: stays * known + (1 - stays) * denoise(x, t)


def known_cells(hole: Floats, side: int) -> Floats:
    """(1, 1, H, W), 1 where a picture may change -> (1, 1, side, side), 1 where a cell stays as a whole."""
    cell = hole.shape[-1] // side
    known: Floats = 1 - hole.reshape(1, 1, side, cell, side, cell).max(axis=(3, 5))
    return known


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
