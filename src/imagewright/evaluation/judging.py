"""The trained judges exported for everyone, with what they are worth: calibration, and how right they are on real
pictures that they never saw. A generator cannot be judged better than the judge judges real pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagewright.data.loader import CaptionedFolder
from imagewright.evaluation.metrics import Estimate, retrieval, wilson
from imagewright.evaluation.scenes import scene_verdicts
from imagewright.export import write_graph
from imagewright.models.judge import ATTRIBUTES, AXES
from imagewright.refine import judge as shipped
from imagewright.refine.judge import Judges, sigmoid
from imagewright.training.checkpoint import load_model, open_model
from imagewright.training.judges import LABELS_FILE, kept_back

JUDGES = ("encoder", "match", "attributes")
CAPTIONS = 100  # the right one among them
PAIRS = 200  # real pictures under a right and a wrong caption
Rows = NDArray[np.int64]


def export_judges(runs: Mapping[str, Path], data: Path, out: Path) -> dict[str, Any]:
    """Write the judges of the run folders `runs` (by the names of JUDGES), trained on the folder `data`, to `out`, and
    measure them; returns judges.json. Raises ModelNotFoundError, ModelCorruptError."""
    assert shipped.AXES == AXES
    out.mkdir(parents=True, exist_ok=True)
    judges = {name: load_model(runs[name]) for name in JUDGES}
    for judge in judges.values():
        for part, graph in judge.graphs().items():
            write_graph(graph, out / f"{part}.onnx", 4 if part == "attributes" else 8)  # the largest and coarsest
    configs = {name: open_model(runs[name])[1] for name in JUDGES}
    listed = {path.name: _digest(path) for path in sorted(out.glob("*.onnx"))}
    description = {
        "format": shipped.FORMAT,
        "version": hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:12],
        "size": judges["encoder"].pixels,
        "files": listed,
        "labels": json.loads((runs["encoder"] / LABELS_FILE).read_text("utf-8")),
        "attributes": list(ATTRIBUTES),
        "calibration": {"slope": 1.0, "offset": 0.0},
        "training": {name: _training(config) for name, config in configs.items()},
        "parameters": {name: _trained(judge) for name, judge in judges.items()},
        "real": {},
    }
    _write(out, description)
    folder = CaptionedFolder(data)
    description["calibration"] = calibrated(Judges(out), folder)
    _write(out, description)
    description["real"] = real_accuracy(Judges(out), folder)
    _write(out, description)
    return description


def _digest(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    train = config["train"]
    return {
        "manifest": config["manifest_hash"],
        "steps": train["steps"],
        "batch": train["batch"],
        "seed": train["seed"],
    }


def _trained(judge: Any) -> int:
    return sum(p.numel() for p in judge.parameters() if p.requires_grad)


def _write(out: Path, description: Mapping[str, Any]) -> None:
    (out / shipped.DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", "utf-8")


def calibrated(judges: Judges, folder: CaptionedFolder) -> dict[str, float]:
    """Platt's slope and offset (Platt 1999) of the matching logits, fitted on held-out pictures other than those of
    `right_and_wrong`, half of them under a wrong caption."""
    rows = folder.heldout(10**6, 1)[PAIRS:]
    if not len(rows):
        rows = folder.heldout(10**6, 1)
    right, wrong = captions_of(folder, rows)
    looks = judges.look(folder.packed(judges.size)[rows])
    products = np.concatenate([(looks * judges.read(texts)).sum(1) for texts in (right, wrong)])
    slope, offset = platt(products, np.repeat([1.0, 0.0], len(rows)))
    return {"slope": slope, "offset": offset, "n": len(rows)}


def platt(scores: NDArray[Any], right: NDArray[Any], steps: int = 100) -> tuple[float, float]:
    """(slope, offset) so that sigmoid(slope * score + offset) is the probability of `right`; Newton's method on the
    likelihood, with a weak pull to (0, 0) so that separable scores stay finite."""
    x = np.stack([scores.astype(np.float64), np.ones(len(scores))], axis=1)  # (N, 2)
    weights = np.zeros(2)
    for _ in range(steps):
        p = sigmoid((x @ weights).astype(np.float64))
        gradient = x.T @ (p - right) + 1e-3 * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(2)
        weights -= np.linalg.solve(curvature, gradient)
    return float(weights[0]), float(weights[1])


def captions_of(folder: CaptionedFolder, rows: Rows) -> tuple[list[str], list[str]]:
    """For each row its caption, and one of another base concept: of the same subgroup if the rows hold one, for every
    second row; else of any."""
    rng = np.random.default_rng(0)
    records = [folder.records[i] for i in rows]
    wrong = []
    for i, record in enumerate(records):
        others = [r for r in records if r["base"] != record["base"] and r["text"] != record["text"]]
        near = [r for r in others if r.get("subgroup") == record.get("subgroup")] if i % 2 else []
        among = near or others or records
        wrong.append(str(among[int(rng.integers(len(among)))]["text"]))
    return [str(record["text"]) for record in records], wrong


def real_accuracy(judges: Judges, folder: CaptionedFolder) -> dict[str, Any]:
    """How right each judge is on real pictures that it never saw, as plain values with N and intervals."""
    found = {"encoder": encoder_accuracy(judges, folder), "match": match_accuracy(judges, folder)}
    scenes = np.array([i for i, r in enumerate(folder.records) if r.get("kind") == "scene" and kept_back(r)], np.int64)
    if len(scenes):
        seen = judges.attributes(folder.packed(judges.size)[scenes])
        found["attributes"] = scene_verdicts(seen, [folder.records[i] for i in scenes])
    return {name: {k: dataclasses.asdict(v) for k, v in part.items()} for name, part in found.items()}


def encoder_accuracy(judges: Judges, folder: CaptionedFolder) -> dict[str, Estimate]:
    """Concept (first, and among the first five) and style of held-out pictures."""
    concepts = {name: i for i, name in enumerate(judges.labels["concepts"])}
    styles = {name: i for i, name in enumerate(judges.labels["styles"])}
    rows = [i for i in folder.heldout(10**6, 1) if folder.records[i]["base"] in concepts]
    records = [folder.records[i] for i in rows]
    found = judges.identify(folder.packed(judges.size)[rows])
    target = np.array([concepts[record["base"]] for record in records])
    ranks = (found["concept"] > found["concept"][np.arange(len(rows)), target][:, None]).sum(1)
    style = found["style"].argmax(1) == [styles[record["style"]] for record in records]
    return {
        "concept": wilson(int((ranks < 1).sum()), len(rows)),
        "concept of 5": wilson(int((ranks < 5).sum()), len(rows)),
        "style": wilson(int(style.sum()), len(rows)),
    }


def match_accuracy(judges: Judges, folder: CaptionedFolder) -> dict[str, Estimate]:
    """Retrieval of 100 and, on at most PAIRS held-out pictures, precision and recall at one half."""
    rows = folder.heldout(10**6, 1)
    scores = caption_scores(judges, folder.packed(judges.size)[rows], [folder.records[i] for i in rows])
    return {"R@1 of 100": retrieval(scores), "R@5 of 100": retrieval(scores, 5), **right_and_wrong(judges, folder)}


def right_and_wrong(judges: Judges, folder: CaptionedFolder, bar: float = 0.5) -> dict[str, Estimate]:
    """Precision and recall of `match >= bar` on at most PAIRS real held-out pictures, each once under its caption and
    once under a wrong one, half of the wrong ones from the same subgroup."""
    rows = folder.heldout(10**6, 1)[:PAIRS]
    pictures = folder.packed(judges.size)[rows]
    right, wrong = (judges.match(pictures, texts) >= bar for texts in captions_of(folder, rows))
    accepted = int(right.sum() + wrong.sum())
    return {
        "precision": wilson(int(right.sum()), accepted),
        "recall": wilson(int(right.sum()), len(rows)),
        "rejected of wrong": wilson(int((~wrong).sum()), len(rows)),
    }


def caption_scores(judges: Judges, pictures: Any, asked: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
    """Matching scores (N, M) of each picture with its own caption, in column 0, and with up to CAPTIONS - 1 captions
    of other base concepts among `asked` (records with `text` and `base`), the same number for every picture."""
    texts = [str(record["text"]) for record in asked]
    first: dict[str, int] = {}
    for i, record in enumerate(asked):
        first.setdefault(record["base"], i)
    numbers = {base: number for number, base in enumerate(first)}
    own = np.array([numbers[record["base"]] for record in asked])
    products = judges.look(pictures) @ judges.read(texts).T  # (N, N)
    columns = np.array(list(first.values()))
    M = min(CAPTIONS, len(columns)) - 1
    rng = np.random.default_rng(0)
    scores = np.empty((len(asked), M + 1), np.float32)
    for i in range(len(asked)):
        others = np.delete(columns, own[i])
        others = others[[texts[j] != texts[i] for j in others]]
        drawn: Any = rng.choice(others, M, replace=len(others) < M) if len(others) else []
        scores[i] = products[i, [i, *drawn]] if len(others) else products[i, i]
    return scores
