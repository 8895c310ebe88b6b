"""What the judges learn from: batches with labels, the names of the labels, and the run of one judge.

Only training pictures are shown to them. A twentieth of the training scenes (by the hash of the file) is kept from
the judges and tests them, because the sticker set has no held-out scenes.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from imagewright.data.batch import STYLES, Batch, Draws
from imagewright.data.captions import caption
from imagewright.data.loader import CaptionedFolder
from imagewright.data.nouns import NUMBERS
from imagewright.data.recolour import COLOURS
from imagewright.data.scenes import Part, Thing, count_cells, pair_cells, sentence
from imagewright.data.splits import TRAIN
from imagewright.errors import DataError, OptionError
from imagewright.models import registry
from imagewright.models.judge import (
    AXES,
    COUNTS,
    AttributeJudgeConfig,
    EncoderJudgeConfig,
    JudgeBatch,
    JudgeConfig,
    Labels,
    MatchJudge,
    MatchJudgeConfig,
)
from imagewright.models.text import load_pretrained
from imagewright.text import Tokenizer
from imagewright.training import overrides as options
from imagewright.training.distributed import local_device
from imagewright.training.loop import TrainReport, train
from imagewright.training.presets import PRESETS
from imagewright.training.sources import tokenize

Record = dict[str, Any]
Rows = NDArray[np.int64]
LABELS_FILE = "labels.json"
COMPOSED = ("scene", "edit")  # kinds that show no one concept; edits are left out, they repeat scenes but for one thing
COMPOSED_SHARE = 0.85  # of the rows of an AttributeJudge that are no scenes
NEAR_SHARE = 0.7  # of the wrong captions of stickers that come from the same subgroup


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The names of the labels, in the order of the logits: base concepts, groups, things of scenes (base and name)."""

    concepts: tuple[str, ...]
    groups: tuple[str, ...]
    things: tuple[tuple[str, str], ...]
    styles: tuple[str, ...] = STYLES
    colours: tuple[str, ...] = tuple(COLOURS)

    @classmethod
    def of(cls, records: Sequence[Record]) -> Vocabulary:
        """Of the training pictures among `records`."""
        trained = [record for record in records if record["split"] == TRAIN]
        stickers = [record for record in trained if record.get("kind") not in COMPOSED]
        things = {(o["base"], o["label"]) for record in trained for o in record.get("objects", ())}
        return cls(
            tuple(sorted({record["base"] for record in stickers})),
            tuple(sorted({record.get("group", "") for record in stickers})),
            tuple(sorted(things)),
        )

    def save(self, out: Path) -> None:
        """Write labels.json into the run folder `out`."""
        out.mkdir(parents=True, exist_ok=True)
        (out / LABELS_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", "utf-8")


class JudgeSource:
    """Batches for one kind of judge; a pure function of (seed, step)."""

    def __init__(
        self, folder: CaptionedFolder, config: JudgeConfig, vocabulary: Vocabulary, scenes_share: float = 0.3
    ) -> None:
        self.folder, self.config, self.tokenizer = folder, config, Tokenizer()
        self.manifest_hash, self.share = folder.manifest, scenes_share
        trained = [(i, record) for i, record in enumerate(folder.records) if record["split"] == TRAIN]
        scenes = [(i, record) for i, record in trained if record.get("kind") == "scene"]
        self.scenes = np.array([i for i, record in scenes if not kept_back(record)], np.int64)
        self.kept_back = np.array([i for i, record in scenes if kept_back(record)], np.int64)
        self.stickers = [(i, record) for i, record in trained if record.get("kind") not in COMPOSED]
        self.labels = label_table(folder.records, vocabulary)
        self.alike, self.near = defaultdict(list), defaultdict(list)
        for i, record in self.stickers:
            if not record.get("tone"):
                self.alike[record["base"]].append(i)
                self.near[record.get("subgroup", "")].append(i)
        self.things = [Thing(name, base, {}, True, True) for base, name in vocabulary.things]
        self.with_things = np.array([i for i, r in self.stickers if self.labels.first[i] >= 0], np.int64)
        self.in_style = defaultdict(list)
        for i in self.with_things:
            self.in_style[folder.records[i].get("style", "")].append(int(i))
        bases = {record["base"]: 0 for record in folder.records}
        self.bases = {base: number for number, base in enumerate(bases)}

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        """Rows [start, stop) of the global batch of a step."""
        rows = self.rows(seed, step, total)[start:stop]
        captions = self.folder.captions(seed, step, rows, start)
        return self._batch(rows, captions, Draws(seed, step, start, stop, total))

    def heldout(self, start: int, stop: int, seed: int) -> Batch | None:
        """Pictures that no judge trains on: held-out stickers, or scenes kept back for an AttributeJudge."""
        if isinstance(self.config, AttributeJudgeConfig):
            rows = self.kept_back[start:stop]
        else:
            rows = self.folder.heldout(stop, seed)[start:]
        if not len(rows):
            return None
        captions = [self.folder.records[i]["text"] for i in rows]
        return self._batch(rows, captions, Draws(seed, 0, start, start + len(rows), start + len(rows)))

    def rows(self, seed: int, step: int, total: int) -> Rows:
        """The global batch: scenes and stickers; for an EncoderJudge every second sticker is of its neighbour's
        concept, so that the contrast has partners."""
        rng = np.random.default_rng([seed, step, 1])
        kind, pick = rng.random((2, total))
        if isinstance(self.config, AttributeJudgeConfig) and len(self.with_things):
            rows = self.with_things[(pick * len(self.with_things)).astype(np.int64)]
        else:
            rows = self.folder.indices(seed, step, total, scenes_share=0)
        if isinstance(self.config, EncoderJudgeConfig):
            for second in range(1, total, 2):
                partners = self.alike.get(self.folder.records[rows[second - 1]]["base"])
                if partners:
                    rows[second] = partners[int(pick[second] * len(partners))]
        if len(self.scenes):
            rows = np.where(kind < self.share, self.scenes[(pick * len(self.scenes)).astype(np.int64)], rows)
        return np.asarray(rows)

    def wrong(self, row: int, rng: np.random.Generator) -> str:
        """A caption that nearly fits picture `row` and does not: of a similar concept, or of a scene with one thing
        changed; worded as right ones are."""
        record = self.folder.records[row]
        if record.get("kind") == "scene":
            return caption({**record, "text": changed_scene(record, self.things, rng)}, rng)
        near = self.near[record.get("subgroup", "")]
        for _ in range(100):
            among: Any = near if rng.random() < NEAR_SHARE else self.stickers
            drawn = among[int(rng.integers(len(among)))]
            other = self.folder.records[drawn if among is near else drawn[0]]
            if other["base"] != record["base"] and other["text"] != record["text"]:
                return caption({**other, "style": record.get("style", "")}, rng)
        raise DataError("The folder has pictures of one concept only.", "Add pictures of others.")

    def _compose(self, rows: Rows, pixels: Tensor, labels: Labels, draws: Draws) -> None:
        """Put two to four small stickers in the place of most single ones, in `pixels` and `labels`: scenes without end
        from the things that are known, because the written ones show each thing a few times only."""
        rng = np.random.default_rng([int(draws.generator.initial_seed() % 2**32), draws.start, 2])
        for at, row in enumerate(rows):
            record = self.folder.records[row]
            if record.get("kind") == "scene" or labels.first[at] < 0 or rng.random() >= COMPOSED_SHARE:
                continue
            axis, count = int(rng.integers(3)), 2
            others = self.in_style[record.get("style", "")]
            other = int(row) if axis == 0 else others[int(rng.integers(len(others)))]
            if axis == 0:
                count = int(rng.integers(2, COUNTS + 1))
            elif self.labels.first[other] == labels.first[at]:
                continue
            sources = [int(row)] * count if axis == 0 else [int(row), other]
            pictures = self.folder.packed(self.config.size)[sources]
            pixels[at] = torch.from_numpy(arranged(pictures, AXES[axis], rng)).permute(2, 0, 1).float() / 127.5 - 1
            labels.axis[at], labels.count[at] = axis, count - 1
            if axis:
                labels.second[at], labels.second_colour[at] = int(self.labels.first[other]), 0

    def _batch(self, rows: Rows, captions: list[str], draws: Draws) -> JudgeBatch:
        labels, pixels = self.labels.at(rows), self.folder.pixels(rows, self.config.size)
        wrong = None
        if isinstance(self.config, AttributeJudgeConfig):
            self._compose(rows, pixels, labels, draws)
        if isinstance(self.config, MatchJudgeConfig):
            seeds = [int(draws.generator.initial_seed() % 2**32), draws.start]
            rng = np.random.default_rng(seeds)
            wrong = tokenize(self.tokenizer, [self.wrong(int(row), rng) for row in rows])
            numbers = [self.bases[self.folder.records[i]["base"]] for i in rows]
            labels = dataclasses.replace(labels, concept=torch.tensor(numbers))
        return JudgeBatch(
            draws=draws,
            pixels=pixels,
            text=tokenize(self.tokenizer, captions) if wrong is not None else None,
            style=self.folder.styles(rows),
            captions=tuple(captions),
            labels=labels,
            wrong=wrong,
        )


def arranged(pictures: NDArray[np.uint8], axis: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pictures (n, S, S, 4), premultiplied, made small and put side by side, above each other, or (axis none) anywhere
    in the cells of a scene; (S, S, 4)."""
    size = pictures.shape[1]
    page = np.zeros((size, size, 4), np.uint8)
    relation = {"horizontal": "left", "vertical": "above"}.get(axis)
    cells = pair_cells(relation, rng) if relation else count_cells(len(pictures), rng)
    for picture, (left, top, right, bottom) in zip(pictures, cells, strict=True):
        side = max(4, round(size * rng.uniform(0.85, 1.05) * min(right - left, bottom - top)))
        small = Image.frombytes("RGBa", (size, size), picture.tobytes()).resize((side, side), Image.Resampling.BOX)
        x = round(size * (left + right) / 2 - side / 2 + rng.uniform(-2, 2))
        y = round(size * (top + bottom) / 2 - side / 2 + rng.uniform(-2, 2))
        alone = Image.new("RGBa", (size, size))
        alone.paste(small, (x, y))
        page = over(np.asarray(alone), page)
    return page


def over(top: NDArray[np.uint8], below: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Premultiplied RGBA over premultiplied RGBA."""
    rest = 1 - top[..., 3:].astype(np.float32) / 255
    return np.minimum(top + below * rest, 255).round().astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """The labels of all pictures of a folder, (N,) int64 each; -1: not known."""

    columns: dict[str, Rows]

    @property
    def first(self) -> Rows:
        """The thing in the first slot."""
        return self.columns["first"]

    def at(self, rows: Rows) -> Labels:
        """The labels of `rows`."""
        return Labels(**{name: torch.from_numpy(column[rows]) for name, column in self.columns.items()})


def label_table(records: Sequence[Record], vocabulary: Vocabulary) -> LabelTable:
    """The labels of each record."""
    index = {
        "concept": {name: i for i, name in enumerate(vocabulary.concepts)},
        "group": {name: i for i, name in enumerate(vocabulary.groups)},
        "style": {name: i for i, name in enumerate(vocabulary.styles)},
        "thing": {base: i for i, (base, _) in enumerate(vocabulary.things)},
        "colour": {name: i for i, name in enumerate(vocabulary.colours)},
    }
    names = [f.name for f in dataclasses.fields(Labels)]
    columns = {name: np.full(len(records), -1, np.int64) for name in names}
    for i, record in enumerate(records):
        for name, value in labels_of_record(record, index).items():
            columns[name][i] = value
    return LabelTable(columns)


def labels_of_record(record: Record, index: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """What a record says, as numbers of the vocabulary's names in `index`."""
    found = {"style": index["style"].get(record.get("style", ""), -1)}
    found["concept"] = index["concept"].get(record["base"], -1)
    objects = slots(record)
    if record.get("kind") != "scene":
        found["group"] = index["group"].get(record.get("group", ""), -1)
        if record["base"] in index["thing"] and not record.get("tone"):
            objects = [{"base": record["base"], "colour": None, "count": 1}]
    else:
        found["ground"] = index["colour"].get(record["background"] or "", -1)
        if len(objects) > 1 or objects[0]["count"] > 1:
            found["concept"] = -1
    if objects:
        found["axis"] = AXES.index(axis_of(record.get("relation")))
        found["count"] = sum(o["count"] for o in objects) - 1
    for name, o in zip(("first", "second"), objects, strict=False):
        found[name] = index["thing"].get(o["base"], -1)
        found[f"{name}_colour"] = 1 + index["colour"][o["colour"]] if o["colour"] else 0
    return found


def slots(record: Record) -> list[Record]:
    """The objects of a scene, the left or upper one first."""
    objects = list(record.get("objects", ()))
    return objects[::-1] if record.get("relation") in ("right", "below") else objects


def axis_of(relation: str | None) -> str:
    """Along which axis two objects with this relation lie."""
    return {"left": "horizontal", "right": "horizontal", "above": "vertical", "below": "vertical"}.get(
        relation or "", "none"
    )


def kept_back(record: Record) -> bool:
    """Whether a scene is kept from the judges, to test them."""
    return int(record["sha256"], 16) % 20 == 0


def changed_scene(record: Record, things: Sequence[Thing], rng: np.random.Generator) -> str:
    """The caption of a scene with one colour, number, thing or background changed."""
    parts = [Part(Thing(o["label"], o["base"], {}, True, True), o["colour"], o["count"]) for o in record["objects"]]
    background = record["background"]
    choices = ["thing", *(["colour"] * 2 if any(part.colour for part in parts) else [])]
    choices += ["count"] * (2 if parts[0].count > 1 else 0) + ["background"] * bool(background)
    change = str(rng.choice(choices))
    at = int(rng.integers(len(parts)))
    if change == "thing":
        shown = {part.thing.base for part in parts}
        other = next(things[i] for i in rng.permutation(len(things)) if things[i].base not in shown)
        parts[at] = dataclasses.replace(parts[at], thing=other)
    elif change == "colour":
        at = at if parts[at].colour else 1 - at
        parts[at] = dataclasses.replace(parts[at], colour=_other(COLOURS, parts[at].colour, rng))
    elif change == "count":
        parts[0] = dataclasses.replace(parts[0], count=int(_other(NUMBERS, parts[0].count, rng)))
    else:
        background = _other(COLOURS, background, rng)
    return sentence(parts, record["relation"], background)


def _other(names: Mapping[Any, Any], present: Any, rng: np.random.Generator) -> Any:
    rest = [name for name in names if name != present]
    return rest[int(rng.integers(len(rest)))]


def run(preset: str, data: Path, out: Path, changes: Mapping[str, str] = {}) -> TrainReport:
    """Train the judge of a preset of the technique `judge` on the folder `data`, in the run folder `out`; the same call
    goes on where it stopped. `changes`: fields of TrainConfig as text. Raises OptionError, DataError."""
    if preset not in PRESETS["judge"]:
        raise OptionError(f"There is no judge {preset!r}.", f"There are: {', '.join(PRESETS['judge'])}.")
    found = PRESETS["judge"][preset]
    config = options.changed(found.train, changes)
    folder = CaptionedFolder(data)
    vocabulary = Vocabulary.of(folder.records)
    model = with_labels(found.model, vocabulary)
    if isinstance(model, AttributeJudgeConfig) and not vocabulary.things:
        raise DataError(f"{data} has no scenes.", "Make the data with scenes: imagewright data stickers --scenes N")
    torch.manual_seed(config.seed)
    judge = registry.build(model)
    if isinstance(judge, MatchJudge):
        judge.text.load_state_dict(load_pretrained().state_dict())
    vocabulary.save(out)
    return train(judge.to(local_device()), JudgeSource(folder, model, vocabulary, found.scenes_share), config, out)


def with_labels(config: Any, vocabulary: Vocabulary) -> Any:
    """`config` with the numbers of labels of the data."""
    counts: dict[str, tuple[Any, ...]] = {
        "concepts": vocabulary.concepts,
        "groups": vocabulary.groups,
        "styles": vocabulary.styles,
    }
    counts |= {"things": vocabulary.things, "colours": vocabulary.colours}
    names = {f.name for f in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: len(found) for name, found in counts.items() if name in names})
