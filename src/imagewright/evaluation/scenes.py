"""Whether a scene shows what was asked: its things, their colours, their number and how they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imagewright.data.scenes import RELATIONS
from imagewright.evaluation.metrics import Estimate, wilson
from imagewright.refine.judge import Attributes

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
