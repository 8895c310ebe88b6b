"""Instruction edits for nothing: two scenes that differ in one thing, and the words that lead from one to the other.

"make the cat blue", "put it on a yellow background", "replace the dog with a fox", "add a tree to the left of the
house", "remove the tree", "in the flat style". Both pictures are composed from training stickers with the same places,
so all that the instruction does not name stays where and as it is. An edit is a pure function of (seed, index).

Records: the picture before is an ordinary scene; the one after is of kind "edit" and has `before` (the file name of the
other) and `edit` (kind, instruction, and `changed`: which of its objects differ, -1 for the background).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from imagewright.data.captions import STYLE_WORDS, article
from imagewright.data.recolour import COLOURS, NAMED_SHARE, from_oklab, mean_oklab, named_share, to_oklab
from imagewright.data.render import encode, run
from imagewright.data.scenes import (
    CONTRAST,
    GAP,
    RELATIONS,
    Box,
    Part,
    Pixels,
    Record,
    Studio,
    Thing,
    count_cells,
    pair_cells,
    placed,
    resized,
    sprite,
)
from imagewright.data.splits import TRAIN, UNSEEN_PAIRS, unseen_pair

KINDS = {"colour": 0.24, "background": 0.16, "replace": 0.2, "add": 0.12, "remove": 0.12, "style": 0.16}
PAIR_SHARE = 0.6  # of the edits that one object is enough for
COLOUR_SHARE = 0.35
BACKGROUND_SHARE = 0.4
# fmt: off
TEMPLATES = {
    "colour": ("make {the} {colour}", "turn {the} {colour}", "change {the} to {colour}", "paint {the} {colour}",
               "make {the} {colour} instead", "color {the} {colour}"),
    "put": ("put it on {ground}", "change the background to {colour}", "make the background {colour}",
            "give it {ground}", "on {ground}"),
    "clear": ("remove the background", "make the background transparent", "no background", "delete the background"),
    "replace": ("replace {the} with {new}", "turn {the} into {new}", "change {the} to {new}", "swap {the} for {new}",
                "make {the} {new}"),
    "add": ("add {new} {where}", "put {new} {where}", "place {new} {where}"),
    "remove": ("remove {the}", "delete {the}", "take {the} away", "erase {the}", "without {the}"),
    "style": ("in the {style} style", "make it {style} style", "redraw it in {style} style",
              "change the style to {style}", "in {style} style"),
}
# fmt: on
SIDES = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}


@dataclass(frozen=True)
class Standing:
    """A part in its place: a cell of the unit square, the share of it that is filled, and a key for the rest."""

    part: Part
    cell: Box
    filled: float
    key: int


@dataclass(frozen=True)
class Scene:
    """What stands where, in which style, on which background (a colour's name; None: transparent)."""

    objects: tuple[Standing, ...]
    style: str
    background: str | None
    relation: str | None
    tint: int  # chooses the background's shade

    @property
    def text(self) -> str:
        """The exact caption."""
        words = [one.part.words for one in self.objects]
        told = f" {RELATIONS[self.relation]} ".join(words) if self.relation and len(words) == 2 else words[0]
        return f"{told} on {article(f'{self.background} background')}" if self.background else told


@dataclass(frozen=True)
class Edit:
    """Two scenes, the words that lead from the first to the second, and what differs (see above)."""

    kind: str
    before: Scene
    after: Scene
    instruction: str
    changed: tuple[int, ...]


def write_edits(studio: Studio, *, count: int, workers: int, report: Callable[[str, int, int], None]) -> list[Record]:
    """Compose `count` edits into `studio.out` and return their records, two each."""
    if count == 0:
        return []
    (studio.out / "images" / "edits").mkdir(parents=True)
    records: list[Record] = []
    for done, pair in enumerate(run(partial(compose, studio), range(count), workers), start=1):
        records += pair
        report("edits", done, count)
    return records


def compose(studio: Studio, index: int) -> tuple[Record, Record]:
    """Draw edit `index`, write its two files and return their records."""
    for attempt in range(1000):
        rng = np.random.default_rng([studio.seed, 1, index, attempt])
        edit = attempted(studio, rng)
        if edit is None:
            continue
        before, after = painted(studio, edit.before), painted(studio, edit.after)
        if before is not None and after is not None:
            break
    else:
        raise RuntimeError(f"no edit {index} in 1000 attempts")
    names = [f"images/edits/{index:06d}-{when}.png" for when in ("before", "after")]
    first = _record(studio, edit.before, *before, names[0]) | {"kind": "scene"}
    told = {"kind": edit.kind, "instruction": edit.instruction, "changed": list(edit.changed)}
    second = _record(studio, edit.after, *after, names[1]) | {"kind": "edit", "before": names[0], "edit": told}
    return first, second


def _record(studio: Studio, scene: Scene, pixels: Pixels, boxes: list[list[int]], name: str) -> Record:
    png = encode(pixels)
    (studio.out / name).write_bytes(png)
    credit = studio.credits[scene.style]
    objects = [
        {"base": one.part.thing.base, "label": one.part.thing.name, "style": scene.style, "colour": one.part.colour}
        | {"count": 1, "box": box, "boxes": [box]}
        for one, box in zip(scene.objects, boxes, strict=True)
    ]
    return {
        "file_name": name,
        "text": scene.text,
        "tags": [],
        "style": scene.style,
        "base": "+".join(sorted(one.part.thing.base for one in scene.objects)),
        "objects": objects,
        "relation": scene.relation if len(objects) == 2 else None,
        "background": scene.background,
        "split": UNSEEN_PAIRS if studio.unseen else TRAIN,
        "sha256": hashlib.sha256(png).hexdigest(),
        **credit,
        "consent": f"composed from pictures published by their author under {credit['licence']}",
    }


def painted(studio: Studio, scene: Scene) -> tuple[Pixels, list[list[int]]] | None:
    """The canvas (size, size, 4), straight alpha, and the box of each object in pixels; None where it would not show
    what its caption says."""
    size = studio.size
    canvas = np.zeros((size, size, 4), np.uint8)
    ground = None if scene.background is None else to_oklab(np.array(COLOURS[scene.background]) / 255.0)
    if ground is not None:
        shade = np.random.default_rng(scene.tint).normal(0, (0.012, 0.003, 0.003))
        canvas[..., :3] = np.rint(from_oklab(ground + shade) * 255)
        canvas[..., 3] = 255
    picture = Image.fromarray(canvas, "RGBA")
    boxes = []
    for one in scene.objects:
        look = sprite(studio.folder / one.part.thing.files[scene.style], one.part.colour)
        if one.part.colour and named_share(look[::2, ::2], one.part.colour) < NAMED_SHARE:
            return None
        if ground is not None and np.linalg.norm(mean_oklab(look) - ground) < CONTRAST:
            return None
        rng = np.random.default_rng(one.key)
        left, top, right, bottom = one.cell
        room = min((right - left - GAP) / look.shape[1], (bottom - top - GAP) / look.shape[0])
        small = resized(look, size * one.filled * room)
        x, y = placed(left, right, small.shape[1], size, rng), placed(top, bottom, small.shape[0], size, rng)
        picture.alpha_composite(Image.fromarray(small, "RGBA"), (x, y))
        boxes.append([x, y, x + small.shape[1], y + small.shape[0]])
    return np.asarray(picture), boxes


def attempted(studio: Studio, rng: np.random.Generator) -> Edit | None:
    """One try at an edit; None where these things cannot be edited so."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    pair = kind in ("add", "remove") or (studio.unseen and kind != "replace") or rng.random() < PAIR_SHARE
    scene = _scene(studio, pair, rng)
    if scene is None:
        return None
    made: Edit | None = _MAKERS[kind](studio, scene, rng)
    return made


def _scene(studio: Studio, pair: bool, rng: np.random.Generator) -> Scene | None:
    picks = rng.choice(len(studio.things), 2 if pair else 1, replace=False)
    chosen = [studio.things[int(i)] for i in picks]
    styles = sorted(set.intersection(*(set(thing.files) for thing in chosen)))
    if not styles or (pair and not _may_meet(studio, *chosen)):
        return None
    relation = str(rng.choice(list(RELATIONS))) if pair else None
    cells = pair_cells(relation, rng) if relation else count_cells(1, rng)
    objects = tuple(
        Standing(
            Part(thing, _colour(rng) if thing.colours and rng.random() < COLOUR_SHARE else None),
            cell,
            float(rng.uniform(0.82, 1.0) if pair else rng.uniform(0.7, 0.95)),
            int(rng.integers(2**31)),
        )
        for thing, cell in zip(chosen, cells, strict=True)
    )
    background = _colour(rng) if rng.random() < BACKGROUND_SHARE else None
    return Scene(objects, str(rng.choice(styles)), background, relation, int(rng.integers(2**31)))


def _may_meet(studio: Studio, a: Thing, b: Thing) -> bool:
    return a.name != b.name and unseen_pair(a.base, b.base) == studio.unseen


def _colour(rng: np.random.Generator) -> str:
    return str(rng.choice(list(COLOURS)))


def _other(rng: np.random.Generator, *taken: str | None) -> str:
    return str(rng.choice([colour for colour in COLOURS if colour not in taken]))


def _say(kind: str, rng: np.random.Generator, **words: str) -> str:
    return str(rng.choice(TEMPLATES[kind])).format(**words)


def _the(scene: Scene, which: int, rng: np.random.Generator) -> str:
    """ "the cat", "the red cat", or "it" where there is one thing only."""
    part = scene.objects[which].part
    if len(scene.objects) == 1 and rng.random() < 0.35:
        return "it"
    return f"the {part.colour} {part.thing.name}" if part.colour and rng.random() < 0.4 else f"the {part.thing.name}"


def _with(scene: Scene, which: int, part: Part) -> Scene:
    objects = list(scene.objects)
    objects[which] = replace(objects[which], part=part)
    return replace(scene, objects=tuple(objects))


def _recoloured(studio: Studio, scene: Scene, rng: np.random.Generator) -> Edit | None:
    which = int(rng.integers(len(scene.objects)))
    part = scene.objects[which].part
    if not part.thing.colours:
        return None
    colour = _other(rng, part.colour, scene.background)
    after = _with(scene, which, replace(part, colour=colour))
    return Edit("colour", scene, after, _say("colour", rng, the=_the(scene, which, rng), colour=colour), (which,))


def _regrounded(studio: Studio, scene: Scene, rng: np.random.Generator) -> Edit | None:
    if scene.background and rng.random() < 0.35:
        return Edit("background", scene, replace(scene, background=None), _say("clear", rng), (-1,))
    colour = _other(rng, scene.background)
    words = _say("put", rng, ground=article(f"{colour} background"), colour=colour)
    return Edit("background", scene, replace(scene, background=colour), words, (-1,))


def _replaced(studio: Studio, scene: Scene, rng: np.random.Generator) -> Edit | None:
    which = int(rng.integers(len(scene.objects)))
    old, new = scene.objects[which].part.thing, studio.things[int(rng.integers(len(studio.things)))]
    others = [one.part.thing for i, one in enumerate(scene.objects) if i != which]
    if scene.style not in new.files or not all(_may_meet(studio, new, other) for other in (old, *others)):
        return None
    part = Part(new, _colour(rng) if new.colours and rng.random() < COLOUR_SHARE else None)
    words = _say("replace", rng, the=_the(scene, which, rng), new=part.words)
    return Edit("replace", scene, _with(scene, which, part), words, (which,))


def _added(studio: Studio, scene: Scene, rng: np.random.Generator) -> Edit | None:
    assert scene.relation is not None
    before = replace(scene, objects=scene.objects[1:])
    where = SIDES[scene.relation]
    if rng.random() < 0.5:
        where = f"{RELATIONS[scene.relation]} the {scene.objects[1].part.thing.name}"
    return Edit("add", before, scene, _say("add", rng, new=scene.objects[0].part.words, where=where), (0,))


def _removed(studio: Studio, scene: Scene, rng: np.random.Generator) -> Edit | None:
    which = int(rng.integers(2))
    after = replace(scene, objects=(scene.objects[1 - which],))
    return Edit("remove", scene, after, _say("remove", rng, the=_the(scene, which, rng)), ())


def _restyled(studio: Studio, scene: Scene, rng: np.random.Generator) -> Edit | None:
    shared = set.intersection(*(set(one.part.thing.files) for one in scene.objects)) - {scene.style}
    if not shared:
        return None
    style = str(rng.choice(sorted(shared)))
    words = _say("style", rng, style=str(rng.choice(STYLE_WORDS[style])))
    everything = tuple(range(len(scene.objects)))
    return Edit("style", scene, replace(scene, style=style), words, everything)


_MAKERS: dict[str, Any] = {
    "colour": _recoloured,
    "background": _regrounded,
    "replace": _replaced,
    "add": _added,
    "remove": _removed,
    "style": _restyled,
}
