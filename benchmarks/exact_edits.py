"""How well a change is made by a tool, in its place, and by the model that ships: python benchmarks/exact_edits.py DATA

DATA is a sticker set (imagewright data stickers DATA). For colours, removals, replacements and backgrounds of composed
edits whose result is known: how often the change is there, and what was not named looks as before.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from imagewright import tools, verbs
from imagewright.conversation import changes
from imagewright.conversation.words import things
from imagewright.errors import ImagewrightError
from imagewright.evaluation.edits import Triple, edited, is_done, triples, what_stays
from imagewright.refine.judge import Judges

KINDS = ("colour", "background", "remove", "replace")


def by_tool(one: Triple) -> Image.Image | None:
    """The picture with the change made in its place; None where that cannot be."""
    shown = things(one.given["text"])
    change = changes.read(one.instruction, shown[0], shown)
    assert change is not None, one.instruction
    try:
        if change.kind == "clear":
            return tools.remove_background(one.before)[0]
        if change.kind == "background":
            return tools.set_background(one.before, change.value)[0]
        if change.kind == "colour":
            return tools.recolor(one.before, change.value, select=change.thing)[0]
        words = change.value if change.kind == "replace" else None
        return verbs.fill(one.before, words, select=change.thing, seed=1)[0]
    except ImagewrightError:
        return None


def main(data: Path, count: int) -> None:
    """Prints the shares."""
    judges, seen = Judges(), Counter[tuple[str, str]]()
    asked = [one for one in triples(data, count) if one.kind in KINDS]
    for one, drawn in zip(asked, edited(None, asked), strict=True):
        made = by_tool(one)
        seen[one.kind, "edits"] += 1
        seen[one.kind, "not found"] += made is None
        for who, picture in (("model", drawn), ("tool", made or drawn)):
            stays = what_stays(picture, one).values()
            seen[one.kind, f"{who} done"] += is_done(picture, one, judges)
            seen[one.kind, f"{who} kept"] += sum(stays)
            seen[one.kind, f"{who} things"] += len(stays)
    for kind in KINDS:
        edits = max(1, seen[kind, "edits"])
        shares = [
            f"{who}: done {seen[kind, f'{who} done'] / edits:.0%}, "
            f"kept {seen[kind, f'{who} kept'] / max(1, seen[kind, f'{who} things']):.0%}"
            for who in ("model", "tool")
        ]
        print(f"{kind} ({seen[kind, 'edits']}, {seen[kind, 'not found']} not found)  {'  '.join(shares)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
