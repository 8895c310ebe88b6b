"""English, as far as a conversation about pictures needs it: numbers, colours, styles, what a caption shows.

No grammar of the language, only the forms that people use when they ask for pictures.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from PIL import ImageColor

from imagewright.data.captions import STYLE_WORDS
from imagewright.data.recolour import COLOURS

NUMBERS = {
    word: number
    for number, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1)
} | {"a couple of": 2, "a few": 3, "some": 4, "several": 4, "both": 2}
NUMBER = rf"(?:\d{{1,2}}|{'|'.join(NUMBERS)})"
ORDINALS = {
    word: number
    for number, words in enumerate(
        (
            *("first 1st", "second 2nd", "third 3rd", "fourth 4th", "fifth 5th"),
            *("sixth 6th", "seventh 7th", "eighth 8th", "ninth 9th", "tenth 10th"),
        ),
        1,
    )
    for word in words.split()
}
_SHADES = r"(?:(?:light|dark|bright|pale|deep|dull|warm|cold|neon|pastel)[ -])?"
_MORE_COLOURS = (
    *("grey", "violet", "turquoise", "cyan", "magenta", "teal", "gold", "golden", "silver", "beige", "navy", "lilac"),
    *("crimson", "scarlet", "maroon", "olive", "lime", "indigo", "ivory", "cream", "mint", "peach", "colourful"),
    *("colorful", "striped", "spotted"),
)
COLOUR = rf"{_SHADES}(?:{'|'.join((*COLOURS, *_MORE_COLOURS))}|#[0-9a-f]{{6}})"
PICTURE = (
    r"(?:pictures?|images?|photos?|drawings?|versions?|variants?|illustrations?|paintings?|icons?|stickers?|pics?)"
)
_LINKS = (
    *("to the left of", "to the right of", "on the left of", "on the right of", "in front of", "on top of"),
    *("next to", "above", "below", "under", "over", "behind", "beside", "near", "inside", "between", "in", "on"),
    *("at", "with", "without", "and", "wearing", "holding", "eating", "riding", "of", "by", "from", "into", "through"),
)
LINK = rf"(?:{'|'.join(_LINKS)})"
_ADJECTIVES = frozenset(
    [
        "big",
        "small",
        "large",
        "little",
        "tiny",
        "huge",
        "old",
        "young",
        "new",
        "cute",
        "happy",
        "sad",
        "angry",
        "funny",
        "tall",
        "short",
        "long",
        "fat",
        "thin",
        "round",
        "nice",
        "beautiful",
        "pretty",
        "simple",
        "single",
        "lone",
        "whole",
        "scary",
        "friendly",
        "sleepy",
        "fluffy",
        "shiny",
        "dark",
        "light",
        "bright",
    ]
)
_SIDES = frozenset(("left", "right", "top", "bottom", "middle", "center", "centre", "side", "corner", "front", "back"))
_ARTICLE = re.compile(rf"(?:a|an|the|some|my|his|her|their|this|that|another|{NUMBER}|\d+)\s+", re.IGNORECASE)
STYLES = {name: style for style, names in STYLE_WORDS.items() for name in names}
STYLE = "|".join(sorted(STYLES, key=len, reverse=True))


@cache
def name_words() -> frozenset[str]:
    """The words in these names."""
    return frozenset(word for name in names() for word in name.split())


@cache
def names() -> frozenset[str]:
    """The names of things that the judges know, in lower case."""
    lines = (files("imagewright") / "assets" / "names.txt").read_text("utf-8").splitlines()
    return frozenset(line.split(" ", 1)[1].lower() for line in lines if " " in line)


def count(text: str) -> int:
    """ "three", "3", "a few" as a number."""
    return int(text) if text.isdigit() else NUMBERS[text.lower()]


def ordinal(text: str) -> tuple[str, int] | None:
    """What kind of place a reference has: ("one", 2) for "the second one", ("number", 2) for "picture 2", also
    "last", "previous" and "original"; None where it has none."""
    if found := re.search(rf"(?:{PICTURE}|number|no\.?|#)\s*#?(\d{{1,4}}|{'|'.join(list(NUMBERS)[:10])})\b", text):
        return "number", count(found[1]) if len(found[1]) < 3 else int(found[1])
    if re.search(r"\b(?:original|initial)\b", text):
        return "original", 0
    if re.search(r"\b(?:previous|before|earlier|old)\b", text):
        return "previous", 0
    if found := re.search(rf"\b({'|'.join(ORDINALS)})\b", text):
        return "one", ORDINALS[found[1]]
    return ("last", 0) if re.search(r"\b(?:last|latest|current|newest)\b", text) else None


def hex_of(colour: str) -> str | None:
    """A colour's name ("light blue") as COLOURS or as #rrggbb; None where it is no one colour (striped)."""
    name = colour.lower().replace("grey", "gray")
    if name in COLOURS or name.startswith("#"):
        return name
    try:
        red, green, blue = ImageColor.getrgb(re.sub(r"[ -]", "", name).replace("bright", ""))[:3]
    except ValueError:
        return None
    return f"#{red:02x}{green:02x}{blue:02x}"


def parts(caption: str) -> list[str]:
    """The noun phrases of a caption: "a red fox in the snow" -> "a red fox", "the snow"."""
    found = re.split(rf"\s*(?:[,;.:]|\b{LINK}\b)\s*", caption, flags=re.IGNORECASE)
    return [part for part in found if part]


def head(phrase: str) -> str:
    """The thing that a noun phrase names: "a big red fox" -> "fox", "two hot dogs" -> "hot dogs"."""
    bare = phrase.strip()
    while (found := _ARTICLE.match(bare)) is not None:
        bare = bare[found.end() :]
    words = re.sub(rf"\b{COLOUR}\b\s*(?=\S)", "", bare, flags=re.IGNORECASE).split()
    while len(words) > 1 and words[0].lower() in _ADJECTIVES:
        words = words[1:]
    for length in (3, 2):
        ending = " ".join(words[-length:])
        if len(words) >= length and singular(ending.lower()) in names():
            return ending
    doing = next((i for i, word in enumerate(words) if i and re.fullmatch(r"[a-z]{2,}ing", word)), len(words))
    return words[doing - 1] if words else ""


def things(caption: str) -> list[str]:
    """What a caption shows: "a cat to the left of a dog" -> ["cat", "dog"]."""
    return [thing for thing in map(head, parts(caption)) if thing and thing.lower() not in _SIDES]


def subject(caption: str) -> str:
    """The thing that a caption is about."""
    return next(iter(things(caption)), "")


def singular(name: str) -> str:
    """A name without the s of its plural, roughly: to compare names by."""
    if name.endswith("ies") and len(name) > 4:
        return name[:-3] + "y"
    if name.endswith(("ses", "xes", "ches", "shes")):
        return name[:-2]
    return name[:-1] if name.endswith("s") and not name.endswith("ss") and len(name) > 3 else name


def same(one: str, other: str) -> bool:
    """Whether two names are of the same thing: "cats", "Cat"."""
    return singular(one.lower()) == singular(other.lower())


def has_thing(caption: str, words: str) -> bool:
    """Whether a caption shows what words name: "the cat picture", "the dog"."""
    wanted = re.sub(rf"\b(?:{PICTURE}|ones?|with)\b", " ", words.lower())
    thing = head(wanted)
    return bool(thing) and any(same(thing, one) for one in things(caption))


def caption_of(prompt: str) -> str:
    """A prompt as a caption: one line, no parameters."""
    return " ".join(prompt.split(" --")[0].split())
