"""Captions, drawn anew each time a picture is seen: label, label and tags, tags, or a sentence with the
style.

Short captions seen again and again are the largest single loss of quality known for icon data, hence the
variety.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

STYLE_WORDS = {
    "noto": ("noto", "noto shaded"),
    "fluent": ("fluent", "glossy 3d"),
    "flat": ("flat", "flat vector"),
    "twemoji": ("twemoji", "twemoji cartoon"),
    "openmoji": ("openmoji", "outlined openmoji"),
}
TEMPLATES = (
    "{label}, {style} style",
    "{label} in {style} style",
    "a {style} emoji of {article_label}",
    "a {style} icon of {article_label}",
    "an icon of {article_label}",
    "a picture of {article_label}",
    "a sticker of {article_label}",
    "{label} emoji",
    "{article_label}",
)
NO_ARTICLE = re.compile(
    r"^(?:\d|.*(?:[^su]s|people|arts)$)|^(?:no |Mrs?\.? |Santa|the |people |men |women )", re.IGNORECASE
)
SILENT_OR_YOU = re.compile(r"^(?:uni|use|ewe|eu|ur[ae]n|one\b|once|u-)", re.IGNORECASE)


def article(noun: str) -> str:
    """`noun` with "a" or "an" as it sounds."""
    vowel = noun[:1].lower() in "aeiou" and not SILENT_OR_YOU.match(noun)
    return f"{'an' if vowel or noun.lower().startswith(('hour', 'heir')) else 'a'} {noun}"


def with_article(label: str) -> str:
    """`label` with its article, where English wants one."""
    if label.startswith("flag of "):
        return f"the {label}"
    return label if NO_ARTICLE.match(label) else article(label)


def natural(label: str) -> str:
    """emojibase's label as words: "man: light skin tone, red hair" -> "man with light skin and red hair"."""
    head, colon, rest = label.partition(": ")
    if not colon:
        return label
    parts = rest.split(", ")
    tones = [part.removesuffix(" skin tone") for part in parts if part.endswith(" skin tone")]
    traits = [part for part in parts if part.endswith((" hair", "bald", "beard"))]
    others = [part for part in parts if not part.endswith(" skin tone") and part not in traits]
    if head == "flag":
        return f"flag of {rest}"
    words = head
    if others:
        words += {"family": " of ", "keycap": " "}.get(head, ", ") + listed(others)
    having = [f"{listed(tones)} skin"] if tones else []
    having += [trait.replace("bald", "no hair") for trait in traits]
    return f"{words} with {listed(having)}" if having else words


def listed(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def caption(record: dict[str, Any], rng: np.random.Generator) -> str:
    """One caption for a metadata record (of an edit: its instruction); the same for the same state of `rng`."""
    if "edit" in record:
        instruction = str(record["edit"]["instruction"])
        return instruction[:1].upper() + instruction[1:] if rng.random() < 0.2 else instruction
    styles = STYLE_WORDS.get(record.get("style", ""), ())
    if record.get("kind") == "sticker":
        text = _sticker(record, styles, rng)
        return text.lower() if rng.random() < 0.5 else text
    text = str(record["text"])
    if styles and rng.random() < 0.3:
        return f"{text}, {rng.choice(styles)} style"
    tags = record.get("tags")
    return f"{text}, {', '.join(_some(tags, 3, rng))}" if tags and rng.random() < 0.2 else text


def _sticker(record: dict[str, Any], styles: tuple[str, ...], rng: np.random.Generator) -> str:
    label = natural(record["text"])
    tags = [tag for tag in record["tags"] if tag.lower() != label.lower()]
    draw = rng.random()
    if draw < 0.35 or not styles:
        return label
    if draw < 0.60 and tags:
        return ", ".join([label, *_some(tags, 3, rng)])
    if draw < 0.68 and len(tags) >= 3:
        return " ".join(_some(tags, 4, rng, at_least=2))
    return str(rng.choice(TEMPLATES)).format(label=label, article_label=with_article(label), style=rng.choice(styles))


def _some(tags: list[str], at_most: int, rng: np.random.Generator, at_least: int = 1) -> list[str]:
    """Between `at_least` and `at_most` of the tags, in a random order."""
    count = min(len(tags), int(rng.integers(at_least, at_most + 1)))
    return [tags[i] for i in rng.permutation(len(tags))[:count]]
