"""Sampling of tokens in numpy, shared by the torch models and the embedded engine, so that both pick the same ones.

Temperature, top-k, top-p (nucleus sampling, arXiv:1904.09751) and guidance on logits (arXiv:2207.12598, as
arXiv:2203.13131 uses it), from uniform numbers of a Philox generator: one seed is one picture everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Codes = NDArray[np.int64]
EVERY = 8  # tokens from one picture of a trace to the next


@dataclass(frozen=True)
class Choice:
    """How to choose from logits. `guidance` 1: none; `temperature` 0: the likeliest; `top_k` 0 and `top_p` 1: any."""

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Choice:
        """From the options of a request."""
        return cls(*(options[name] for name in ("guidance", "temperature", "top_k", "top_p")))

    @property
    def rows(self) -> int:
        """Rows that the network must compute: the wanted, and with guidance the avoided."""
        return 1 if self.guidance == 1 else 2

    def __call__(self, logits: Floats, uniform: Floats) -> Codes:
        """logits (rows, N, V), uniform (N,) in [0, 1) -> tokens (N,)."""
        wide = logits.astype(np.float64)
        if self.guidance != 1:
            wide = wide[1:] + self.guidance * (wide[:1] - wide[1:])
        return pick(probabilities(wide[0], self.temperature, self.top_k, self.top_p), uniform)


def uniforms(seed: int, count: int) -> Floats:
    """`count` numbers in [0, 1) that belong to the seed."""
    return np.random.Generator(np.random.Philox(seed)).random(count)


def probabilities(logits: Floats, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Floats:
    """(N, V) -> (N, V), rows sum to 1: a softmax at `temperature`, cut to the `top_k` likeliest (0: all), then to the
    fewest of those whose share reaches `top_p`."""
    if temperature == 0:
        return np.eye(logits.shape[1])[logits.argmax(1)]
    p = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=1)
    if top_k:
        ranked[:, top_k:] = 0
    before = (ranked.cumsum(axis=1) - ranked) / ranked.sum(axis=1, keepdims=True)  # the share of the likelier ones
    if top_p < 1:
        ranked[before >= top_p] = 0
    np.put_along_axis(p, order, ranked, axis=1)
    return p / p.sum(axis=1, keepdims=True)


def pick(p: Floats, uniform: Floats) -> Codes:
    """The token of each row of p (N, V) at which the summed probability passes `uniform` (N,)."""
    total = p.cumsum(axis=1)
    passed = total > uniform[:, None] * total[:, -1:]
    return passed.argmax(axis=1).astype(np.int64)


def raster(
    logits: Callable[[int, int], Floats],
    uniform: Floats,
    choice: Choice,
    *,
    start: int,
    kept: Mapping[int, int],
    made: Callable[[int, Codes], None],
) -> Codes:
    """One token after the other, (N,). `logits(previous, position)` gives (rows, V); `previous` is `start` at first.
    `kept`: tokens that are given, by position. `made(count, tokens)` is called after each."""
    tokens = np.zeros(len(uniform), np.int64)
    previous = start
    for position in range(len(tokens)):
        found = logits(previous, position)
        chosen = int(choice(found[:, None], uniform[position : position + 1])[0])
        tokens[position] = previous = kept.get(position, chosen)
        made(position + 1, tokens)
    return tokens


def scales(
    logits: Callable[[Codes], Floats],
    sides: Sequence[int],
    uniform: Floats,
    choice: Choice,
    *,
    kept: Mapping[int, int],
    made: Callable[[int, Codes], None],
) -> Codes:
    """All tokens of a scale at once, coarse to fine, (N,). `logits(tokens)` gives (rows, n, V) for the scale that
    follows the finished ones in `tokens`. `kept` and `made` as in `raster`."""
    tokens = np.zeros(0, np.int64)
    for side in sides:
        stop = len(tokens) + side * side
        new = choice(logits(tokens), uniform[len(tokens) : stop])
        tokens = np.concatenate([tokens, new])
        for position in range(stop - side * side, stop):
            tokens[position] = kept.get(position, tokens[position])
        made(stop, tokens)
    return tokens
