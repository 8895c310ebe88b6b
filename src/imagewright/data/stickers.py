"""The sticker set: four vendors' emoji, drawn to PNG files with names, licences and splits, as a captioned
folder.

    DIR/metadata.jsonl   one JSON a picture (imagefolder convention: file_name, text, and our fields)
    DIR/images/STYLE/HEXCODE.png, DIR/images/scenes/NNNNNN.png, DIR/images/edits/NNNNNN-{before,after}.png
                         RGBA, straight alpha
    DIR/README.md        the dataset card
    DIR/manifest.json    counts, parameters, rules, and `sha256`: the hash over the sorted metadata lines

Everything is made in DIR's sibling `.DIR.partial` and renamed at the end, so that a kill leaves no half
data set.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagewright.data import neardups, splits
from imagewright.data.card import card
from imagewright.data.edits import write_edits
from imagewright.data.icons import IconSet
from imagewright.data.ledger import manifest_hash
from imagewright.data.names import Name, key, read_names
from imagewright.data.render import Job, Rendered, cores, render, run
from imagewright.data.scenes import Studio, credits_of, things, write_scenes
from imagewright.data.sources import NAMES, PICTURES, Source, check_integrity, fetch, read_json
from imagewright.errors import DataError

FORMAT = 1
Progress = Callable[[str, int, int], None]
Record = dict[str, Any]


@dataclass(frozen=True)
class BuildReport:
    """What a build made: `counts` of pictures by "kind/style/split", and the manifest's hash."""

    path: Path
    manifest: str
    counts: dict[str, int]
    size: int
    already_there: bool = False


@dataclass(frozen=True)
class Sticker:
    """A drawing that waits to be rendered."""

    source: Source
    name: Name
    svg: str


def build(
    out: Path,
    *,
    source: Path | None = None,
    size: int = 128,
    limit: int | None = None,
    scenes: int = 0,
    edits: int = 0,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Make the sticker set in `out`, `size` pixels square, from npm or from tarballs in the folder `source`.

    `limit` keeps a fixed pseudo-random slice; `scenes` are composed from the training stickers, and so are `edits`
    (pairs of scenes with an instruction). A finished
    set with the same parameters is left as it is; one with others is an error.
    """
    parameters = {
        **{"format": FORMAT, "size": size, "limit": limit, "scenes": scenes, "seed": seed},
        "sources": [asdict(pinned) for pinned in (NAMES, *PICTURES)],
        **({"edits": edits} if edits else {}),
    }
    finished = finished_report(out, parameters)
    if finished is not None:
        return finished
    report = progress or (lambda stage, done, total: None)
    workers = workers or cores()
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        stickers = join(tarballs(source, partial / "npm", report), limit)
        shutil.rmtree(partial / "npm", ignore_errors=True)
        records = draw(stickers, partial, size, workers, report)
        studio = Studio(partial, partial, size, seed, things(records), credits_of(records))
        records += write_scenes(records, partial, count=scenes, size=size, seed=seed, workers=workers, report=report)
        records += write_edits(studio, count=edits, workers=workers, report=report)
        manifest = finish(partial, records, parameters)
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return BuildReport(out, manifest["sha256"], manifest["counts"], size)


def finished_report(out: Path, parameters: dict[str, Any]) -> BuildReport | None:
    """The report of a set that is already in `out`; None where there is nothing."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        manifest = json.loads((out / "manifest.json").read_text())
    except (OSError, ValueError):
        raise DataError(f"{out} exists and is not a sticker set.", "Name another folder.") from None
    if manifest.get("parameters") != parameters:
        raise DataError(f"{out} holds a set made with other parameters.", "Name another folder, or delete this one.")
    return BuildReport(out, manifest["sha256"], manifest["counts"], parameters["size"], already_there=True)


def tarballs(source: Path | None, scratch: Path, report: Progress) -> dict[str, Path]:
    """The checked tarball of every pinned package, by style ("" for the names)."""
    paths = {}
    for done, pinned in enumerate((NAMES, *PICTURES)):
        report("fetch", done, len(PICTURES) + 1)
        if source is None:
            paths[pinned.style] = fetch(pinned, scratch)
        else:
            paths[pinned.style] = check_integrity(source / pinned.file_name, pinned)
    return paths


def join(paths: dict[str, Path], limit: int | None = None) -> list[Sticker]:
    """Every drawing that has a name, by style and then by code points."""
    names = read_names(read_json(paths[""], "package/en/data.json"), read_json(paths[""], "package/meta/groups.json"))
    stickers = []
    for source in PICTURES:
        # fluent ships no code points; its icons are named as those of its flat sibling
        named_by = paths["flat"] if source.style == "fluent" else paths[source.style]
        chars = {key(code): icon for code, icon in read_json(named_by, "package/chars.json").items()}
        icons = IconSet(read_json(paths[source.style], "package/icons.json"), chars)
        for code in sorted(names):
            svg = icons.svg(code)
            if svg is not None:
                stickers.append(Sticker(source, names[code], svg))
    if limit is None:
        return stickers
    chosen = sorted(range(len(stickers)), key=lambda i: _shuffle_key(stickers[i]))[:limit]
    return [stickers[i] for i in sorted(chosen)]


def _shuffle_key(sticker: Sticker) -> str:
    return hashlib.sha256(f"{sticker.source.style}/{sticker.name.hexcode}".encode()).hexdigest()


def draw(stickers: list[Sticker], folder: Path, size: int, workers: int, report: Progress) -> list[Record]:
    """Render all stickers into `folder`, drop test pictures that training shows, and return their records."""
    for style in {sticker.source.style for sticker in stickers}:
        (folder / "images" / style).mkdir(parents=True)
    files = [f"images/{sticker.source.style}/{sticker.name.hexcode}.png" for sticker in stickers]
    jobs = [Job(sticker.svg, folder / file, size) for sticker, file in zip(stickers, files, strict=True)]
    rendered = []
    for done in run(render, jobs, workers):
        rendered.append(done)
        report("draw", len(rendered), len(jobs))
    records = [record(*parts) for parts in zip(stickers, files, rendered, strict=True)]
    drop_near_duplicates(records, rendered)
    return records


def record(sticker: Sticker, file_name: str, rendered: Rendered) -> Record:
    """The metadata of one sticker."""
    name, source = sticker.name, sticker.source
    split = splits.DROPPED if rendered.empty else splits.sticker_split(source.style, name.base)
    return {
        "file_name": file_name,
        "text": name.label,
        "tags": list(name.tags),
        "style": source.style,
        "base": name.base,
        "hexcode": name.hexcode,
        "tone": name.tone if isinstance(name.tone, int) else list(name.tone),
        "group": name.group,
        "subgroup": name.subgroup,
        "split": split,
        **({"reason": "nothing can be seen in it"} if rendered.empty else {}),
        "kind": "sticker",
        "sha256": rendered.sha256,
        "source": source.spec,
        "author": source.author,
        "licence": source.licence,
        "consent": f"published by its author under {source.licence}",
    }


def drop_near_duplicates(records: list[Record], rendered: list[Rendered]) -> None:
    """Take held-out pictures out of the test which a training picture, or its mirror image, shows as well."""
    train = [i for i, record in enumerate(records) if record["split"] == splits.TRAIN]
    held = [i for i, record in enumerate(records) if record["split"] == splits.STYLE_HOLDOUT]
    if not train or not held:
        return
    thumbnails = np.stack([done.thumbnail for done in rendered])
    least, nearest = neardups.nearest(thumbnails[held], thumbnails[train])
    for i, difference, j in zip(held, least, nearest, strict=True):
        if difference <= neardups.THRESHOLD:
            twin = records[train[j]]["file_name"]
            records[i]["split"] = splits.DROPPED
            records[i]["reason"] = f"near-duplicate or mirror image of {twin} (they differ by {difference:.3f})"


def finish(folder: Path, records: list[Record], parameters: dict[str, Any]) -> dict[str, Any]:
    """Write metadata.jsonl, manifest.json and the card, and return the manifest."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = Counter(f"{record['kind']}/{record['style']}/{record['split']}" for record in records)
    manifest = {
        "sha256": manifest_hash(lines),
        "parameters": parameters,
        "counts": dict(sorted(counts.items())),
        "concepts": len({record["base"] for record in records if record["kind"] == "sticker"}),
        "rules": {
            **splits.RULES,
            "near_duplicates": f"largest local difference <= {neardups.THRESHOLD}, see data/neardups.py",
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / "README.md").write_text(card(manifest), encoding="utf-8")
    return manifest
