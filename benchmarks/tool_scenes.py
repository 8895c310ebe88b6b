"""Scenes with their whole truth, for measuring picture tools: which pixels belong to which thing, and the alpha.

They are made as data/scenes.py makes its own, but from stickers that no model was trained on (the style hold-out) in
pairs that no training scene shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.data import scenes
from imagewright.data.splits import STYLE_HOLDOUT, TRAIN

Floats = NDArray[np.float64]
MARKS = ((255, 0, 0), (0, 0, 255))


@dataclass(frozen=True)
class Truth:
    """A picture, what it shows (`names`, the phrases `words`), the alpha (H, W) of each thing, and the background."""

    picture: Image.Image
    names: tuple[str, ...]
    words: tuple[str, ...]
    alphas: tuple[Floats, ...]
    background: str | None
    style: str


def held_out(data: Path) -> list[dict[str, Any]]:
    """The records of the style hold-out without skin tones."""
    lines = (data / "metadata.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [r for r in records if r["kind"] == "sticker" and r["split"] == STYLE_HOLDOUT and not r["tone"]]


def made(
    data: Path, count: int, kind: str = "pair", size: int = 128, seed: int = 0, ground: bool | None = None
) -> Iterator[Truth]:
    """`count` scenes of a `kind` of scenes.KINDS; `ground`: with (without) a coloured background only."""
    records = held_out(data)
    things = scenes.things([{**record, "split": TRAIN} for record in records])
    studio = scenes.Studio(data, data, size, seed, things, scenes.credits_of(records), unseen=kind == "pair")
    done, index = 0, 0
    while done < count:
        index += 1
        truth = scene(studio, kind, np.random.default_rng([seed, index]), ground)
        if truth is not None:
            done += 1
            yield truth


def scene(studio: scenes.Studio, kind: str, rng: np.random.Generator, ground: bool | None) -> Truth | None:
    """One try, as scenes.attempted, painted a second time in marks that tell the things apart."""
    chosen = scenes.choose(studio, kind, rng)
    if chosen is None:
        return None
    parts, style = chosen
    relation = str(rng.choice(list(scenes.RELATIONS))) if kind == "pair" else None
    sprites = [scenes.sprite(studio.folder / part.thing.files[style], part.colour) for part in parts]
    for part, picture in zip(parts, sprites, strict=True):
        if part.colour and scenes.named_share(picture[::2, ::2], part.colour) < scenes.NAMED_SHARE:
            return None
    background = scenes.pick_background(kind, parts, sprites, rng)
    if background == "clash" or (ground is not None and ground != (background is not None)):
        return None
    state = rng.bit_generator.state
    canvas, _ = scenes.paint(parts, sprites, relation, background, studio.size, rng)
    rng.bit_generator.state = state
    marked = [
        np.dstack([np.full(s.shape[:2], m, np.uint8) for m in (*mark, 0)])
        for s, mark in zip(sprites, MARKS, strict=False)
    ]
    for mark, sprite in zip(marked, sprites, strict=True):
        mark[..., 3] = sprite[..., 3]
    if background:  # paint draws the jitter of a background first
        rng.normal(0, (0.012, 0.003, 0.003))
    flat, _ = scenes.paint(parts, marked, relation, None, studio.size, rng)
    alpha = flat[..., 3] / 255.0
    first = alpha * (flat[..., 0] >= flat[..., 2])
    alphas = (first, alpha - first) if len(parts) == 2 else (alpha,)
    return Truth(
        Image.fromarray(canvas, "RGBA"),
        tuple(part.thing.name for part in parts),
        tuple(f"the {part.colour} {part.thing.name}" if part.colour else f"the {part.thing.name}" for part in parts),
        alphas,
        background,
        style,
    )


def in_colour(sprite: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A picture (H, W, 4) all in one colour, with its own alpha."""
    out = np.zeros_like(sprite)
    out[..., :3], out[..., 3] = colour, sprite[..., 3]
    return out
