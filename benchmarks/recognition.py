"""Does a model draw what it is asked for? python benchmarks/recognition.py DATA [MODEL]

A plain check that needs no trained judge: 100 seen concepts are drawn, each in one of the styles it was trained in, and
each drawing is compared with the real pictures of all 100 concepts in that style (16 x 16 premultiplied RGBA, mean
taken off, cosine). The share whose nearest real picture is the asked one is R@1 of 100; chance is 1 %. Beside it: the
same for real pictures of the same concepts in another style, which shows how much such raw pixels can tell at all.
Copying a training picture scores well here: it says nothing about novelty.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import imagewright
from imagewright.data.loader import CaptionedFolder

CONCEPTS, SIDE = 100, 16
Floats = NDArray[np.float64]


def features(pictures: list[Image.Image]) -> Floats:
    """(N, SIDE * SIDE * 4), zero mean and unit length."""
    small = [p.convert("RGBA").convert("RGBa").resize((SIDE, SIDE), Image.Resampling.BOX) for p in pictures]
    rows = np.stack([np.asarray(p, np.float64).reshape(-1) for p in small])
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def recall(queries: Floats, candidates: list[Floats]) -> tuple[float, float]:
    """R@1 and R@5: query i against the rows of candidates[i], of which row i is right."""
    ranks = [
        int((rows @ query > rows[i] @ query).sum())
        for i, (query, rows) in enumerate(zip(queries, candidates, strict=True))
    ]
    return float(np.mean(np.array(ranks) < 1)), float(np.mean(np.array(ranks) < 5))


def main(data: str, model: str | None) -> None:
    """Draw, compare, print."""
    folder = CaptionedFolder(data)
    found: dict[str, dict[str, dict]] = defaultdict(dict)
    for record in folder.records:
        plain = record["kind"] == "sticker" and not record["tone"] and record["hexcode"] == record["base"]
        if plain and record["split"] == "train":
            found[record["base"]][record["style"]] = record
    styles = ("noto", "fluent", "flat", "twemoji")
    whole = sorted(base for base, drawn in found.items() if set(styles) <= set(drawn))
    chosen = [whole[i] for i in np.random.default_rng(0).permutation(len(whole))[:CONCEPTS]]

    def real(style: str) -> Floats:
        return features(
            [Image.open(folder.path / found[base][style]["file_name"], formats=("PNG",)) for base in chosen]
        )

    drawn_in = {style: real(style) for style in styles}
    asked = [styles[i % len(styles)] for i in range(CONCEPTS)]
    other = np.stack([drawn_in[styles[(i + 1) % len(styles)]][i] for i in range(CONCEPTS)])
    made = []
    for base, style in zip(chosen, asked, strict=True):
        made.append(
            imagewright.generate(found[base][style]["text"], style=style, seed=0, model=model, size=(64, 64))[0]
        )
    candidates = [drawn_in[style] for style in asked]
    for name, queries in (("generated", features(made)), ("real, another style", other)):
        first, fifth = recall(queries, candidates)
        print(f"{name:20} R@1 {first:4.0%}   R@5 {fifth:4.0%}   (N = {CONCEPTS}, chance 1 % and 5 %)")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
