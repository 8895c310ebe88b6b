"""An evaluation as a table beside the targets of its technique, and as sheets to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from imagewright.evaluation.evaluate import Result, worst
from imagewright.evaluation.metrics import Estimate
from imagewright.evaluation.prompts import HELD_OUT, SCENE, SEEN
from imagewright.evaluation.sheet import sheet

COLUMNS = ("vae", "gan", "autoregressive", "flow", "flow, 4 steps")
FEW_STEPS = 4
SMALL = 500  # pictures below which intervals are wide
SHOWN = 48  # pictures on the sheet


@dataclass(frozen=True)
class Target:
    """What each column of COLUMNS should reach; `least`: more is better."""

    values: tuple[float | None, ...]
    least: bool = True


TARGETS: dict[str, Target] = {
    "KD / real": Target((20, 6, 6, 3, 4), least=False),
    "coverage": Target((0.45, 0.75, 0.75, 0.88, 0.82)),
    f"R@1 of 100, {SEEN}": Target((0.45, 0.75, 0.80, 0.88, 0.84)),
    f"R@1 of 100, {HELD_OUT}": Target((0.35, 0.60, 0.65, 0.75, 0.70)),
    "style": Target((0.80, 0.95, 0.96, 0.98, 0.97)),
    "scenes: colour": Target((None, None, None, 0.85, 0.80)),
    "scenes: colour by pixels": Target((None, None, None, 0.85, 0.80)),
    "scenes: two objects": Target((None, None, None, 0.60, 0.55)),
    "scenes: count": Target((None, None, None, 0.55, 0.50)),
    "scenes: position": Target((None, None, None, 0.50, 0.45)),
    "copies, unseen captions": Target((0.01, 0.02, 0.05, 0.03, 0.03), least=False),
}
PLAIN = ("KD", "FD", "density", "reconstruction")  # measures that are no shares


@dataclass(frozen=True)
class Row:
    """A line of the table, as text; `reached`: whether the target is met (None: there is none)."""

    measure: str
    model: str
    real: str
    copycat: str
    n: int
    target: str
    reached: bool | None


def column_of(technique: str, steps: int | None) -> str | None:
    """The column of targets of a model."""
    if technique == "diffusion":
        return COLUMNS[4] if steps is not None and steps <= FEW_STEPS else COLUMNS[3]
    return technique if technique in COLUMNS else None


def ratio(model: Mapping[str, Estimate], real: Mapping[str, Estimate]) -> Estimate:
    """KD over the upper end of the real pictures' interval, which is the most that real pictures show at this N: their
    KD itself is about 0, so nothing can be divided by it."""
    kd, floor = model["KD"], max(real["KD"].high, 1e-6)
    return Estimate(kd.value / floor, kd.low / floor, kd.high / floor, kd.n)


def rows(result: Result) -> list[Row]:
    """The table: every measure with its interval, the real pictures' and the copycat's value, and the target."""
    model, real, copycat = (
        {"KD / real": ratio(found, result.real), **found} for found in (result.model, result.real, result.copycat)
    )
    column = column_of(result.facts["technique"], result.facts["steps"])
    return [row(name, found, real.get(name), copycat.get(name), column) for name, found in model.items()]


def row(name: str, found: Estimate, real: Estimate | None, copycat: Estimate | None, column: str | None) -> Row:
    """One line of the table; `column`: one of COLUMNS, or None."""
    target = TARGETS.get(name)
    goal = target.values[COLUMNS.index(column)] if target and column else None
    reached = None
    if target is not None and goal is not None and found.value == found.value:
        reached = found.value >= goal if target.least else found.value <= goal
    sign = "" if target is None or goal is None else "≥ " if target.least else "≤ "
    return Row(
        name,
        figure(name, found),
        _text(name, real.value) if real else "–",
        _text(name, copycat.value) if copycat else "–",
        found.n,
        f"{sign}{_text(name, goal)}" if goal is not None else "",
        reached,
    )


def _text(name: str, value: float) -> str:
    if value != value:
        return "–"
    if name == "coverage" or not name.startswith(PLAIN):
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if name.startswith(("KD /", "reconstruction PSNR")) else f"{value:.4f}"


def figure(name: str, found: Estimate) -> str:
    """A figure with its interval, if it has one, as text."""
    interval = f"  [{_text(name, found.low)}, {_text(name, found.high)}]" if found.low == found.low else ""
    return _text(name, found.value) + interval


def facts_text(facts: Mapping[str, Any]) -> list[str]:
    """The lines above and below the table."""
    counts = ", ".join(f"{count} {kind}" for kind, count in facts["counts"].items() if count)
    lines = [f"{facts['model']} ({facts['technique']}), {facts['n']} pictures ({counts}), judges {facts['judges']}"]
    if facts["n"] < SMALL:
        lines.append(f"Fewer than {SMALL} pictures: the intervals are wide, and FD, density and coverage depend on N.")
    if "seconds" in facts:
        memory = f"{facts['peak_bytes'] / 1e6:.0f} MB" if facts["peak_bytes"] else "unknown"
        parameters = f"{facts['parameters'] / 1e6:.1f} M" if facts["parameters"] else "unknown"
        operations = f"{facts['operations'] / 1e9:.2f} G" if facts["operations"] else "unknown"
        lines.append(
            f"a picture: {facts['seconds']['warm']:.2f} s (the first, cold: {facts['seconds']['cold']:.1f} s), "
            f"peak memory {memory}, parameters {parameters}, operations {operations}"
        )
    return lines


def samples(result: Result) -> Image.Image:
    """Pictures of all kinds of captions, the same number of each."""
    chosen: list[int] = []
    kinds = [kind for kind in (SEEN, HELD_OUT, SCENE) if len(result.contest.of_kind(kind))]
    for kind in kinds:
        among = result.contest.of_kind(kind)
        chosen += [
            int(i) for i in among[np.linspace(0, len(among) - 1, min(len(among), SHOWN // len(kinds))).astype(int)]
        ]
    captions = [_caption(result, i) for i in chosen]
    return sheet([result.pictures[i] for i in chosen], captions)


def _caption(result: Result, index: int) -> str:
    item = result.items[index]
    return f"{item.prompt} ({item.style})" if item.style else item.prompt


def copies(result: Result) -> Image.Image:
    """The ten pictures of unseen captions nearest to training pictures, each followed by that picture, with the
    distances in features and in pixels (copies.py)."""
    pictures, captions = [], []
    for index in worst(result):
        row = int(result.contest.finder.training.rows[result.copies.index[index]])
        record = result.contest.folder.records[row]
        with Image.open(result.contest.folder.path / record["file_name"], formats=("PNG", "JPEG", "WEBP")) as real:
            pictures += [result.pictures[index], real.convert("RGBA")]
        apart = f"{result.copies.features[index]:.3f} {result.copies.pixels[index]:.3f}"
        word = "copy of" if result.copied[index] else "near"
        captions += [result.items[index].prompt, f"{apart} {word}: {record['text']}"]
    return sheet(pictures, captions, columns=4)
