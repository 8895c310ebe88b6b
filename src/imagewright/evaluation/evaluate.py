"""`imagewright evaluate`: what a model makes, measured against real pictures, beside the targets for its technique.

Three answer the same prompts: the model, the real pictures of those captions (what a perfect model would score), and a
copycat that hands in training pictures (what can be had without making anything). A measure on which the copycat
shines says little alone; a measure on which the real pictures do badly is a weak judge's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.data.loader import CaptionedFolder
from imagewright.engines.catalog import Catalog
from imagewright.engines.engine import Engine, ModelInfo
from imagewright.errors import DataError, ModelError
from imagewright.evaluation import compare, network, plugins
from imagewright.evaluation.copies import CopyFinder, Nearest
from imagewright.evaluation.drawing import drawn, fields_of
from imagewright.evaluation.features import FeatureSpace, JudgeSpace, Reals, Tell, embedded, training_pictures
from imagewright.evaluation.judging import caption_scores
from imagewright.evaluation.measure import measure
from imagewright.evaluation.metrics import (
    Estimate,
    bootstrap,
    density_coverage,
    frechet_distance,
    kernel_distance,
    psnr,
    retrieval,
    ssim,
    wilson,
)
from imagewright.evaluation.prompts import HELD_OUT, SCENE, SEEN, Item, items, training_rows
from imagewright.evaluation.scenes import colours_by_pixels, real_colours, scene_verdicts
from imagewright.refine.judge import Bytes, Floats, Judges

LEAST = 20  # pictures
RESTORED = 200  # held-out pictures that are reconstructed, at most
TIMED = 4  # pictures drawn in a process of their own, to know what one costs
Figures = dict[str, Estimate]
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Contest:
    """What all contestants are held against. `reference`: training pictures that no prompt was taken from; `nearest`:
    finds copies; `spaces`: further feature spaces, by name, with the reference's features there."""

    judges: Judges
    folder: CaptionedFolder
    items: Sequence[Item]
    reference: Reals
    finder: CopyFinder
    spaces: Sequence[tuple[FeatureSpace, Floats]] = ()

    def of_kind(self, *kinds: str) -> Index:
        """The indices of the items of these kinds."""
        return np.array([i for i, item in enumerate(self.items) if item.kind in kinds], np.int64)


@dataclass(frozen=True)
class Result:
    """An evaluation. `figures` of the `model`, the `real` pictures and the `copycat`, by measure; `copies`: the nearest
    training picture of each item; `facts`: everything else that report.json tells."""

    model: Figures
    real: Figures
    copycat: Figures
    items: Sequence[Item]
    pictures: Sequence[Image.Image]
    copies: Nearest
    copied: NDArray[np.bool_]
    contest: Contest
    facts: Mapping[str, Any]


def evaluate(
    model: str | None,
    against: Path,
    out: Path,
    *,
    suite: str = "stickers",
    n: int = 500,
    features: Sequence[str] = (),
    judges: Judges | None = None,
    catalog: Catalog | None = None,
    costs: bool = True,
    told: Tell | None = None,
) -> Result:
    """Draw `n` pictures with `model` (anything that the catalogue finds) and measure them against the folder `against`.

    `features`: names of plug-ins. `costs`: also time, memory and operations, in processes of their own. Pictures are
    kept in `out` and the same call goes on where it stopped. Raises DataError, OptionError, ModelError and
    MissingExtraError.
    """
    if n < LEAST:
        raise DataError(f"{n} pictures say nothing.", f"Ask for {LEAST} or more with --n.")
    judges = judges or Judges()
    spaces = [plugins.load(name) for name in features]
    folder = CaptionedFolder(against)
    engine, name = (catalog or Catalog()).find(model)
    info = engine.find(name)
    if not info.technique:
        raise ModelError(f"{info.name} makes no pictures from words.", "Choose another: imagewright models")
    asked = items(suite, folder, n, info.capabilities.styles)
    contest = prepared(judges, folder, asked, spaces, told)
    pictures = drawn(engine, info, asked, out, told)
    rgba = judges.prepared(pictures)
    found = figures(contest, rgba, np.arange(len(asked)))
    shown = np.array([i for i, item in enumerate(asked) if item.row >= 0], np.int64)
    real = figures(contest, folder.packed(judges.size)[[asked[i].row for i in shown]], shown)
    real |= {f"scenes: {kind}": Estimate(**told_) for kind, told_ in judges.real.get("attributes", {}).items()}
    real |= real_colours(folder, judges.size)
    copycat = figures(contest, folder.packed(judges.size)[copycat_rows(contest)], np.arange(len(asked)))
    found |= _restored(engine, info, contest)
    nearest = contest.finder.nearest(rgba, judges.embed(rgba))
    facts = {
        "model": info.name,
        "engine": info.engine,
        "technique": info.technique,
        "digest": info.digest,
        "steps": info.capabilities.default_steps,
        "suite": suite,
        "n": len(asked),
        "counts": {kind: len(contest.of_kind(kind)) for kind in (SEEN, HELD_OUT, SCENE)},
        "data": folder.manifest,
        "judges": judges.version,
        "copy_bars": {"features": contest.finder.bars[0], "pixels": contest.finder.bars[1]},
        "features": [f"{space.name} {space.version}" for space in spaces],
        **(_costs(engine, info, model, asked) if costs else {}),
    }
    copied = contest.finder.copied(nearest)
    return Result(found, real, copycat, asked, pictures, nearest, copied, contest, facts)


def prepared(
    judges: Judges, folder: CaptionedFolder, asked: Sequence[Item], spaces: Sequence[FeatureSpace], told: Tell | None
) -> Contest:
    """The real side: all training pictures for copies, and a reference that no prompt was taken from."""
    training = training_pictures(folder, JudgeSpace(judges), judges.size, told)
    used = {item.row for item in asked}
    enough = sum(item.kind != SCENE for item in asked)
    order = training_rows(folder, len(training) + len(asked), 0)
    rest = list(dict.fromkeys(int(row) for row in order if int(row) not in used))
    if len(rest) < LEAST:  # a small folder: better the same pictures than none
        rest = list(dict.fromkeys(int(row) for row in order))
    reference = training.of(np.array(rest[: max(enough, LEAST)], np.int64))
    held = folder.heldout(10**6, 0)
    held_rgba = folder.packed(judges.size)[held]
    finder = CopyFinder(training, held_rgba, judges.embed(held_rgba))
    foreign = [(space, embedded(space, reference.pack, reference.rows)) for space in spaces]
    return Contest(judges, folder, asked, reference, finder, foreign)


def figures(contest: Contest, rgba: Bytes, which: Index) -> Figures:
    """All measures of pictures (N, S, S, 4) that answer the items `which` (N,)."""
    judges, asked = contest.judges, [contest.items[i] for i in which]
    rgba = np.asarray(rgba)
    seen = judges.identify(rgba)
    plain = np.array([item.kind != SCENE for item in asked], bool)
    found = _distances(contest, rgba[plain], seen["features"][plain])
    found |= _texts(contest, rgba, asked)
    styled = [i for i, item in enumerate(asked) if item.style is not None]
    if styled:
        names = judges.labels["styles"]
        right = [names[int(seen["style"][i].argmax())] == asked[i].style for i in styled]
        found["style"] = wilson(sum(right), len(right))
    scenes = [i for i, item in enumerate(asked) if item.truth is not None]
    if scenes:
        verdicts = scene_verdicts(judges.attributes(rgba[scenes]), [asked[i].truth or {} for i in scenes])
        found |= {f"scenes: {name}": share for name, share in verdicts.items()}
        found |= colours_by_pixels(rgba[scenes], [asked[i].truth or {} for i in scenes])
    return found | _copies(contest, rgba, seen["features"], asked)


def _distances(contest: Contest, rgba: Bytes, features: Floats) -> Figures:
    """KD, FD, density and coverage against the reference, at equal N."""
    n = min(len(features), len(contest.reference))
    found = {"KD": kernel_distance(features, contest.reference.features)}
    found["FD"] = _alone(frechet_distance(features[:n], contest.reference.features[:n]), n)
    found["density"], found["coverage"] = density_coverage(contest.reference.features[:n], features[:n])
    for space, reference in contest.spaces:
        foreign = space.embed(rgba)
        found[f"KD {space.name}"] = kernel_distance(foreign, reference)
        found[f"FD {space.name}"] = _alone(frechet_distance(foreign[:n], reference[:n]), n)
    return found


def _alone(value: float, n: int) -> Estimate:
    """A figure without an interval."""
    return Estimate(value, float("nan"), float("nan"), n)


def _texts(contest: Contest, rgba: Bytes, asked: Sequence[Item]) -> Figures:
    """Retrieval of 100 by kind of caption, and the share whose probability to match is one half or more."""
    found: Figures = {}
    match = contest.judges.match(rgba, [item.prompt for item in asked])
    for kind in (SEEN, HELD_OUT, SCENE):
        at = [i for i, item in enumerate(asked) if item.kind == kind]
        if not at:
            continue
        found[f"match, {kind}"] = wilson(int((match[at] >= 0.5).sum()), len(at))
        if kind != SCENE:
            records = [{"text": asked[i].prompt, "base": asked[i].base} for i in at]
            scores = caption_scores(contest.judges, rgba[at], records)
            if scores.shape[1] > 1:
                found |= {f"R@{k} of {scores.shape[1]}, {kind}": retrieval(scores, k) for k in (1, 5)}
    return found


def _copies(contest: Contest, rgba: Bytes, features: Floats, asked: Sequence[Item]) -> Figures:
    """The share of copies among pictures of unseen captions, and of seen ones as information."""
    if not contest.finder.held_out:
        return {}
    copied = contest.finder.copied(contest.finder.nearest(rgba, features))
    unseen = np.array([item.kind != SEEN for item in asked], bool)
    parts = {"copies, unseen captions": copied[unseen], "copies, seen captions": copied[~unseen]}
    return {name: wilson(int(part.sum()), len(part)) for name, part in parts.items() if len(part)}


def copycat_rows(contest: Contest) -> Index:
    """For each item a training picture: of its caption, else of its concept in another style, else of one of its
    things, else any."""
    rng = np.random.default_rng(0)
    training = contest.finder.training.rows
    by_base: dict[str, list[int]] = {}
    for row in training:
        by_base.setdefault(contest.folder.records[row]["base"], []).append(int(row))
    known = {int(row) for row in training}
    rows = []
    for item in contest.items:
        bases = [item.base, *item.base.split("+")]
        found = [item.row] if item.row in known else next((by_base[b] for b in bases if b in by_base), None)
        found = found or [int(row) for row in training]
        rows.append(found[int(rng.integers(len(found)))])
    return np.array(rows, np.int64)


def _restored(engine: Engine, info: ModelInfo, contest: Contest) -> Figures:
    """PSNR and SSIM of held-out pictures over grey through the model's encoder and back, where it has one."""
    restore, side = network.restorer(engine, info), info.capabilities.size[0]
    rows = contest.folder.heldout(RESTORED, 0)
    if restore is None or not len(rows):
        return {}
    before, after = [], []
    for start in range(0, len(rows), 16):
        some = rows[start : start + 16]
        rgba = contest.folder.packed(side)[some].transpose(0, 3, 1, 2)  # (B, 4, S, S)
        pixels = np.ascontiguousarray(rgba, np.float32) / 127.5 - 1
        captions = [str(contest.folder.records[i]["text"]) for i in some]
        before.append(_over_grey(pixels))
        after.append(_over_grey(restore(pixels, captions).clip(-1, 1)))
    one, other = np.concatenate(before), np.concatenate(after)
    return {"reconstruction PSNR": bootstrap(psnr(one, other)), "reconstruction SSIM": bootstrap(ssim(one, other))}


def _over_grey(pixels: Floats) -> Floats:
    """Premultiplied RGBA (B, 4, S, S) in [-1, 1] over mid-grey -> (B, S, S, 3) in [0, 1]."""
    unit = (pixels + 1) / 2
    rgb: Floats = (unit[:, :3] + (1 - unit[:, 3:]) * 0.5).clip(0, 1).transpose(0, 2, 3, 1)
    return rgb


def _costs(engine: Engine, info: ModelInfo, model: str | None, asked: Sequence[Item]) -> dict[str, Any]:
    _, _, cost = measure([fields_of(model or info.name, item) for item in asked[:TIMED]])
    return {
        "seconds": {"cold": cost.cold, "warm": cost.warm, "pictures": TIMED},
        "peak_bytes": cost.peak_bytes,
        "parameters": compare.parameters(info),
        "operations": network.operations(engine, info, asked[0].prompt),
    }


def plain(result: Result) -> dict[str, Any]:
    """The result as JSON values, the ten nearest copies included."""
    sides = {"model": result.model, "real": result.real, "copycat": result.copycat}
    told = {side: {name: _finite(value) for name, value in found.items()} for side, found in sides.items()}
    return {"format": 1, **result.facts, "figures": told, "copies": [copy_of(result, i) for i in worst(result)]}


def _finite(estimate: Estimate) -> dict[str, Any]:
    return {k: v if v == v else None for k, v in dataclasses.asdict(estimate).items()}


def worst(result: Result, count: int = 10) -> list[int]:
    """The items, of unseen captions if there are such, whose pictures are nearest to training pictures."""
    among = result.contest.of_kind(HELD_OUT, SCENE)
    among = among if len(among) else np.arange(len(result.items))
    distance = np.where(result.copied[among], 0, 1) + result.copies.pixels[among]
    return [int(among[i]) for i in np.argsort(distance)[:count]]


def copy_of(result: Result, index: int) -> dict[str, Any]:
    """What is known of the nearest training picture of an item."""
    contest = result.contest
    row = int(contest.finder.training.rows[result.copies.index[index]])
    return {
        "prompt": result.items[index].prompt,
        "seed": result.items[index].seed,
        "nearest": contest.folder.records[row]["file_name"],
        "caption": contest.folder.records[row]["text"],
        "features": round(float(result.copies.features[index]), 4),
        "pixels": round(float(result.copies.pixels[index]), 4),
        "copy": bool(result.copied[index]),
    }


def save(result: Result, out: Path) -> None:
    """Write report.json into `out`."""
    (out / "report.json").write_text(json.dumps(plain(result), indent=1) + "\n", "utf-8")
