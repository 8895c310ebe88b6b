"""Instructions that change a picture: read into what they say, written in the words that the model was trained on.

"could the cat be blue?" and "paint it blue" both become "make the cat blue" (data/edits.py has the model's templates;
any other model that follows instructions understands them as well). What is read by none of the forms stays as it was
said, with "it" replaced by the thing that is meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from imagewright.conversation.forms import ADD, FORMS, IT, PREPOSITION, SIDE, SOME, SURFACES, VERBS, Kind
from imagewright.conversation.words import COLOUR, LINK, STYLE, STYLES, head, parts, same, things
from imagewright.data.captions import article

_WHICH = re.compile(
    r"^the (?:(?P<a>left|right|top|bottom|upper|lower)(?:most)?(?: (?P<thing>.+))?"
    r"|(?P<rest>.+?) (?:on|at|to) the (?P<b>left|right|top|bottom)(?: side)?)$"
)
_SIDES = {"upper": "top", "lower": "bottom"}
_BESIDE = re.compile(
    r"(?P<scene>.+?) (?:(?:to|on) the (?P<side>left|right) of|(?P<up>above|over)|(?P<down>below|under)) (?P<other>.+)"
)


@dataclass(frozen=True)
class Change:
    """What an instruction says. `thing`: what changes ("the cat"); `value`: the colour, the new thing, the place or
    the style; `where`: left, right, top or bottom, where that says which thing is meant."""

    kind: Kind
    thing: str = ""
    value: str = ""
    where: str = ""

    @property
    def words(self) -> str:
        """The instruction for a model."""
        return {
            "colour": f"make {self.thing} {self.value}",
            "background": f"put it on {article(f'{self.value} background')}",
            "place": f"put it {self.value}",
            "clear": "remove the background",
            "replace": f"replace {self.thing} with {self.value}",
            "add": f"add {self.value}",
            "remove": f"remove {self.thing}",
            "style": f"change the style to {self.value}",
            "free": self.value,
        }[self.kind]

    def about(self, thing: str, where: str) -> Change:
        """The same of another thing."""
        return replace(self, thing=thing, where=where)


def read(text: str, topic: str, known: list[str]) -> Change | None:
    """The change that an instruction asks for; None where it is none. "it" is the `topic`; `known` are the things in
    the picture."""
    for kind, form in FORMS:
        if found := form.match(text):
            given = found.groupdict()
            change = _read(kind, {name: value for name, value in given.items() if value}, topic, known)
            if change is not None:
                return change
    if added := _added(text, topic, known):
        return added
    if text.split(" ")[0].lower() in VERBS and not re.match(rf"^(?:make|give|have|show) {SOME}", text, re.IGNORECASE):
        return Change("free", value=resolved(text, topic))
    return None


def _read(kind: Kind, given: dict[str, str], topic: str, known: list[str]) -> Change | None:
    value = given.get("value", "").strip()
    owner = {"its": "it", "their": "them"}.get(given.get("its", "it"), given.get("its", "it").removesuffix("'s"))
    thing, where = placed(given.get("thing") or owner, topic)
    if "bare" in given:
        if not any(same(head(given["bare"]), one) for one in known):
            return None
        return Change("remove", f"the {given['bare']}")
    if kind == "place":
        return _at(value, given.get("thing", "it"), topic, known)
    if kind == "background":
        return Change("background", value=value.lower())
    if kind == "colour":
        return Change("colour", thing, value.lower(), where)
    if kind == "style":
        return Change("style", value=STYLES.get(value.lower(), value.lower()))
    if kind == "add":
        value = resolved(value, topic)
        if "needs" in given and not re.search(SIDE, value, re.IGNORECASE):
            return Change("add", value=f"{value} to {resolved('it', topic)}")
        return Change("add", value=f"{value} to {thing}" if "thing" in given else value)
    return Change(kind, thing, resolved(value, topic), where)


def _at(value: str, thing: str, topic: str, known: list[str]) -> Change | None:
    """Another place for what the picture is about; None where it is another thing that moves, or only a side."""
    if re.fullmatch(SIDE, value, re.IGNORECASE) or re.search(rf"\b(?:{STYLE})\b|\bstyle\b", value, re.IGNORECASE):
        return None
    if not re.match(PREPOSITION, value, re.IGNORECASE):
        value = f"{'on' if head(value).lower() in SURFACES else 'in'} {value}"
    main = known[0] if known else topic
    meant = head(thing) if thing.lower() not in IT.split("|") else main
    return Change("place", value=value) if not main or same(meant, main) else None


def _added(text: str, topic: str, known: list[str]) -> Change | None:
    """ "put a hat on it", "draw a tree next to the cat": something new beside something that is there."""
    new = r"(?P<new>(?:an?|some|another|more|two|three|four) .+|[a-z]+ (?:on|to) (?:it|him|her|the .+))"
    found = re.match(rf"^(?:also |and )?{ADD} {new}$", text, re.IGNORECASE)
    if found is None:
        return None
    verb = text.split()[0].lower()
    beside = re.search(rf"\b{LINK} (?P<thing>it|him|her|them|the (?P<name>[a-z -]+))$", found["new"], re.IGNORECASE)
    there = beside is not None and (beside["name"] is None or any(same(head(beside["name"]), one) for one in known))
    if verb in ("draw", "paint", "show") and not there:
        return None
    return Change("add", value=resolved(found["new"], topic))


def placed(thing: str, topic: str) -> tuple[str, str]:
    """A thing with "it" resolved, and which of several it is: "the cat on the left" -> "the cat", "left"."""
    thing = re.sub(r"^(?:this|that|my) (?=\S)", "the ", thing, flags=re.IGNORECASE)
    if not re.match(rf"^(?:the|{IT})\b", thing, re.IGNORECASE):
        thing = f"the {thing}"
    found = _WHICH.match(thing.lower())
    if found is None:
        return resolved(thing, topic), ""
    where = found["a"] or found["b"]
    if found["rest"]:
        return f"the {found['rest']}", where
    return thing, _SIDES.get(where, where)


def resolved(text: str, topic: str) -> str:
    """The text with its pronouns replaced by the thing that is spoken of."""
    if not topic:
        return text
    text = re.sub(r"\b(?:its|their)\b", f"the {topic}'s", text, flags=re.IGNORECASE)
    return re.sub(r"\b(?:it|him|them|they)\b(?!'s)|\bher$|\b(?:this|that)$", f"the {topic}", text, flags=re.IGNORECASE)


def after(change: Change, shows: str, topic: str) -> tuple[str, str]:
    """What the picture shows once it was changed, and the thing that is spoken of then."""
    scene, ground = _split(shows)
    thing = (change.where and at_side(scene, change.where)) or head(change.thing)
    if change.kind == "colour" and thing:
        phrase = article(f"{change.value} {thing}")
        return _join(_swapped(scene, thing, phrase) or scene, ground), thing
    if change.kind == "background":
        return _join(scene, f"on {article(f'{change.value} background')}"), topic
    if change.kind == "place":
        return _join(scene, change.value), topic
    if change.kind == "clear":
        return scene, topic
    if change.kind == "replace":
        new = change.value
        return _join(_swapped(scene, thing, new) or new, ground), head(parts(new)[0]) if parts(new) else topic
    if change.kind == "add":
        words = parts(change.value)
        return _join(f"{scene} and {change.value}" if scene else change.value, ground), head(
            words[0]
        ) if words else topic
    if change.kind == "remove":
        left = _swapped(scene, thing, "") or scene
        remaining = things(left)
        return _join(left, ground), topic if topic in remaining else next(iter(remaining), "")
    return shows, topic


def at_side(scene: str, where: str) -> str:
    """Which thing of a caption stands there: the "left" one of "a cat to the left of a dog" is the cat."""
    found = _BESIDE.match(scene)
    if found is None:
        return ""
    side = found["side"] or ("top" if found["up"] else "bottom")
    if {side, where} <= {"left", "right"} or {side, where} <= {"top", "bottom"}:
        return head(parts(found["scene" if side == where else "other"])[0])
    return ""


def _split(shows: str) -> tuple[str, str]:
    """A caption without its background, and the background."""
    found = re.search(rf" on an? {COLOUR} background$", shows, re.IGNORECASE)
    return (shows[: found.start()], found[0].strip()) if found else (shows, "")


def _join(scene: str, ground: str) -> str:
    return f"{scene} {ground}".strip()


def _swapped(scene: str, thing: str, new: str) -> str:
    """The caption with the noun phrase that names `thing` replaced, or taken out with the word that links it."""
    for part in parts(scene):
        if not same(head(part), thing):
            continue
        if new:
            return scene.replace(part, new, 1)
        link = rf"\s*(?:,|\b{LINK})\s*"
        name = rf"{re.escape(part)}(?: {SIDE})?"
        without = re.sub(rf"{link}{name}|{name}{link}", "", scene, count=1, flags=re.IGNORECASE)
        return without if without != scene else ""
    return ""
