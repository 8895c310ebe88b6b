"""What a sentence asks of a picture besides what it shows: its size, format, seed, how many, and so on."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from imagewright.conversation.words import NUMBER, PICTURE, STYLES, count

_SHAPES = {
    "wide": (3, 2), "landscape": (3, 2), "horizontal": (3, 2), "panoramic": (2, 1), "panorama": (2, 1),
    "portrait": (2, 3), "tall": (2, 3), "vertical": (2, 3), "upright": (2, 3), "square": (1, 1),
}  # fmt: skip
_SHAPE = "|".join(_SHAPES)
_FORMATS = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "webp": "webp"}
_I = re.IGNORECASE
_SIZE = re.compile(
    r",? ?\b(?:(?:as|at|in|with|of)(?: an?)?(?: size(?: of)?)? )?(\d{2,4}) ?(?:x|×|by) ?(\d{2,4})"
    r"(?: ?(?:pixels|px))?\b",
    _I,
)
_SEED = re.compile(r",? ?\b(?:(?:and |but )?(?:with|using|use|from) )?(?:the )?seed (?:of |= ?)?(\d{1,10})\b", _I)
_FORMAT = re.compile(r",? ?\b(?:as|in)(?: an?)? \.?(jpe?g|png|webp)(?: (?:file|image|picture|format))?\b", _I)
_QUALITY = re.compile(
    r",? ?\b(?:in|with|at|as|of)?(?: ?\ban?)? ?\b(high|low|medium)[ -](?:quality|res(?:olution)?)"
    r"(?: (?:draft of|version of|picture of|image of))?\b",
    _I,
)
_CLEAR = re.compile(
    r",? (?:(?:but|and) )?(?:with|on|has|having) (?:an?|the)? ?transparent background\b"
    r"|,? (?:with|and) no background\b",
    _I,
)
_SHAPED = re.compile(
    rf"\b(an?|one)? ?\b({_SHAPE})(?:[ -](?:format|orientation|shaped?|mode))? ({PICTURE}) (?:of|with|showing) |"
    rf",? (?:in|as)(?: an?)? ({_SHAPE})(?: (?:format|orientation|mode|shape|picture|image))?$",
    _I,
)
_COUNTED = re.compile(rf"\b({NUMBER}) (?:(?:different|new|more|separate|other) )?{PICTURE} (?:of|with|showing) ", _I)
_OF = re.compile(
    rf"^(?:an?|one|the|another)? ?(?:new |different |nice )*{PICTURE},?(?: this time)? (?:of|with|showing) ", _I
)


def taken(text: str) -> tuple[str, dict[str, Any]]:
    """The words without what was asked besides, and that as fields of a request."""
    fields: dict[str, Any] = {}

    def take(pattern: re.Pattern[str]) -> re.Match[str] | None:
        nonlocal text
        found = pattern.search(text)
        if found:
            text = f"{text[: found.start()]} {text[found.end() :]}".strip(" ,")
        return found

    if found := take(_SIZE):
        fields["size"] = (int(found[1]), int(found[2]))
    if found := take(_SEED):
        fields["seed"] = int(found[1])
    if found := take(_FORMAT):
        fields["output_format"] = _FORMATS[found[1].lower()]
    if found := take(_QUALITY):
        fields["quality"] = found[1].lower()
    return re.sub(r"\s+", " ", text), fields


def taken_of_new(text: str, styles: Collection[str]) -> tuple[str, dict[str, Any]]:
    """The same for a new picture, of whose words more can be told apart: its shape, how many, its style."""
    fields: dict[str, Any] = {}
    if found := _SHAPED.search(text):
        fields["aspect"] = _SHAPES[(found[2] or found[4]).lower()]
        text = (text[: found.start()] + text[found.end() :]).strip()
    if found := _COUNTED.match(text):
        fields["n"] = count(found[1])
        text = text[found.end() :]
    if found := _CLEAR.search(text):
        fields["background"] = "transparent"
        text = (text[: found.start()] + text[found.end() :]).strip()
    text = _OF.sub("", text)
    text, style = styled(text, styles)
    return re.sub(r"\s+", " ", text).strip(" ,.:"), {**fields, **({"style": style} if style else {})}


def styled(text: str, styles: Collection[str]) -> tuple[str, str | None]:
    """The words without the style that they name, if it is one of `styles`."""
    known = [name for name, style in STYLES.items() if style in styles]
    for name in sorted(known, key=len, reverse=True):
        form = rf",? ?\b(?:(?:in|with|of|as) )?(?:an? |the )?{name}[ -]style(?:d)?\b|(?:^|,? )(?:in|as) {name}$"
        if found := re.search(form, text, re.IGNORECASE):
            before, behind = text[: found.start()], text[found.end() :]
            lead = "a " if re.match(r"^(?:an?) ", found[0].strip(" ,"), re.IGNORECASE) and behind.strip() else ""
            return f"{before} {lead}{behind.strip()}".strip(" ,"), STYLES[name]
    return text, None
