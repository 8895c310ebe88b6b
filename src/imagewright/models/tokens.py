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

from imagewright.models.start import diffused, untouched
from imagewright.source import Source
from imagewright.watch import Watch

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


@dataclass(frozen=True)
class Drawing:
    """One picture to draw: `uniform` (N,) of its seed, how to choose, the tokens that are given (`kept`, by position),
    and what is called after each token or scale with (count, tokens)."""

    uniform: Floats
    choice: Choice
    kept: Mapping[int, int]
    made: Callable[[int, Codes], None]

    def tokens(self, logits: Floats, start: int) -> Codes:
        """The tokens from `start` on, of logits (rows, n, V): the given ones, or chosen."""
        stop = start + logits.shape[1]
        chosen = self.choice(logits, self.uniform[start:stop])
        given = [self.kept.get(position, token) for position, token in zip(range(start, stop), chosen, strict=True)]
        return np.array(given, np.int64)


@dataclass(frozen=True)
class Given:
    """What is given of a picture: `codes` (N,), and where they stay, `keep` (N,) bool."""

    codes: Codes
    keep: NDArray[np.bool_]

    @property
    def kept(self) -> dict[int, int]:
        """The codes that stay, by position."""
        return {int(i): int(self.codes[i]) for i in self.keep.nonzero()[0]}


def given(source: Source | None, encode: Callable[[Any], Codes], sides: Sequence[int], seed: int) -> Given:
    """What a picture to start from gives to codes in scales of `sides`. `encode`: pixels (1, 4, H, W) to codes (N,).

    All that lies outside a hole; else all but a share, the strength, that the seed chooses: anywhere, or where there
    are several scales the finer ones."""
    count = sum(side * side for side in sides)
    if source is None or (source.strength == 1 and source.hole is None):
        return Given(np.zeros(count, np.int64), np.zeros(count, bool))
    anew = round(source.strength * count)
    rank = np.arange(count)[::-1] if len(sides) > 1 else _other(seed).permutation(count)
    if source.hole is None:
        return Given(encode(source.pixels), rank >= anew)
    hole = source.hole
    filled = encode(np.where(hole > 0, diffused(source.pixels, hole), source.pixels))
    stays = np.concatenate([untouched(hole, side).ravel() for side in sides]) > 0
    if source.strength == 1:
        return Given(filled, stays)
    return Given(np.where(stays, filled, encode(source.pixels)), stays | (rank >= anew))


def _other(seed: int) -> np.random.Generator:
    """Another stream of the seed than its `uniforms`."""
    return np.random.Generator(np.random.Philox([seed, 1]))


def closed(
    codes: Codes, source: Source | None, encode: Callable[[Any], Codes], decode: Callable[[Codes], Any], side: int
) -> Codes:
    """`codes` (N,) of one scale with the cells that reach over the hole's edge encoded again, as they are with what
    stays in them: a cell is many pixels wide."""
    if source is None or source.hole is None:
        return codes
    hole = source.hole
    shared = 1 - untouched(hole, side) - untouched(1 - hole, side)
    again = encode(hole * decode(codes).clip(-1, 1) + (1 - hole) * source.pixels)
    return np.where(shared.ravel() > 0, again, codes)


def raster(logits: Callable[[int, int], Floats], first: int, drawing: Drawing) -> Codes:
    """One token after the other, (N,). `logits(previous, position)` gives (rows, V); at 0 the previous is `first`."""
    tokens = np.zeros(len(drawing.uniform), np.int64)
    previous = first
    for position in range(len(tokens)):
        tokens[position] = previous = int(drawing.tokens(logits(previous, position)[:, None], position)[0])
        drawing.made(position + 1, tokens)
    return tokens


def scales(logits: Callable[[Codes], Floats], sides: Sequence[int], drawing: Drawing) -> Codes:
    """All tokens of a scale at once, coarse to fine, (N,). `logits(tokens)` gives (rows, N, V) for all positions, of
    which those of the next scale look only at the scales that `tokens` (N,) holds already."""
    tokens = np.zeros(len(drawing.uniform), np.int64)
    start = 0
    for side in sides:
        stop = start + side * side
        tokens[start:stop] = drawing.tokens(logits(tokens)[:, start:stop], start)
        drawing.made(stop, tokens)
        start = stop
    return tokens


def onlooker(watch: Watch, total: int, decode: Callable[[Codes, Floats], Any]) -> Callable[[int, Codes], None]:
    """Tells `watch` of each token, and shows it the picture so far now and then: `decode(codes (1, N), made (1, N))`
    gives pixels (1, 4, H, W), where `made` is 0 for codes that are still to come."""
    latest = 0

    def picture(count: int, tokens: Codes) -> Any:
        return decode(tokens[None], (np.arange(total) < count).astype(np.float32)[None])[0]

    def made(count: int, tokens: Codes) -> None:
        nonlocal latest
        watch.told(count, total)
        if watch.tracing and (count % EVERY == 0 or count == total):
            watch.shown("token", count, picture(count, tokens))
        if (index := watch.due(latest, count, total)) is not None:
            watch.previewed(index, picture(count, tokens))
        latest = count

    return made
