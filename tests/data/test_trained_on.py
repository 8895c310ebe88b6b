"""What the weights that ship were trained on keeps the rules of the hold-outs, and a set that does not is caught."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from imagewright import cli
from imagewright.data.ledger import manifest_hash
from imagewright.data.splits import STYLE_HOLDOUT, TRAIN, sticker_split, unseen_pair
from imagewright.data.trained_on import TrainedOn, check, shipped
from imagewright.errors import DataError

ASSETS = Path(str(files("imagewright") / "assets"))
MODELS = {path.parent.name: json.loads(path.read_text("utf-8")) for path in sorted(ASSETS.glob("*/model.json"))}
JUDGES = json.loads((ASSETS / "judges" / "judges.json").read_text("utf-8"))["training"]
MANIFESTS = {name: told["training"]["manifest"] for name, told in MODELS.items()}
MANIFESTS |= {f"the judge {name}": told["manifest"] for name, told in JUDGES.items()}
STYLES = {"noto", "fluent", "flat", "twemoji"}


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_ships_never_saw_what_is_held_out(name: str) -> None:
    listed = shipped(MANIFESTS[name])
    assert listed is not None, f"no list of training pictures ships for the manifest of {name}"
    assert listed.manifest == MANIFESTS[name] and listed.breaches() == []
    assert {style for style, _ in listed.concepts} == STYLES
    assert len(listed.concepts) > 5_000 and len(listed.pairs) > 5_000  # it is a list of the whole set
    held = {(style, base) for _, base in listed.concepts for style in STYLES if sticker_split(style, base) != TRAIN}
    assert len(held) > 200 and not held & listed.concepts


def test_one_entry_that_was_changed_is_found() -> None:
    listed = shipped(next(iter(MANIFESTS.values())))
    assert listed is not None
    bases = sorted({base for _, base in listed.concepts})
    style, base = next((s, b) for b in bases for s in sorted(STYLES) if sticker_split(s, b) == STYLE_HOLDOUT)
    unseen = next(pair for pair in combinations(bases, 2) if unseen_pair(*pair))
    for change, told in (
        ({"concepts": listed.concepts | {(style, base)}}, f"{style}:{base} is trained on"),
        ({"concepts": listed.concepts | {("openmoji", bases[0])}}, "openmoji"),
        ({"pairs": listed.pairs | {unseen}}, f"{unseen[0]} and {unseen[1]} meet"),
    ):
        doctored = TrainedOn.from_json(dataclasses.replace(listed, **change).to_json())
        (found,) = doctored.breaches()
        assert told in found


def record(style: str, base: str, split: str, **more: Any) -> dict[str, Any]:
    """A sticker as the recipe describes it."""
    told = {"licence": "MIT", "consent": "drawn by this test", "kind": "sticker"}
    return {"file_name": f"images/{style}/{base}.png", "style": style, "base": base, "split": split, **told, **more}


def a_set(folder: Path, changed: dict[int, dict[str, Any]] | None = None) -> Path:
    """40 concepts in three styles, sorted by the rules, with two scenes; `changed` fields of some records."""
    bases = [f"{number:04X}" for number in range(40)]
    records = [
        record(style, base, sticker_split(style, base)) for base in bases for style in ("noto", "flat", "openmoji")
    ]
    seen = [pair for pair in combinations(bases, 2) if not unseen_pair(*pair)][:2]
    for a, b in seen:
        objects = [{"style": "noto", "base": base} for base in (a, b) if sticker_split("noto", base) == TRAIN]
        records.append(record("noto", f"{a}+{b}", TRAIN, kind="scene", objects=objects))
    for at, fields in (changed or {}).items():
        records[at] |= fields
    lines = [json.dumps(one) for one in records]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "manifest.json").write_text(json.dumps({"sha256": manifest_hash(lines)}), "utf-8")
    return folder


def test_a_set_by_the_rules_passes_and_gives_the_list_that_ships(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(a_set(tmp_path))
    assert TrainedOn.from_json(found.to_json()) == found and found.concepts and len(found.pairs) in (1, 2)
    listed = tmp_path / "list.json"
    assert cli.run(["data", "check", str(tmp_path), "--list", str(listed)]) == 0
    assert TrainedOn.from_json(listed.read_text("utf-8")) == found
    assert found.manifest in capsys.readouterr().out


def test_a_doctored_set_is_refused(tmp_path: Path) -> None:
    rules = [sticker_split(s, f"{number:04X}") for number in range(40) for s in ("noto", "flat", "openmoji")]
    held, trained = rules.index(STYLE_HOLDOUT), rules.index(TRAIN)
    unseen = next(pair for pair in combinations([f"{n:04X}" for n in range(40)], 2) if unseen_pair(*pair))
    together = [{"style": "noto", "base": base} for base in unseen]
    for changed, told in (
        ({held: {"split": TRAIN}}, "should be style_holdout"),
        ({2: {"split": TRAIN}}, "openmoji"),
        ({trained: {"split": STYLE_HOLDOUT}}, "should be in train"),
        ({trained: {"licence": "CC-BY-NC-4.0"}}, "licence"),
        ({held: {"split": "dropped"}}, "without a reason"),
        ({-1: {"objects": together}}, "meet in a training picture"),
    ):
        with pytest.raises(DataError, match=told):
            check(a_set(tmp_path, changed))
    a_set(tmp_path)
    lines = (tmp_path / "metadata.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines[1:]) + "\n", "utf-8")
    with pytest.raises(DataError, match="hash"):
        check(tmp_path)
