"""What a set shows to training, small enough to ship with the weights, and whether it keeps the rules of splits.py.

A set's metadata are tens of megabytes, so what ships is their extract, `assets/trained-on/HASH.json`: the hash of all
metadata lines (the one that checkpoints, model.json and cards cite), which (style, base) pairs are trained on, as
stickers or as things in scenes and edits, and which two bases meet in one picture. Every rule of the hold-outs can be
recomputed from it; whoever makes the set again gets the same hash and the same extract (`imagewright data check`).

    bases    all base concepts, sorted, with spaces between
    styles   for each style a bit a base, as a hexadecimal number: bit i is base i
    pairs    a bit for each pair (i < j) of bases, row by row: packed, zlib, base64
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from imagewright.data.ledger import manifest_hash, refusal
from imagewright.data.splits import DROPPED, STYLE_HOLDOUT, TRAIN, sticker_split, unseen_pair
from imagewright.errors import DataError

Record = Mapping[str, Any]
Pair = tuple[str, str]
FORMAT = 1
SHOWN = 10  # breaches that an error names


@dataclass(frozen=True)
class TrainedOn:
    """What a set with the hash `manifest` shows to training: `pictures` of them, (style, base) `concepts`, and `pairs`
    of bases (sorted) that meet in one picture."""

    manifest: str
    pictures: int
    concepts: frozenset[Pair]
    pairs: frozenset[Pair]

    @classmethod
    def of(cls, records: Iterable[Record], manifest: str) -> TrainedOn:
        """Of the training pictures among `records`."""
        trained = [record for record in records if record["split"] == TRAIN]
        concepts = {pair for record in trained for pair in shows(record)}
        pairs = {pair for record in trained for pair in combinations(sorted({base for _, base in shows(record)}), 2)}
        return cls(manifest, len(trained), frozenset(concepts), frozenset(pairs))

    def breaches(self) -> list[str]:
        """What breaks a rule of the hold-outs, in words."""
        found = [
            f"{style}:{base} is trained on and should be {sticker_split(style, base)}"
            for style, base in sorted(self.concepts)
            if sticker_split(style, base) != TRAIN
        ]
        return found + [f"{a} and {b} meet in a training picture" for a, b in sorted(self.pairs) if unseen_pair(a, b)]

    def to_json(self) -> str:
        """The extract, as it ships."""
        bases = sorted({base for _, base in self.concepts})
        at = {base: i for i, base in enumerate(bases)}
        styles = {style: 0 for style, _ in sorted(self.concepts)}
        for style, base in self.concepts:
            styles[style] |= 1 << at[base]
        met = np.zeros((len(bases), len(bases)), bool)
        for a, b in self.pairs:
            met[at[a], at[b]] = True
        packed = zlib.compress(np.packbits(met[np.triu_indices(len(bases), 1)]).tobytes(), 9)
        told = {
            "format": FORMAT,
            "manifest": self.manifest,
            "pictures": self.pictures,
            "bases": " ".join(bases),
            "styles": {style: f"{bits:x}" for style, bits in styles.items()},
            "pairs": base64.b64encode(packed).decode(),
        }
        return json.dumps(told, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrainedOn:
        """The inverse of `to_json`. Raises DataError."""
        told = json.loads(text)
        if told.get("format") != FORMAT:
            raise DataError("This list of training pictures is of another format.", "Make it again: data check --list")
        bases = told["bases"].split()
        concepts = {
            (style, base)
            for style, bits in told["styles"].items()
            for i, base in enumerate(bases)
            if int(bits, 16) >> i & 1
        }
        rows, columns = np.triu_indices(len(bases), 1)
        bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(told["pairs"])), np.uint8), count=len(rows))
        pairs = {(bases[rows[k]], bases[columns[k]]) for k in np.flatnonzero(bits)}
        return cls(told["manifest"], told["pictures"], frozenset(concepts), frozenset(pairs))


def shows(record: Record) -> set[Pair]:
    """The (style, base) pairs that a picture shows."""
    if record.get("kind") in ("scene", "edit"):
        return {(o["style"], o["base"]) for o in record["objects"]}
    return {(record["style"], record["base"])}


def shipped(manifest: str) -> TrainedOn | None:
    """The extract in the package of the set with this hash; None where there is none."""
    file = files("imagewright") / "assets" / "trained-on" / f"{manifest[:16]}.json"
    return TrainedOn.from_json(file.read_text("utf-8")) if file.is_file() else None


def check(folder: Path) -> TrainedOn:
    """The extract of a sticker set, after its hash, its licences and the rules of the hold-outs were recomputed from
    its metadata. Raises DataError that names what is wrong."""
    try:
        lines = (folder / "metadata.jsonl").read_text("utf-8").splitlines()
        cited = json.loads((folder / "manifest.json").read_text("utf-8"))["sha256"]
    except OSError as error:
        raise DataError(f"{folder} is no sticker set: {error}.", "Make one: imagewright data stickers DIR") from None
    records = [json.loads(line) for line in lines]
    found = TrainedOn.of(records, manifest_hash(lines))
    wrong = [*record_breaches(records), *found.breaches()]
    if found.manifest != cited:
        wrong.insert(0, f"the metadata have the hash {found.manifest[:16]}, and manifest.json cites {cited[:16]}")
    known = shipped(found.manifest)
    if known is not None and known != found:
        wrong.append("the package has another list of training pictures for this hash")
    if wrong:
        told = "; ".join(wrong[:SHOWN]) + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
        raise DataError(f"{folder} breaks its rules: {told}.", "Make the set again, and do not train on this one.")
    return found


def record_breaches(records: Sequence[Record]) -> Iterator[str]:
    """Pictures whose split is not that of the rule, or whose licence forbids training, in words."""
    for record in records:
        name, split = record["file_name"], record["split"]
        if split == TRAIN and (reason := refusal(dict(record))) is not None:
            yield f"{name} may not be trained on: {reason}"
        if split == DROPPED and not record.get("reason"):
            yield f"{name} is dropped without a reason"
        if record.get("kind") != "sticker" or split == DROPPED:
            continue
        rule = sticker_split(record["style"], record["base"])
        if split != rule:
            yield f"{name} is in {split} and should be in {rule}"
        if split == STYLE_HOLDOUT and "near-duplicate" in record.get("reason", ""):
            yield f"{name} is held out and a near-duplicate of a training picture"
