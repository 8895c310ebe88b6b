"""Autoregressive: tokens one after the other with a cache of keys and values, or scale by scale."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagewright.models.tokens import (
    Choice,
    Codes,
    Drawing,
    Floats,
    Given,
    closed,
    given,
    onlooker,
    raster,
    scales,
    uniforms,
)
from imagewright.source import Source
from imagewright.watch import Watch

PARTS = ("decoder",)  # and prefix and step, or network


def draw(
    model: Any,
    words: Mapping[str, NDArray[Any]],
    options: Mapping[str, Any],
    seed: int,
    watch: Watch,
    source: Source | None = None,
) -> NDArray[np.float32]:
    """The pixels (1, 4, H, W) of one picture."""
    shape = tuple(model.runtime["shape"])

    def decode(codes: Codes, made: Floats) -> NDArray[np.float32]:
        pixels: NDArray[np.float32] = model.run("decoder", x=codes.reshape(1, *shape), made=made.reshape(1, *shape))[0]
        return pixels

    def whole(codes: Codes) -> NDArray[np.float32]:
        return decode(codes, np.ones(len(codes), np.float32))

    codes = sample(model, words, options, seed, onlooker(watch, prod(shape), decode), source)
    if len(sides := _sides(model)) == 1:
        codes = closed(codes, source, partial(encode, model), whole, sides[0])
    return whole(codes)


def encode(model: Any, pixels: NDArray[np.float32]) -> Codes:
    """Pixels (1, 4, H, W) -> codes (N,)."""
    codes: Codes = model.run("encoder", pixels=pixels.astype(np.float32))[0].ravel()
    return codes


def sample(
    model: Any,
    words: Mapping[str, NDArray[Any]],
    options: Mapping[str, Any],
    seed: int,
    made: Any,
    source: Source | None = None,
) -> Codes:
    """The codes (N,) of one picture; `made(count, codes)` is called on the way."""
    choice = Choice.of(options)
    found = given(source, partial(encode, model), _sides(model), seed)
    drawing = Drawing(uniforms(seed, prod(model.runtime["shape"])), choice, found.kept, made)
    condition = {name: value[: choice.rows] for name, value in words.items()}
    if "scales" in model.runtime:
        return _scales(model, condition, drawing)
    return _raster(model, condition, drawing, found)


def _sides(model: Any) -> list[int]:
    """Those of the scales of codes, the coarsest first."""
    sides: list[int] = model.runtime.get("scales", model.runtime["shape"][:1])
    return sides


def _raster(model: Any, words: Mapping[str, NDArray[Any]], drawing: Drawing, found: Given) -> Codes:
    rows, L = words["text_mask"].shape
    said = {name: words[name] for name in ("text", "pooled", "style")}
    known, mask = (np.repeat(array[None], rows, axis=0) for array in (found.codes, found.keep.astype(np.float32)))
    cache, modulation, ahead = model.run("prefix", **said, known=known, mask=mask)

    def logits(previous: int, position: int) -> Floats:
        found: Floats
        found, new = model.run(
            "step",
            token=np.full(rows, previous),
            position=np.full(rows, position),
            cache=cache,
            text_mask=words["text_mask"],
            modulation=modulation,
            ahead=ahead[:, position],
        )
        cache[..., L + position, :] = new
        return found

    return raster(logits, model.runtime["codes"], drawing)


def _scales(model: Any, words: Mapping[str, NDArray[Any]], drawing: Drawing) -> Codes:
    rows = len(words["text_mask"])

    def logits(codes: Codes) -> Floats:
        found: Floats = model.run("network", x=np.repeat(codes[None], rows, axis=0), **words)[0]
        return found

    return scales(logits, model.runtime["scales"], drawing)
