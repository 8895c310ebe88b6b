"""What a training step sees: tensors for this process, and random draws that do not depend on how many there are.

A step's random numbers come from one generator seeded by (seed, step), are drawn for the *global* batch and sliced
to this process's rows. So a step is a pure function of (seed, step): resuming needs no loader state, and two
processes see exactly what one process with twice the batch sees. (Drawn on a GPU the numbers are others, by the same
rule: what a GPU began, it goes on with.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

STYLES = (
    "any",
    "noto",
    "fluent",
    "flat",
    "twemoji",
    "openmoji",
)  # index 0: not said; a new style is appended


class Draws:
    """Random tensors for rows [start, stop) of a global batch of `total` rows, drawn on `device`."""

    def __init__(
        self, seed: int, step: int, start: int, stop: int, total: int, device: torch.device | str = "cpu"
    ) -> None:
        self.generator = torch.Generator(device).manual_seed((seed * 0x9E3779B1 + step) % 2**63)
        self.start, self.stop, self.total = start, stop, total

    def rand(self, *shape: int) -> Tensor:
        """Uniform in [0, 1), (rows, *shape)."""
        device = self.generator.device
        return torch.rand(self.total, *shape, generator=self.generator, device=device)[self.start : self.stop]

    def randn(self, *shape: int) -> Tensor:
        """Standard normal, (rows, *shape)."""
        device = self.generator.device
        return torch.randn(self.total, *shape, generator=self.generator, device=device)[self.start : self.stop]


@dataclass(frozen=True)
class TextTokens:
    """Tokenised captions. `ids` (B, L) int64 word pieces, `grams` (B, L, G) int64 hashed character n-grams (0: none),
    `mask` (B, L) bool, True where a token stands. An empty caption has one token, so no row is all False."""

    ids: Tensor
    grams: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Batch:
    """`pixels` (B, 4, H, W) float32, premultiplied RGBA in [-1, 1]; `latents` (B, C, h, w) where they were cached
    (then `pixels` may be empty); `before`, like the one of them that is there, the pictures that rows with `edited`
    (B,) bool were made from, by the instruction that is their caption; `text` of the captions; `style` (B,) int64 index
    into STYLES; `step` of the run, None outside of one (held-out rows)."""

    draws: Draws
    pixels: Tensor | None = None
    latents: Tensor | None = None
    before: Tensor | None = None
    edited: Tensor | None = None
    text: TextTokens | None = None
    style: Tensor | None = None
    captions: tuple[str, ...] = field(default=())
    step: int | None = None

    def __len__(self) -> int:
        return self.draws.stop - self.draws.start
