"""What the user is told of a plan: what was understood, in a sentence, and what was not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from imagewright.conversation.planner import PREVIOUS, Step
from imagewright.conversation.state import Conversation
from imagewright.conversation.words import STYLE, name_words, singular

ENGLISH = 0.3  # share of a sentence's words that are known, at least, if it is English
_COMMON = frozenset(
    (
        *("a", "an", "the", "of", "in", "on", "at", "to", "with", "and", "or", "is", "are", "it", "this", "that", "no"),
        *("not", "as", "by", "for", "from", "into", "under", "above", "left", "right", "make", "draw", "put", "add"),
        *("picture", "image", "style", "art", "one", "two", "three", "big", "small", "red", "green", "blue", "yellow"),
        *("black", "white", "pink", "purple", "brown", "orange", "gray", "grey"),
    )
)


def told(steps: Sequence[Step], conversation: Conversation) -> str:
    """The steps in a sentence."""
    return " Then: ".join(_one(step, conversation) for step in steps)


def _one(step: Step, conversation: Conversation) -> str:
    which = _which(step.target, conversation)
    n = step.fields.get("n", 1)
    more = ", ".join(f"{name} {_value(value)}" for name, value in step.fields.items() if name not in ("n", "style"))
    more = f" ({more})" if more else ""
    style = f" in {step.fields['style']} style" if "style" in step.fields else ""
    if "like" in step.how:
        style = f" in the style of {_which(step.how['like'], conversation)}"
    texts = {
        "generate": f"{'A new picture' if n == 1 else f'{n} new pictures'}: {step.words}{style}{more}.",
        "edit": f"I change {which}: {step.words}{more}.",
        "undo": f"{'Forth' if step.target in conversation.future else 'Back'} to {which}.",
        "vary": f"{'One' if n == 1 else n} more like {which}{more}.",
        "restyle": f"{_first(which)} again{style}{more}.",
        "upscale": f"{_first(which)}, {step.how.get('factor', 2)} times as large.",
        "expand": f"{_first(which)} on a larger canvas ({_sides(step)}).",
        "remove_background": f"{_first(which)} without its background.",
        "answer": f"A question about {which}." if step.target else "No picture to make.",
    }
    return texts[step.action]


def _which(target: str | None, conversation: Conversation) -> str:
    if target is None or target == PREVIOUS:
        return "it"
    return f"picture {conversation.number(target)}"


def _first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _value(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _sides(step: Step) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in step.how.items())


def doubts(text: str, steps: Sequence[Step], styles: Sequence[str]) -> Iterator[str]:
    """What may have been meant otherwise, or cannot be done."""
    for step in steps:
        if step.action == "edit" and step.words.startswith("change the style to ") and styles:
            yield f"The model knows the styles {', '.join(styles)}; of others it can only try the words."
    taken_for = next((step.action for step in steps if step.action in ("generate", "edit")), None)
    words = re.findall(r"[^\W\d_]+", text.lower())
    if taken_for and sum(map(_known, words)) < ENGLISH * len(words):
        what = "a new picture" if taken_for == "generate" else "a change"
        yield f"I only understand English, and took your words for {what}."


def _known(word: str) -> bool:
    return word in _COMMON or bool(re.fullmatch(STYLE, word)) or singular(word) in name_words()
