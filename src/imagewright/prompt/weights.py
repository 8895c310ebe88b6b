"""Weights of words: `(x:1.3)`, `(x)`, `[x]` and `cat::2 dog::1`, as a clean prompt and the weight of each part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from imagewright.errors import PromptError
from imagewright.request import Emphasis

STEP = 1.1  # that round brackets multiply a weight by, and square ones divide by
MOST = 10.0

_NUMBER = (
    r"[+-]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"  # of bounded length: or many digits would be tried again and again
)
_TOKEN = re.compile(rf"(\\[()\[\]{{}},|\\:_-])|(:\s*{_NUMBER}\s*\)|[()\[\]])|([^\\()\[\]:]+|\\|:)")
_PART = re.compile(rf"(?<!\\)::({_NUMBER})?(?=\s|$)")


@dataclass(frozen=True)
class Weighted:
    """Text without its brackets; `emphasis`: its parts whose weight is not 1. `negative`: parts that `::-x` sends to
    what the picture should not show."""

    text: str
    emphasis: tuple[Emphasis, ...] = ()
    negative: tuple[str, ...] = ()


def weighted(text: str) -> Weighted:
    """The clean text of a prompt with brackets, and of parts with `::`. Raises PromptError on weights above MOST.

    Parts are joined by commas; their weights count relative to each other, so their mean becomes 1.
    """
    parts = [(words, weight) for words, weight in _parts(text) if words]
    if len(parts) < 2 and all(weight >= 0 for _, weight in parts):
        return _joined([(_pieces(words), 1.0) for words, _ in parts])
    wanted = [(_pieces(words), weight) for words, weight in parts if weight > 0]
    total = sum(weight for _, weight in parts)
    if total <= 0 or not wanted:
        raise PromptError("The weights of the prompt's parts add up to nothing.", "Make their sum positive.")
    mean = sum(weight for _, weight in wanted) / len(wanted)
    found = _joined([(pieces, weight / mean) for pieces, weight in wanted])
    negative = tuple(weighted_text(words) for words, weight in parts if weight < 0)
    return Weighted(found.text, found.emphasis, negative)


def weighted_text(text: str) -> str:
    """The text of `_pieces`, without its weights."""
    return "".join(piece for piece, _ in _pieces(text)).strip()


def _parts(text: str) -> list[tuple[str, float]]:
    """The parts that `::` ends, each with its weight, and what is left, with weight 1."""
    found, start = [], 0
    for match in _PART.finditer(text):
        found.append((text[start : match.start()].strip(), _checked(float(match[1] or 1), least=-MOST)))
        start = match.end()
    rest = text[start:].strip()
    return [*found, (rest, 1.0)]


def _pieces(text: str) -> list[tuple[str, float]]:
    """Pieces of text with the product of the weights around each. Brackets without a partner are text."""
    tokens = [(match[1], match[2], match[3]) for match in _TOKEN.finditer(text)]
    partner = _partners([bracket for _, bracket, _ in tokens])
    weights, found = [1.0], []
    for index, (escaped, bracket, plain) in enumerate(tokens):
        if escaped or plain:
            found.append((escaped[1:] if escaped else plain, weights[-1]))
        elif index not in partner:
            found.append((bracket, weights[-1]))
        elif partner[index] > index:
            weights.append(weights[-1] * _factor(bracket, tokens[partner[index]][1]))
        else:
            weights.pop()
    return found


def _partners(brackets: Sequence[str]) -> dict[int, int]:
    """Which bracket belongs to which, both ways: each closing one to the last open of its kind inside the same pair."""
    found: dict[int, int] = {}
    opened: list[int] = []
    waiting = {"(": 0, "[": 0}
    for index, bracket in enumerate(brackets):
        if bracket in waiting:
            opened.append(index)
            waiting[bracket] += 1
        elif bracket and waiting[kind := "[" if bracket == "]" else "("]:
            while brackets[start := opened.pop()] != kind:
                waiting[brackets[start]] -= 1  # what was opened inside and never closed
            waiting[kind] -= 1
            found[start], found[index] = index, start
    return found


def _factor(opening: str, closing: str) -> float:
    if opening == "[":
        return 1 / STEP
    return STEP if closing == ")" else _checked(float(closing[1:-1]))


def _checked(weight: float, least: float = 0.0) -> float:
    if not least <= weight <= MOST:
        raise PromptError(f"A weight in the prompt is {weight:g}.", f"Use {least:g} to {MOST:g}.")
    return weight


def _joined(parts: Sequence[tuple[Sequence[tuple[str, float]], float]]) -> Weighted:
    """One text of parts, each (pieces, weight of the part), and where weights other than 1 are in it."""
    text, runs = "", []
    for pieces, own in parts:
        part = "".join(piece for piece, _ in pieces)
        if not part.strip():
            continue
        text = f"{text}, " if text else ""
        first, at = len(text), len(text) - (len(part) - len(part.lstrip()))
        text += part.strip()
        for piece, weight in pieces:
            start, at = at, at + len(piece)
            runs.append((max(start, first), min(at, len(text)), round(weight * own, 6)))
    return Weighted(text, _emphasis(text, runs))


def _emphasis(text: str, runs: Sequence[Emphasis]) -> tuple[Emphasis, ...]:
    """The runs whose weight is not 1, neighbours of one weight as one, without the white space around them."""
    merged: list[Emphasis] = []
    for start, end, weight in runs:
        if merged and merged[-1][1:] == (start, weight):
            start = merged.pop()[0]
        merged.append((start, end, _checked(weight)))
    found = []
    for start, end, weight in merged:
        words = text[start:end]
        start, end = start + len(words) - len(words.lstrip()), end - (len(words) - len(words.rstrip()))
        if weight != 1 and start < end:
            found.append((start, end, weight))
    return tuple(found)
