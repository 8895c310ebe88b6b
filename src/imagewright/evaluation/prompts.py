"""What an evaluation asks a model for, and what the answers are held against: a fixed list for a folder and an N.

- `seen`: captions of training pictures, drawn by concept, then style. A near-copy is the right answer here.
- `held-out`: captions of real pictures that were never trained on.
- `scene`: things, colours, numbers and places that no training scene shows in this combination (stickers only).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagewright.data.captions import natural
from imagewright.data.loader import CaptionedFolder
from imagewright.data.recolour import COLOURS
from imagewright.data.scenes import RELATIONS, Part, Thing, sentence, things
from imagewright.data.splits import TRAIN, unseen_pair
from imagewright.errors import DataError, OptionError

SUITES = ("stickers", "own")
SEEN, HELD_OUT, SCENE = "seen", "held-out", "scene"
SHARES = {SEEN: 0.5, HELD_OUT: 0.2, SCENE: 0.3}
SCENE_KINDS = {"object": 0.25, "count": 0.25, "pair": 0.5}
COMPOSED = ("scene", "edit")  # kinds of pictures of the sticker set that show no one concept
COLOURED = 0.6  # share of the things of scenes that are asked for in a colour
Record = dict[str, Any]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Item:
    """One picture to ask for. `row`: the real picture of this caption in the folder (-1: there is none); `truth`: the
    facts of a scene, as a record of the data tells them."""

    kind: str
    prompt: str
    style: str | None
    base: str
    seed: int
    row: int = -1
    truth: Record | None = None


def items(suite: str, folder: CaptionedFolder, n: int, styles: Sequence[str], seed: int = 0) -> list[Item]:
    """The `n` pictures to ask for; `styles`: those that the model knows (others are not asked for).

    Raises OptionError for an unknown suite, DataError where the folder cannot serve it.
    """
    if suite not in SUITES:
        raise OptionError(f"There is no suite {suite!r}.", f"There are: {', '.join(SUITES)}.")
    if suite == "own":
        return _own(folder, n, styles, seed)
    if not any(record.get("kind") == "sticker" for record in folder.records):
        raise DataError(f"{folder.path} is no sticker set.", "Use --suite own, or make one: imagewright data stickers")
    held = folder.heldout(10**6, seed, scenes=False)
    counts = {kind: round(n * share) for kind, share in SHARES.items()}
    asked = [_sticker(folder, SEEN, int(row), styles) for row in training_rows(folder, counts[SEEN], seed)]
    asked += [
        _sticker(folder, HELD_OUT, int(row), styles) for row in np.resize(held, counts[HELD_OUT] * bool(len(held)))
    ]
    asked += _scenes(folder, n - len(asked), styles, seed)
    return [_with_seed(item, i) for i, item in enumerate(asked)]


def training_rows(folder: CaptionedFolder, n: int, seed: int) -> Rows:
    """`n` training pictures that are no scenes and have no skin tone, by concept, then style; repeated only where there
    are fewer."""
    by_concept: dict[str, list[int]] = {}
    for i, record in enumerate(folder.records):
        if record["split"] == TRAIN and record.get("kind") not in COMPOSED and not record.get("tone"):
            by_concept.setdefault(record["base"], []).append(i)
    if not by_concept:
        raise DataError(f"{folder.path} has no training pictures.", "Add pictures, or check their splits.")
    rng = np.random.default_rng([seed, 1])
    shuffled = [rng.permutation(rows) for rows in by_concept.values()]
    order: list[int] = []
    for turn in range(max(map(len, shuffled))):
        rest = [rows[turn] for rows in shuffled if turn < len(rows)]
        order += list(rng.permutation(rest))
    return np.resize(np.array(order, np.int64), n)


def _sticker(folder: CaptionedFolder, kind: str, row: int, styles: Sequence[str]) -> Item:
    record = folder.records[row]
    style = record.get("style")
    return Item(kind, natural(record["text"]), style if style in styles else None, record["base"], 0, row)


def _own(folder: CaptionedFolder, n: int, styles: Sequence[str], seed: int) -> list[Item]:
    """Held-out captions; where there are none, those of the training pictures, which says less."""
    held = folder.heldout(10**6, seed)
    kind, rows = (HELD_OUT, held) if len(held) else (SEEN, training_rows(folder, n, seed))
    return [_with_seed(_sticker(folder, kind, int(row), styles), i) for i, row in enumerate(np.resize(rows, n))]


def _with_seed(item: Item, index: int) -> Item:
    return Item(item.kind, item.prompt, item.style, item.base, index, item.row, item.truth)


def _scenes(folder: CaptionedFolder, n: int, styles: Sequence[str], seed: int) -> list[Item]:
    """Scenes of the nameable things of the training stickers; pairs are such that no training scene shows."""
    stickers = [record for record in folder.records if record.get("kind") == "sticker"]
    nameable = things(stickers)
    shown = {frozenset(record["base"].split("+")) for record in folder.records if record.get("kind") in COMPOSED}
    if len(nameable) < 2:
        raise DataError(f"{folder.path} has too few nameable things for scenes.", "Use the whole sticker set.")
    rng = np.random.default_rng([seed, 2])
    kinds = rng.choice(list(SCENE_KINDS), n, p=list(SCENE_KINDS.values()))
    return [_drawn_scene(str(kind), nameable, styles, shown, rng) for kind in kinds]


def _drawn_scene(
    kind: str, nameable: Sequence[Thing], styles: Sequence[str], shown: set[frozenset[str]], rng: np.random.Generator
) -> Item:
    """A scene of this kind that the data does not hold."""
    for _ in range(10_000):
        picks = [nameable[i] for i in rng.choice(len(nameable), 2 if kind == "pair" else 1, replace=False)]
        common = sorted(set.intersection(*(set(thing.files) for thing in picks)) & set(styles))
        if styles and not common:
            continue
        if kind == "pair" and (frozenset(t.base for t in picks) in shown or not _unseen(picks)):
            continue
        if kind == "count" and not picks[0].counts:
            continue
        return _scene(kind, picks, str(rng.choice(common)) if common else None, rng)
    raise DataError(f"No {kind} scene can be asked for with these things and styles.", "Use the whole sticker set.")


def _unseen(picks: Sequence[Thing]) -> bool:
    return unseen_pair(picks[0].base, picks[1].base) and picks[0].name != picks[1].name


def _scene(kind: str, picks: Sequence[Thing], style: str | None, rng: np.random.Generator) -> Item:
    count = int(rng.integers(2, 5)) if kind == "count" else 1
    parts = [
        Part(thing, str(rng.choice(list(COLOURS))) if thing.colours and rng.random() < COLOURED else None, count)
        for thing in picks
    ]
    relation = str(rng.choice(list(RELATIONS))) if kind == "pair" else None
    objects = [{"base": p.thing.base, "label": p.thing.name, "colour": p.colour, "count": p.count} for p in parts]
    truth = {"objects": objects, "relation": relation, "background": None}
    base = "+".join(sorted(thing.base for thing in picks))
    return Item(SCENE, sentence(parts, relation, None), style, base, 0, truth=truth)
