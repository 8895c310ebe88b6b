"""Whether a scene shows what was asked: its things, their colours, their number and how they stand.

A judge says it; of colours, which it names right in less than half of real scenes, also a rule on the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagewright.data.loader import CaptionedFolder
from imagewright.data.recolour import nearest_colour, to_oklab
from imagewright.data.scenes import RELATIONS
from imagewright.data.splits import TRAIN
from imagewright.evaluation.metrics import Estimate, wilson
from imagewright.refine.judge import Attributes, Bytes, border_alpha

BY_PIXELS = "scenes: colour by pixels"
Floats = NDArray[np.float64]
NAMED = 0.5  # of a thing's pixels have the colour that was asked for
APART = 0.1  # in OKLab: a pixel that far from the ground belongs to a thing
LEAST = 16  # pixels that a thing has at least
REAL = 200  # real scenes that the rule is tried on
OPPOSITE = {"right": "left", "below": "above"}
assert set(OPPOSITE) | set(OPPOSITE.values()) == set(RELATIONS)


def verdict(seen: Attributes, asked: Mapping[str, Any]) -> dict[str, bool]:
    """Which parts of a scene's record (`objects`, `relation`, `background`) a judge sees; only those that were asked.

    `object`: the one thing; `two objects`: both, in either order; `count`; `colour`: every colour that was asked, at
    the thing that it was asked for; `position`: both things in the right order along the right axis; `background`.
    """
    objects = list(asked["objects"])
    relation = asked.get("relation")
    if relation in OPPOSITE:
        objects, relation = objects[::-1], OPPOSITE[relation]
    names = tuple(o["label"] for o in objects)
    found: dict[str, bool] = {}
    if relation:
        found["two objects"] = sorted(seen.things) == sorted(names)
        found["position"] = seen.things == names and seen.relation == relation
    else:
        found["object"] = seen.things[0] == names[0]
    if objects[0]["count"] > 1:
        found["count"] = seen.count == objects[0]["count"]
    if any(o["colour"] for o in objects):
        colours = dict(zip(seen.things, seen.colours, strict=True))
        by_place = len(seen.things) == len(objects) == 1
        found["colour"] = all(
            (seen.colours[0] if by_place else colours.get(o["label"])) == o["colour"] for o in objects if o["colour"]
        )
    if asked.get("background"):
        found["background"] = seen.background == asked["background"]
    return found


def scene_verdicts(seen: Sequence[Attributes], asked: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """The share of right verdicts of each kind."""
    told: dict[str, list[bool]] = {}
    for one, record in zip(seen, asked, strict=True):
        for name, right in verdict(one, record).items():
            told.setdefault(name, []).append(right)
    return {name: wilson(sum(rights), len(rights)) for name, rights in sorted(told.items())}


def has_its_colours(rgba: Bytes, asked: Mapping[str, Any]) -> bool | None:
    """Whether at least half of the pixels of each thing that was asked for in a colour are nearest to that colour; None
    where none was. `rgba` (S, S, 4), premultiplied. Two things stand in their halves of the picture."""
    objects = list(asked["objects"])
    if not any(thing["colour"] for thing in objects):
        return None
    alpha = rgba[..., 3:] / 255.0
    rgb = rgba[..., :3] / 255.0 / np.maximum(alpha, 1e-6)
    thing = _things(rgb.clip(0, 1), rgba)
    names = nearest_colour(rgb.clip(0, 1))
    halves = _halves(asked.get("relation"), len(rgba))
    for half, told in zip(halves, objects, strict=True):
        if told["colour"]:
            seen = names[thing & half]
            if seen.size < LEAST or float((seen == told["colour"]).mean()) < NAMED:
                return False
    return True


def _things(rgb: Floats, rgba: Bytes) -> NDArray[np.bool_]:
    """(S, S) what does not belong to the ground: what is opaque, or where the ground is, too, what differs from it."""
    opaque = rgba[..., 3] > 127
    if border_alpha(rgba[None])[0] <= 0.5:
        return opaque
    lab = to_oklab(rgb)
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    apart: NDArray[np.bool_] = np.linalg.norm(lab - np.median(border, axis=0), axis=-1) > APART
    return opaque & apart


def _halves(relation: str | None, side: int) -> list[NDArray[np.bool_]]:
    """Where the things stand, (S, S) each: the only one anywhere, the first of two as `relation` says."""
    if relation is None:
        return [np.ones((side, side), bool)]
    first = np.arange(side) < side / 2
    if OPPOSITE.get(relation, relation) != relation:
        first = ~first
    across = OPPOSITE.get(relation, relation) == "left"
    mask = np.broadcast_to(first if across else first[:, None], (side, side))
    return [mask, ~mask]


def colours_by_pixels(pictures: Bytes, asked: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """The share of scenes (N, S, S, 4), of those with a colour, in which every thing has its own; nothing if none."""
    told = [has_its_colours(rgba, record) for rgba, record in zip(pictures, asked, strict=True)]
    right = [found for found in told if found is not None]
    return {BY_PIXELS: wilson(sum(right), len(right))} if right else {}


def real_colours(folder: CaptionedFolder, size: int) -> dict[str, Estimate]:
    """The same of scenes that were composed of real pictures."""
    rows = [i for i, r in enumerate(folder.records) if r["split"] == TRAIN and r.get("kind") == "scene"]
    rows = rows[:: max(1, len(rows) // REAL)][:REAL]
    return colours_by_pixels(folder.packed(size)[rows], [folder.records[i] for i in rows]) if rows else {}
