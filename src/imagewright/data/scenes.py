"""Scenes composed from training stickers, with exact captions and the truth about what stands where.

"a blue cat", "three red apples", "a fox to the left of a tree", "a frog above a car on a yellow
background". All objects of a scene come from one style. A scene is a pure function of (seed, index).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.data.captions import article
from imagewright.data.nouns import COLOURS_FIXED, COUNTLESS, NUMBERS, noun, plural
from imagewright.data.recolour import (
    COLOURS,
    NAMED_SHARE,
    from_oklab,
    mean_oklab,
    named_share,
    recolour,
    to_oklab,
)
from imagewright.data.render import decode, encode, run
from imagewright.data.splits import TRAIN, UNSEEN_PAIRS, unseen_pair

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Record = dict[str, Any]

KINDS = {"object": 0.25, "count": 0.25, "pair": 0.5}
COLOUR_SHARE = {"object": 0.75, "count": 0.5, "pair": 0.4}
BACKGROUND_SHARE = {"object": 0.35, "count": 0.2, "pair": 0.25}
RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
FAINTEST = 8  # alpha below this is cut away, so that a box ends where the eye sees the end
CONTRAST = 0.22  # least distance in OKLab between an object's mean colour and the background
GAP = 0.03  # of the side, between cells


@dataclass(frozen=True)
class Thing:
    """A nameable concept: `files` by style; `colours` and `counts` say what may be done with it."""

    name: str
    base: str
    files: dict[str, str]
    colours: bool
    counts: bool


@dataclass(frozen=True)
class Part:
    """`count` pictures of one thing in one colour (None: its own)."""

    thing: Thing
    colour: str | None = None
    count: int = 1

    @property
    def words(self) -> str:
        """ "a blue cat", "three red apples"."""
        name = self.thing.name if self.count == 1 else plural(self.thing.name)
        phrase = f"{self.colour} {name}" if self.colour else name
        return article(phrase) if self.count == 1 else f"{NUMBERS[self.count]} {phrase}"


@dataclass(frozen=True)
class Studio:
    """What all scenes of a set share: stickers are read from `folder`, scenes written to `out`; `credits` are
    the source, author and licence of each style. With `unseen`, all are pairs that training never shows."""

    folder: Path
    out: Path
    size: int
    seed: int
    things: tuple[Thing, ...]
    credits: dict[str, dict[str, str]]
    unseen: bool = False


def write_scenes(
    records: list[Record],
    folder: Path,
    *,
    count: int,
    size: int,
    seed: int,
    workers: int,
    report: Callable[[str, int, int], None],
) -> list[Record]:
    """Compose `count` scenes from the training stickers among `records`, and return their records."""
    if count == 0:
        return []
    (folder / "images" / "scenes").mkdir(parents=True)
    studio = Studio(folder, folder, size, seed, things(records), credits_of(records))
    scenes: list[Record] = []
    for scene in run(partial(compose, studio), range(count), workers):
        scenes.append(scene)
        report("scenes", len(scenes), count)
    return scenes


def write_unseen_scenes(data: Path, out: Path, *, count: int, size: int, seed: int = 0) -> list[Record]:
    """Compose a test from the sticker set in `data`: pairs that no training scene shows, with their truth.

    Pictures and metadata.jsonl go into the new folder `out`.
    """
    lines = (data / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["kind"] == "sticker"]
    (out / "images" / "scenes").mkdir(parents=True)
    studio = Studio(data, out, size, seed, things(records), credits_of(records), unseen=True)
    scenes = [compose(studio, index) for index in range(count)]
    told = "".join(json.dumps(scene, ensure_ascii=False) + "\n" for scene in scenes)
    (out / "metadata.jsonl").write_text(told, encoding="utf-8")
    return scenes


def things(records: list[Record]) -> tuple[Thing, ...]:
    """The nameable concepts among the training stickers, by base."""
    found: dict[str, Thing] = {}
    for record in records:
        name = noun(record["text"], record["subgroup"])
        if record["split"] != TRAIN or record["tone"] or record["hexcode"] != record["base"] or name is None:
            continue
        base = record["base"]
        files = found[base].files if base in found else {}
        files = {**files, record["style"]: record["file_name"]}
        found[base] = Thing(name, base, files, name not in COLOURS_FIXED, name not in COUNTLESS)
    return tuple(found[base] for base in sorted(found))


def credits_of(records: list[Record]) -> dict[str, dict[str, str]]:
    """Source, author and licence by style."""
    return {record["style"]: {word: record[word] for word in ("source", "author", "licence")} for record in records}


def compose(studio: Studio, index: int) -> Record:
    """Draw scene `index`, write its file and return its record."""
    for attempt in range(1000):
        rng = np.random.default_rng([studio.seed, index, attempt])
        scene = attempted(studio, rng)
        if scene is not None:
            break
    else:
        raise RuntimeError(f"no scene {index} in 1000 attempts")
    pixels, truth = scene
    png = encode(pixels)
    file_name = f"images/scenes/{index:06d}.png"
    (studio.out / file_name).write_bytes(png)
    credit = studio.credits[truth["style"]]
    return {
        "file_name": file_name,
        **truth,
        "split": UNSEEN_PAIRS if studio.unseen else TRAIN,
        "kind": "scene",
        "sha256": hashlib.sha256(png).hexdigest(),
        **credit,
        "consent": f"composed from pictures published by their author under {credit['licence']}",
    }


def attempted(studio: Studio, rng: np.random.Generator) -> tuple[Pixels, Record] | None:
    """One try at a scene: its pixels and its truth; None where it would not be what its caption says."""
    kind = "pair" if studio.unseen else str(rng.choice(list(KINDS), p=list(KINDS.values())))
    chosen = choose(studio, kind, rng)
    if chosen is None:
        return None
    parts, style = chosen
    relation = str(rng.choice(list(RELATIONS))) if kind == "pair" else None
    sprites = [sprite(studio.folder / part.thing.files[style], part.colour) for part in parts]
    for part, picture in zip(parts, sprites, strict=True):
        if part.colour and named_share(picture[::2, ::2], part.colour) < NAMED_SHARE:
            return None
    background = pick_background(kind, parts, sprites, rng)
    if background == "clash":
        return None
    canvas, boxes = paint(parts, sprites, relation, background, studio.size, rng)
    objects = [
        {"base": part.thing.base, "label": part.thing.name, "style": style, "colour": part.colour}
        | {"count": part.count, "box": own[0], "boxes": own}
        for part, own in zip(parts, boxes, strict=True)
    ]
    truth = {
        "text": sentence(parts, relation, background),
        "tags": [],
        "style": style,
        "base": "+".join(sorted(part.thing.base for part in parts)),
        "objects": objects,
        "relation": relation,
        "background": background,
    }
    return canvas, truth


def choose(studio: Studio, kind: str, rng: np.random.Generator) -> tuple[list[Part], str] | None:
    """One or two parts and a style that has drawn them all."""
    picks = rng.choice(len(studio.things), 2 if kind == "pair" else 1, replace=False)
    chosen = [studio.things[int(i)] for i in picks]
    styles = sorted(set.intersection(*(set(thing.files) for thing in chosen)))
    if not styles or (kind == "pair" and unseen_pair(chosen[0].base, chosen[1].base) != studio.unseen):
        return None
    if kind == "pair" and chosen[0].name == chosen[1].name:
        return None
    if kind == "count" and not chosen[0].counts:
        return None
    count = int(rng.integers(2, 5)) if kind == "count" else 1
    parts = []
    for thing in chosen:
        coloured = thing.colours and rng.random() < COLOUR_SHARE[kind]
        parts.append(Part(thing, str(rng.choice(list(COLOURS))) if coloured else None, count))
    return parts, str(rng.choice(styles))


def pick_background(kind: str, parts: list[Part], sprites: list[Pixels], rng: np.random.Generator) -> str | None:
    """A colour's name, None for a transparent background, or "clash" where an object would not stand out."""
    plain_single = kind == "object" and parts[0].colour is None
    if rng.random() >= BACKGROUND_SHARE[kind] and not plain_single:
        return None
    colour = str(rng.choice(list(COLOURS)))
    ground = to_oklab(np.array(COLOURS[colour]) / 255.0)
    faint = any(np.linalg.norm(mean_oklab(picture) - ground) < CONTRAST for picture in sprites)
    return "clash" if faint or colour in {part.colour for part in parts} else colour


def sentence(parts: list[Part], relation: str | None, background: str | None) -> str:
    """The exact caption."""
    words = f" {RELATIONS[relation]} ".join(part.words for part in parts) if relation else parts[0].words
    return f"{words} on {article(f'{background} background')}" if background else words


@lru_cache(maxsize=1024)
def cropped(path: Path) -> Pixels:
    """A sticker without its empty margin."""
    return trimmed(decode(path.read_bytes()))


def trimmed(pixels: Pixels) -> Pixels:
    """Without the rows and columns at the border where nothing can be seen."""
    seen = pixels[..., 3] >= FAINTEST
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    pixels = np.where(seen[..., None], pixels, 0).astype(np.uint8)
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def sprite(path: Path, colour: str | None) -> Pixels:
    """A sticker in its own or another colour, without margin."""
    return recolour(cropped(path), colour) if colour else cropped(path)


def paint(
    parts: list[Part],
    sprites: list[Pixels],
    relation: str | None,
    background: str | None,
    size: int,
    rng: np.random.Generator,
) -> tuple[Pixels, list[list[list[int]]]]:
    """The canvas (size, size, 4), straight alpha, and for each part the boxes of its pictures in pixels."""
    canvas = np.zeros((size, size, 4), np.uint8)
    if background:
        jitter = rng.normal(0, (0.012, 0.003, 0.003))
        canvas[..., :3] = np.rint(from_oklab(to_oklab(np.array(COLOURS[background]) / 255.0) + jitter) * 255)
        canvas[..., 3] = 255
    picture = Image.fromarray(canvas, "RGBA")
    cells = pair_cells(relation, rng) if relation else count_cells(parts[0].count, rng)
    pictures = [p for part, p in zip(parts, sprites, strict=True) for _ in range(part.count)]
    room = [(cell[2] - cell[0] - GAP, cell[3] - cell[1] - GAP) for cell in cells]
    filled = rng.uniform(0.82, 1.0) if len(cells) > 1 else rng.uniform(0.7, 0.95)
    boxes = []
    for p, cell, (width, height) in zip(pictures, cells, room, strict=True):
        scale = size * filled * min(width / p.shape[1], height / p.shape[0])
        small = resized(p, scale)
        x = placed(cell[0], cell[2], small.shape[1], size, rng)
        y = placed(cell[1], cell[3], small.shape[0], size, rng)
        picture.alpha_composite(Image.fromarray(small, "RGBA"), (x, y))
        boxes.append([x, y, x + small.shape[1], y + small.shape[0]])
    per_part, begin = [], 0
    for part in parts:
        per_part.append(boxes[begin : begin + part.count])
        begin += part.count
    return np.asarray(picture), per_part


def resized(pixels: Pixels, scale: float) -> Pixels:
    """LANCZOS on premultiplied alpha (Pillow premultiplies RGBA by itself), trimmed again."""
    height, width = (max(2, round(side * scale)) for side in pixels.shape[:2])
    small = Image.fromarray(pixels, "RGBA").resize((width, height), Image.Resampling.LANCZOS)
    return trimmed(np.asarray(small))


def placed(low: float, high: float, length: int, size: int, rng: np.random.Generator) -> int:
    """Where something `length` pixels long begins inside [low, high] of the side."""
    first, last = int(np.ceil((low + GAP / 2) * size)), int((high - GAP / 2) * size) - length
    middle = (first + last) / 2
    return round(middle + rng.uniform(-0.5, 0.5) * max(0, last - first))


def count_cells(count: int, rng: np.random.Generator) -> list[Box]:
    """Cells of the unit square for one to four pictures."""
    if count == 1:
        return [(0, 0, 1, 1)]
    if count == 2:
        return pair_cells(str(rng.choice(("left", "above"))), rng)
    top: list[Box] = [(0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5)]
    bottom: list[Box] = [(0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)]
    if count == 4:
        return top + bottom
    return [*top, (0.25, 0.5, 0.75, 1)] if rng.random() < 0.5 else [(0.25, 0, 0.75, 0.5), *bottom]


def pair_cells(relation: str, rng: np.random.Generator) -> list[Box]:
    """Two cells; the first stands `relation` the second. Across the relation both share the middle band."""
    cut, low = float(rng.uniform(0.44, 0.56)), float(rng.uniform(0.0, 0.3))
    first, second = (0.0, cut), (cut, 1.0)
    if relation in ("right", "below"):
        first, second = second, first
    band = (low, low + 0.7)
    if relation in ("left", "right"):
        return [(span[0], band[0], span[1], band[1]) for span in (first, second)]
    return [(band[0], span[0], band[1], span[1]) for span in (first, second)]
