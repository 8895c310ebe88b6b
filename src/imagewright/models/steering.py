"""Words made stronger, scattered or strange after the text encoder, alike for every technique and engine. No torch.

Emphasis moves a token's vector away from the mean of the prompt's by the root of its weight, and multiplies it by the
weight: of twelve forms tried (docs/LOG.md) the only one that all four techniques follow well. Variety and weird turn
the vectors towards Gaussian noise of their own length, as CADS does (arXiv:2310.17347), but at all noise levels alike:
noise of the picture's seed spreads a batch, noise that belongs to the words is a reading of its own for all pictures.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imagewright.models.samplers import noise_source

Floats = NDArray[np.float32]
MOST_NOISE = 0.6  # the share of noise at variety or weird 1: beyond it pictures lose their words


@dataclass(frozen=True)
class Steering:
    """What is done to the words of one picture: `emphasis` are spans (from, to, weight) of the prompt, `variety` and
    `weird` in [0, 1], `seed` the picture's."""

    emphasis: tuple[tuple[int, int, float], ...] = ()
    variety: float = 0.0
    weird: float = 0.0
    seed: int = 0

    @property
    def idle(self) -> bool:
        """Whether it changes nothing."""
        return not (self.emphasis or self.variety or self.weird)

    def steered(self, tokens: Floats, mask: NDArray[np.bool_], weights: Floats, prompt: str) -> Floats:
        """Encoded words (1, L, D) of `prompt`, whose mask is (1, L) and whose weights are (L,), changed."""
        for share, seed in ((self.weird, zlib.crc32(prompt.encode("utf-8", "replace"))), (self.variety, self.seed)):
            if share:
                tokens = turned(tokens, mask, MOST_NOISE * share, seed)
        return weighed(tokens, mask, weights) if self.emphasis else tokens


def weighed(tokens: Floats, mask: NDArray[np.bool_], weights: Floats) -> Floats:
    """w * (mean + sqrt(w) * (x - mean)) of vectors x (1, L, D) with weights w (L,); at weight 1 they keep each bit."""
    w = weights[:, None]
    found: Floats = (w * np.sqrt(w)) * tokens + (w * (1 - np.sqrt(w))) * tokens[mask].mean(0)
    return found


def turned(tokens: Floats, mask: NDArray[np.bool_], share: float, seed: int) -> Floats:
    """Vectors (1, L, D) turned towards noise of their mean length; `share` 0 leaves them, 1 leaves nothing of them."""
    length = np.sqrt(np.square(tokens[mask]).mean())
    noise = noise_source(seed, tokens.shape)() * length
    return np.float32(math.sqrt(1 - share**2)) * tokens + np.float32(share) * noise
