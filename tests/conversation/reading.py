"""The situations in which utterances are said, and how a meaning is written: `action@picture: words | name=value ...`,
steps separated by " ; ". A picture is its number, + the one that the step before makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from imagewright.conversation.local import LocalPlanner
from imagewright.conversation.planner import Plan, Step
from imagewright.conversation.state import Conversation, Shown, Turn

STYLES = ("noto", "fluent", "flat", "twemoji")
SITUATIONS: dict[str, list[tuple[str, str, int | None, str, int]]] = {  # action, words, parent, shows, how many
    "": [],
    "cat": [("generate", "a cat", None, "a cat", 1)],
    "blue": [("generate", "a cat", None, "a cat", 1), ("edit", "make the cat blue", 1, "a blue cat", 1)],
    "long": [
        ("generate", "a cat", None, "a cat", 1),
        ("edit", "make the cat blue", 1, "a blue cat", 1),
        ("edit", "put it on a red background", 2, "a blue cat on a red background", 1),
    ],
    "pair": [("generate", "a cat to the left of a dog", None, "a cat to the left of a dog", 1)],
    "fixed": [
        ("generate", "a cat to the left of a dog", None, "a cat to the left of a dog", 1),
        ("edit", "make the cat blue", 1, "a blue cat to the left of a dog", 1),
    ],
    "sides": [
        ("generate", "a cat", None, "a cat", 1),
        ("edit", "add a tree on the left", 1, "a cat and a tree on the left", 1),
        ("generate", "a cat to the left of a dog", None, "a cat to the left of a dog", 1),
    ],
    "two": [("generate", "a cat", None, "a cat", 1), ("generate", "a red car", None, "a red car", 1)],
    "three": [("generate", "a fox in the snow", None, "a fox in the snow", 3)],
    "hat": [("generate", "a cat", None, "a cat", 1), ("edit", "add a hat", 1, "a cat and a hat", 1)],
}
TOPICS = {"a cat and a hat": "hat", "a cat and a tree on the left": "tree"}


def situation(name: str) -> Conversation:
    """A conversation in which so much was said."""
    turns = SITUATIONS["blue" if name == "undone" else name]
    now, blank = Conversation(), Image.new("RGB", (256, 256))
    for action, words, parent, shows, n in turns:
        ids = [str(len(now.pictures) + 1 + i) for i in range(n)]
        topic = TOPICS.get(shows, shows.split(" in ")[0].split(" to ")[0].split(" on ")[0].split()[-1])
        shown = tuple(
            Shown(id_, str(parent) if parent else None, action, words, shows, topic, (256, 256)) for id_ in ids
        )
        images = dict.fromkeys(ids, blank)
        now = now.then(Turn(words, {}, tuple(ids), "", (), shown, images, action))
    if name == "undone":
        now = now.then(Turn("undo", {}, ("1",), action="undo"))
    return now


def written(step: Step) -> str:
    """A step in the tables' words."""
    target = f"@{step.target}" if step.target else ""
    words = "" if step.action == "answer" or not step.words else f": {step.words.lower()}"
    values: dict[str, Any] = {**step.fields, **{k: v for k, v in step.how.items() if k not in ("thing", "strong")}}
    told = " ".join(f"{name}={_value(name, values[name])}" for name in sorted(values))
    return f"{step.action}{target}{words}{f' | {told}' if told else ''}"


def _value(name: str, value: Any) -> str:
    return (":" if name == "aspect" else "x").join(map(str, value)) if isinstance(value, tuple) else str(value)


def planned(name: str, utterance: str) -> Plan:
    """What the local planner makes of it."""
    return LocalPlanner().plan(utterance, situation(name), STYLES)


def wrong(rows: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str, str]]:
    """The rows that are read otherwise, with how."""
    found = []
    for name, utterance, meaning in rows:
        read = " ; ".join(written(step) for step in planned(name, utterance).steps)
        head, _, tail = meaning.partition(" | ") if " ; " not in meaning else (meaning, "", "")
        wanted = f"{head} | {' '.join(sorted(tail.split()))}" if tail else meaning
        if read != wanted:
            found.append((name, utterance, wanted, read))
    return found
