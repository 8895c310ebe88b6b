"""Draws forty fixed edits of fixed pictures, one seed, nothing picked, and measures the seams of those that add to a
picture: python scripts/edit_sheet.py

Each pair is a picture that the shipped model made from its caption, and what the edit made of it. Writes
docs/edits.webp and prints the seams (evaluation/seam.py: 1 is a border as smooth as the picture itself).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import imagewright
from imagewright import tools, verbs
from imagewright.editing import expand, masks
from imagewright.evaluation import seam
from imagewright.evaluation.sheet import sheet

SEED, SIZE = 1, (256, 256)
Edit = tuple[str, str, Callable[..., Any], dict[str, Any]]


def said(subject: str, words: str) -> Edit:
    return subject, words, partial(verbs.edit, prompt=words), {}


def filled(subject: str, words: str | None, region: str) -> Edit:
    return subject, f"fill: {words or 'nothing said'}", partial(verbs.fill, prompt=words), {"region": region}


def grown(subject: str, words: str | None, label: str, **where: Any) -> Edit:
    return subject, f"expand {label}: {words or 'nothing said'}", partial(verbs.expand, prompt=words), where


EDITS: tuple[Edit, ...] = (
    said("red apple", "make it green"),
    said("rocket", "make it blue"),
    said("fish", "paint it orange"),
    said("house", "make the house pink"),
    said("car", "turn the car purple"),
    said("cat face", "make the cat black"),
    said("red apple", "put it on a yellow background"),
    said("rocket", "change the background to purple"),
    said("star", "put it on a blue background"),
    said("fish", "make the background pink"),
    said("star on a blue background", "remove the background"),
    said("house on a yellow background", "no background"),
    said("cat face", "in the flat style"),
    said("house", "redraw it in fluent style"),
    said("car", "make it noto style"),
    said("red apple", "replace it with a banana"),
    said("cat face", "turn it into a dog face"),
    said("fish", "swap it for a bird"),
    said("a cat to the left of a tree", "make the cat blue"),
    said("a cat to the left of a tree", "remove the tree"),
    said("a star above a house", "replace the star with a sun"),
    said("a star above a house", "remove the house"),
    filled("red apple", "a hat", "0,0,100%,45%"),
    filled("cat face", "a crown", "0,0,100%,35%"),
    filled("house", "a green tree", "60%,20%,40%,80%"),
    filled("rocket", None, "0,60%,100%,40%"),
    filled("fish", "a red ball", "0,50%,50%,50%"),
    grown("red apple", "a green tree", "right", right=128),
    grown("house", "the sun", "up", up=128),
    grown("cat face", None, "zoom out 1.5", zoom_out=1.5),
    grown("house on a yellow background", None, "right", right=128),
    grown("star on a blue background", None, "zoom out 1.5", zoom_out=1.5),
    ("red apple", "vary, subtle", verbs.vary, {}),
    ("cat face", "vary, strong", partial(verbs.vary, strong=True), {}),
    ("rocket", "vary, strong", partial(verbs.vary, strong=True), {}),
    ("fish", "restyle: noto", partial(verbs.restyle, style="noto"), {}),
    ("car", "restyle: flat", partial(verbs.restyle, style="flat"), {}),
    ("red apple", "recolor: #2266dd", lambda picture, seed: tools.recolor(picture, "#2266dd"), {}),
    ("house on a yellow background", "remove-background", lambda picture, seed: tools.remove_background(picture), {}),
    (
        "red apple",
        "blend with: cat face",
        lambda picture, seed: verbs.blend([picture, made("cat face")], seed=seed),
        {},
    ),
)


@cache
def made(caption: str) -> Image.Image:
    """The picture of a caption."""
    return imagewright.generate(caption, seed=SEED, size=SIZE)[0]


def seam_of(before: Image.Image, after: Image.Image, where: dict[str, Any]) -> float | None:
    """The seam of an edit that fills a region or a wider canvas, None for the others."""
    if "region" in where:
        return seam.seam(before, masks.region(where["region"], before.size), after).ratio
    if not where:
        return None
    size, told = before.size, dict(where)
    zoom = told.pop("zoom_out", None)
    margins = (
        expand.margins(size, **{k: str(v) for k, v in told.items()}) if zoom is None else expand.zoom_out(size, zoom)
    )
    return seam.seam(*expand.canvas(before, margins), after).ratio


def main() -> None:
    """Make the sheet and print the seams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "edits.webp")
    arguments = parser.parse_args()
    cells, labels, seams = [], [], []
    for subject, label, run, where in EDITS:
        before = made(subject)
        after = run(before, seed=SEED, **where)[0]
        cells += [before, after]
        labels += [subject, label]
        if (ratio := seam_of(before, after, where)) is not None:
            seams.append(ratio)
            print(f"{subject}, {label}: seam {ratio:.2f}")
    sheet(cells, labels, columns=10, cell=112).save(arguments.out, quality=88, method=6)
    print(f"{arguments.out}; median seam {np.median(seams):.2f} of {len(seams)}")


if __name__ == "__main__":
    main()
