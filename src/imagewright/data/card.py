"""The dataset card, generated from the manifest so that it cannot disagree with the data."""

from __future__ import annotations

from collections import Counter
from typing import Any

CARD = """# imagewright stickers

{total:,} pictures, {size} x {size} pixels, RGBA: {stickers:,} emoji of {concepts:,} concepts in {styles}
drawing styles, and {scenes:,} scenes composed from the training stickers, with exact captions.

Manifest: `{sha256}` (sha256 over the sorted lines of `metadata.jsonl`).

## Pictures

| kind | style | split | pictures |
|---|---|---|---|
{rows}

## Sources, authors, licences

| style | package | licence | author |
|---|---|---|---|
{sources}

Each picture's own line in `metadata.jsonl` names its source, author, licence and consent basis. Pictures
in the style `openmoji` are share-alike and serve tests only: training refuses them. Twemoji and OpenMoji
ask for attribution: name the authors above wherever you show pictures made with this set.

## Splits

{rules}

`dropped`: held-out pictures that a training picture shows as well; each line gives its reason.

## How to make it again

`imagewright data stickers DIR --size {size} --scenes {scenes} --seed {seed}` fetches the packages above,
checks their pinned sha512 and writes the same files; `--from FOLDER` reads the tarballs from a folder
instead.

## Limits

Emoji are icons: one object, front view, plain colours. People carry five skin tones and few genders; the
drawings repeat their vendors' ideas of jobs, families and faces. Captions are English.
"""


def card(manifest: dict[str, Any]) -> str:
    """The card, in Markdown."""
    parameters, kinds = manifest["parameters"], Counter[str]()
    rows, styles = [], set()
    for name, count in manifest["counts"].items():
        kind, style, split = name.split("/")
        kinds[kind] += count
        styles |= {style} if kind == "sticker" else set()
        rows.append(f"| {kind} | {style} | {split} | {count:,} |")
    sources = [
        f"| {source['style'] or 'names'} | {source['package']} {source['version']} | {source['licence']} "
        f"| [{source['author']}]({source['url']}) |"
        for source in parameters["sources"]
    ]
    return CARD.format(
        total=sum(kinds.values()),
        stickers=kinds["sticker"],
        scenes=kinds["scene"],
        styles=len(styles),
        concepts=manifest["concepts"],
        size=parameters["size"],
        seed=parameters["seed"],
        sha256=manifest["sha256"],
        rows="\n".join(rows),
        sources="\n".join(sources),
        rules="\n".join(f"- `{name}`: `{rule}`" for name, rule in manifest["rules"].items()),
    )
