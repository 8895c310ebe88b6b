"""A folder that shows how one picture came about: everything that a Watch was shown, as PNGs, and one overview.

00-step-001.png ...        what was shown, in the order in which the kinds first came up
01-attention-001.png ...   the finished picture in grey, once a word, with heat where the word was read
overview.png               all of it at a glance
trace.json                 every file with its kind, index and facts, and the finished picture's record
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.errors import OutputError
from imagewright.evaluation.sheet import sheet
from imagewright.pictures import encode, save_atomic
from imagewright.source import to_picture

CELL = 128  # pixels of a tile
MOST = 32  # pictures in the overview; of more, evenly spaced ones
HEAT = (214, 40, 20)
Floats = NDArray[np.float32]


class Trace:
    """Called with what happens (it is a watch.Tracer); `finish` writes what needs the finished picture.

    Raises OutputError if `folder` holds anything, or cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            empty = not any(folder.iterdir())
        except OSError as error:
            raise OutputError(f"The trace cannot go to {folder}: {error.strerror}.", "Name another folder.") from error
        if not empty:
            raise OutputError(f"{folder} holds something already.", "Name a new folder for the trace.")
        self.folder = folder
        self._kinds: dict[str, int] = {}
        self._shown: list[dict[str, Any]] = []
        self._frames: list[tuple[Image.Image, str]] = []
        self._maps: list[tuple[str, Floats, list[str]]] = []

    def __call__(self, kind: str, index: int, array: NDArray[Any], facts: Mapping[str, Any]) -> None:
        order = self._kinds.setdefault(kind, len(self._kinds))
        file = f"{order:02}-{kind}-{index:03}.png"
        self._shown.append({"file": file, "kind": kind, "index": index, "facts": _plain(facts)})
        if kind == "attention":
            self._maps.append((file, array, list(facts["words"])))
            return
        picture = to_picture(array[None])
        self._write(file, picture)
        numbers = [f"{name} {value:.3g}" for name, value in facts.items() if isinstance(value, int | float)]
        self._frames.append((picture, " ".join([f"{kind} {index}", *numbers])))

    def finish(self, picture: Image.Image, record: Mapping[str, Any]) -> None:
        """Write the attention maps over `picture`, the overview and the facts."""
        for file, maps, words in self._maps:
            self._write(file, _page(overlaid(picture, maps, words)))
        step = max(1, -(-len(self._frames) // MOST))
        tiles = [*self._frames[::-1][::step][::-1], (picture, "finished")]  # the last frame is always among them
        if self._maps:
            tiles += overlaid(picture, np.mean([maps for _, maps, _ in self._maps], axis=0), self._maps[-1][2])
        self._write("overview.png", _page(tiles))
        told = {"record": record, "shown": self._shown}
        save_atomic(json.dumps(told, indent=1).encode(), self.folder / "trace.json")

    def _write(self, name: str, picture: Image.Image) -> None:
        save_atomic(encode(picture, "png"), self.folder / name)


def overlaid(picture: Image.Image, maps: Floats, words: list[str]) -> list[tuple[Image.Image, str]]:
    """A tile and its label a word: `picture` in grey with heat where `maps` (L, h, w) is high, each word's map between
    its own lowest and highest value; the label tells the word's share of all attention."""
    grey = np.asarray(_on_white(picture).convert("L").resize((CELL, CELL)), np.float32)[..., None]  # (CELL, CELL, 1)
    pale, total = 120 + grey * 0.5, float(maps.sum()) or 1.0
    tiles = []
    for weights, word in zip(maps, words, strict=True):
        low, high = float(weights.min()), float(weights.max())
        scaled = Image.fromarray((weights - low) / max(high - low, 1e-9))
        heat = np.asarray(scaled.resize((CELL, CELL), Image.Resampling.BILINEAR)).clip(0, 1)[..., None] * 0.85
        pixels = pale * (1 - heat) + np.array(HEAT, np.float32) * heat
        tiles.append((Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), f"{word} {weights.sum() / total:.0%}"))
    return tiles


def _on_white(picture: Image.Image) -> Image.Image:
    straight = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", straight.size, "white"), straight)


def _page(tiles: list[tuple[Image.Image, str]]) -> Image.Image:
    pictures, labels = zip(*tiles, strict=True)
    return sheet(pictures, labels, columns=min(8, len(tiles)), cell=CELL)


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON values; numpy's numbers become Python's."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in facts.items()}
