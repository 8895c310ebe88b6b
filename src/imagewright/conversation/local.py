"""A planner of rules: no network, no language model. It reads English in the forms that people use for pictures.

A sentence is cut into clauses ("remove the hat and make it blue"), each of which is one step: a command about pictures
that are there (back, again, larger, another style), a change of one, a question, or a new scene. What "it" means is the
thing that was last spoken of. How often this is right is measured on sentences that it was not tuned on
(tests/conversation).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from imagewright.conversation import changes, phrases
from imagewright.conversation.asked import styled, taken, taken_of_new
from imagewright.conversation.changes import Change
from imagewright.conversation.phrases import plain, typed
from imagewright.conversation.planner import PREVIOUS, Action, Force, Plan, Step
from imagewright.conversation.state import Conversation, Shown
from imagewright.conversation.told import doubts, told
from imagewright.conversation.words import COLOUR, caption_of, count, has_thing, head, same, subject, things
from imagewright.errors import PromptError

MAX_WORDS = 1000  # characters of a sentence that are read as instructions; longer ones are a scene
NOTHING_YET = "There is no picture yet. Say what to draw, for example: a red fox in the snow"
HELP = (
    "I draw pictures and change them. Say what to draw (a red fox in the snow), then what to change (make it blue, "
    "add a hat, put it on a yellow background, remove the hat), or: undo, another one, in flat style, bigger, wider, "
    "go back to the first one, what is in the picture?"
)
_IMPERATIVE = ("remove", "clear", "free", "replace", "colour", "style")  # changes of nothing, where no picture is
_DEPTH = 6  # references and corrections inside each other that are followed
_SHARE = "25%"  # that a picture grows by at a side
_SIDES: dict[str, dict[str, Any]] = {
    "left": {"left": _SHARE},
    "right": {"right": _SHARE},
    **{name: {"up": _SHARE} for name in ("top", "up", "upward", "upwards")},
    **{name: {"down": _SHARE} for name in ("bottom", "down", "downward", "downwards")},
    **{name: {"left": _SHARE, "right": _SHARE} for name in ("both sides", "sides")},
    **{name: {"zoom_out": 1.5} for name in ("around", "all sides")},
}


@dataclass(frozen=True)
class Now:
    """What a clause is about: a picture of the conversation, or the one that the step before will make. `aimed`: the
    clause names it."""

    target: str | None
    shows: str = ""
    topic: str = ""
    shown: Shown | None = None
    aimed: bool = False

    @classmethod
    def of(cls, shown: Shown | None, aimed: bool = False) -> Now:
        """About a picture that is there."""
        return cls(None) if shown is None else cls(shown.id, shown.shows, shown.topic, shown, aimed)


class LocalPlanner:
    """Understands words by rules. Always the same plan for the same words."""

    name = "local"

    def plan(
        self, words: str, conversation: Conversation, styles: Collection[str] = (), force: Force | None = None
    ) -> Plan:
        """What `words` mean after all that was said. Raises PromptError without words."""
        text = typed(words)
        if not text:
            raise PromptError("Nothing was said.", "Say what to draw or what to change, for example: a red fox")
        steps = tuple(_Reader(conversation, tuple(styles), force).steps(text))
        return Plan(steps, told(steps, conversation), tuple(doubts(text, steps, tuple(styles))))


@dataclass
class _Reader:
    """Reads one utterance."""

    conversation: Conversation
    styles: tuple[str, ...]
    force: Force | None
    now: Now = field(init=False)
    depth: int = 0

    def __post_init__(self) -> None:
        self.now = Now.of(self.conversation.last)

    def steps(self, text: str) -> list[Step]:
        """The steps of all clauses."""
        if len(text) > MAX_WORDS or self.force == "generate":
            return [self._scene(_drawn(plain(text)))]
        steps: list[Step] = []
        for clause in self._clauses(text):
            for step in self._clause(clause):
                if step.action == "answer" and steps:
                    continue
                steps.append(step)
                if step.action != "answer":  # the next clause is about what this step makes
                    self.now = Now(PREVIOUS, step.shows, step.topic)
        return steps or [Step("answer", HELP)]

    def _clauses(self, text: str) -> list[str]:
        if self._corrected(plain(text)):
            return [text]
        cut = phrases.SPLIT.split(plain(text))
        cut = cut[1:] if len(cut) > 1 and phrases.FORGET.match(cut[0]) else cut
        if len(cut) > 1 and phrases.CHOSEN.match(plain(cut[0])):
            cut[:2] = [f"{cut[0]} and {cut[1]}"]
        found: list[str] = []
        for clause in cut:
            pair = phrases.ELLIPSIS.match(plain(clause))
            found += [f"{pair['verb']} {pair['first']}", f"{pair['verb']} {pair['second']}"] if pair else [clause]
        return found

    def _clause(self, clause: str) -> list[Step]:
        """The step that a clause means; two, where it goes back first."""
        text = plain(clause)
        if not text or phrases.THANKS.match(clause.strip()):
            return [Step("answer", "You are welcome. " + HELP)]
        if self.depth < _DEPTH:
            self.depth += 1
            found = self._moved(text) or self._corrected(text) or self._referred(text)
            self.depth -= 1
            if found:
                return found
        for read in (self._asked, self._repeated, self._resized, self._restyled, self._changed):
            if step := read(text):
                return [step]
        return [self._scene(_drawn(text))]

    def _about(self, now: Now, text: str) -> list[Step]:
        """A clause about another picture than the present one."""
        before, self.now = self.now, now
        steps = self._clause(text)
        self.now = before
        return steps

    # which picture

    def _moved(self, text: str) -> list[Step]:
        """Back, forth, or to a picture that is named."""
        past, future = self.conversation.past, self.conversation.future
        if found := phrases.UNDO.match(text):
            steps = 2 if found["n"] == "twice" else count(found["n"] or "1")
            if len(past) < 2:
                return [Step("answer", "There is nothing to undo.")]
            return [self._back(past[max(0, len(past) - 1 - steps)])]
        if phrases.REDO.match(text):
            return [self._back(future[-1]) if future else Step("answer", "There is nothing to redo.")]
        if phrases.ORIGIN.match(text) and (origin := self.conversation.origin) is not None:
            return [self._back(origin.id)]
        if (bare := phrases.BARE.match(text)) and past:
            text = f"picture {bare['n']}"
        named = phrases.GO.match(text) or phrases.GO_THING.match(text)
        if named and (to := self.conversation.find(named["to"])) is not None:
            return [self._back(to.id)]
        return []

    def _back(self, id_: str) -> Step:
        shown = self.conversation.picture(id_)
        return Step("undo", target=id_, shows=shown.shows, topic=shown.topic)

    def _referred(self, text: str) -> list[Step]:
        """ "use picture 1 but ...", "make the second one red": the rest of the words is about that picture."""
        if phrases.LIKE.search(text):
            return []
        if (split := phrases.GO_AND.match(text)) is not None and (
            to := self.conversation.find(split["to"])
        ) is not None:
            return [self._back(to.id), *self._about(Now(PREVIOUS, to.shows, to.topic), split["rest"])]
        if (same := phrases.SAME.match(text)) is not None and self.now.target is not None:
            return self._about(replace(self.now, aimed=True), same["rest"])
        again = phrases.AGAIN_BUT.match(text)
        if again is not None and (to := self.conversation.find(again["to"])) is not None:
            return self._about(Now.of(to, aimed=True), again["rest"])
        for pattern in (phrases.FROM, phrases.INSIDE):
            found = pattern.search(text)
            to = self.conversation.find(found["to"]) if found else None
            if found is None or to is None:
                continue
            rest = found["rest"] if pattern is phrases.FROM else pattern.sub("it", text, count=1)
            rest = re.sub(r"^(add .+) (?:to|on|in|into) it$", r"\1", rest, flags=re.IGNORECASE)
            return self._about(Now.of(to, aimed=True), rest)
        return []

    def _corrected(self, text: str) -> list[Step]:
        """ "no, the left one", "I meant the dog": the last change again, of another thing or to another value."""
        found = phrases.NOT_BUT.match(text) or phrases.NO.match(text) or phrases.SAID.match(text)
        last = self.conversation.last
        if found is None or last is None:
            return []
        if last.parent is None or last.action != "edit":
            return self._clause(found["rest"])
        parent = self.conversation.picture(last.parent)
        rest = plain(found["rest"])
        made = changes.read(last.made_by, parent.topic, things(parent.shows))
        if again := made and _mended(made, rest, parent):
            return [self._edit(again, Now.of(parent))]
        return self._about(Now.of(parent), rest)

    # about the picture

    def _asked(self, text: str) -> Step | None:
        if phrases.LOOKS.match(text) or self.force == "edit":
            return None
        if phrases.ASKED.match(text):
            return Step("answer", HELP)
        if phrases.ABOUT.match(text):
            return self._step("answer") if self.now.target is not None else Step("answer", NOTHING_YET)
        return None

    def _repeated(self, text: str) -> Step | None:
        """Again, or more like it."""
        shown = self.now.shown
        if shown is None:
            return None
        if phrases.AGAIN.match(text):
            if shown.action == "edit" and shown.parent is not None:
                return Step("edit", shown.made_by, shown.parent, shows=shown.shows, topic=shown.topic)
            return Step("generate", shown.made_by or shown.shows, shows=shown.shows, topic=shown.topic)
        if of_them := phrases.OF_THEM.match(text):
            return self._step("vary", fields={"n": count(of_them["n"])})
        more = phrases.MORE.match(text)
        if more is not None and (more["many"] or (more["n"] or "").lower() == "another"):
            word = (more["n"] or "one").lower()
            n = 1 if word in ("a", "an", "another") else count(word)
            n = 4 if n == 1 and phrases.MANY.search(text) else n
            return self._step("vary", fields={"n": n} if n > 1 else {})
        return self._step("vary") if phrases.LIKE_THIS.match(text) else None

    def _resized(self, text: str) -> Step | None:
        if self.now.target is None:
            return None
        if found := phrases.LARGER.match(text):
            number = found["n"] or found["by"] or found["x"] or "2"
            return self._step("upscale", how={"factor": 4 if number.lower() in phrases.FOUR else 2})
        if found := phrases.OUT.match(text):
            return self._step("expand", how={"zoom_out": min(4.0, max(1.1, float(found["n"] or 1.5)))})
        if found := phrases.WIDER.match(text):
            return self._shaped(found["how"].lower())
        if found := phrases.SPACE.match(text):
            return self._step("expand", how=_SIDES[(found["side"] or "around").lower()])
        rest, fields = taken(text)
        return self._sized(fields) if "size" in fields and phrases.TO_SIZE.match(rest) else None

    def _shaped(self, how: str) -> Step:
        width, height = self.now.shown.size if self.now.shown else (1, 1)
        if how == "square":
            if width == height:
                return Step("answer", "The picture is square already.")
            share = f"{round(50 * abs(width - height) / min(width, height))}%"
            return self._step(
                "expand", how=dict.fromkeys(("left", "right") if height > width else ("up", "down"), share)
            )
        sides = ("up", "down") if how in ("taller", "tall", "higher", "portrait") else ("left", "right")
        return self._step("expand", how=dict.fromkeys(sides, _SHARE))

    def _sized(self, fields: dict[str, Any]) -> Step:
        """Another size: enlarged where that is all it takes, else drawn again."""
        width, height = self.now.shown.size if self.now.shown else (0, 0)
        for factor in (2, 4):
            if fields["size"] == (width * factor, height * factor):
                return self._step("upscale", how={"factor": factor})
        return self._step("vary", fields=fields)

    def _restyled(self, text: str) -> Step | None:
        """Another style for the picture; of a new picture it is a field, see _scene."""
        if self.now.target is None:
            return None
        if (like := self._like(text)) is not None:
            rest, id_ = like
            is_other = phrases.STYLE_ONLY.match(rest) and id_ != self.now.target
            return self._step("restyle", how={"like": id_}) if is_other else None
        named = phrases.TO_STYLE.match(text)
        rest, style = styled(f"in {named['style']} style" if named else text, self.styles)
        return self._step("restyle", fields={"style": style}) if style and phrases.STYLE_ONLY.match(rest) else None

    def _like(self, text: str) -> tuple[str, str] | None:
        """The words before "like the first one", and the id of that picture."""
        found, last = phrases.LIKE.search(text), self.now.shown or self.conversation.last
        if found is None or last is None:
            return None
        to = self.conversation.find(found["to"]) if found["to"] else None
        return text[: found.start()].strip(" ,"), (to or last).id

    # changes and scenes

    def _changed(self, text: str) -> Step | None:
        """A change of the picture; None where the words are a scene."""
        rest, fields = taken(text)
        rest, now = plain(rest), self.now
        if now.target is None:
            return self._of_nothing(rest)
        if self.force != "edit" and (phrases.NEW.match(rest) or phrases.ANOTHER.match(rest)):
            return None
        change = changes.read(rest, now.topic, things(now.shows))
        if change is None and self.force == "edit":
            change = Change("free", value=changes.resolved(rest, now.topic))
        return None if change is None else self._edit(change, self._meant(change), fields)

    def _of_nothing(self, text: str) -> Step | None:
        """What to say of a change where there is no picture."""
        makes = phrases.DRAW.match(text) and not re.match(r"make (?:it|the)\b", text, re.IGNORECASE)
        change = None if makes or phrases.NOUN_PHRASE.match(text) else changes.read(text, "", [])
        return Step("answer", NOTHING_YET) if change is not None and change.kind in _IMPERATIVE else None

    def _meant(self, change: Change) -> Now:
        """The picture that a change is about: an earlier one, where only that has the thing."""
        name, now = head(change.thing), self.now
        if now.shown is None or now.aimed or change.where or not change.thing.lower().startswith("the ") or not name:
            return now
        if any(same(name, one) for one in things(now.shows)):
            return now
        earlier = [shown for shown in self.conversation.pictures if has_thing(shown.shows, name)]
        return Now.of(earlier[-1]) if earlier else now

    def _edit(self, change: Change, now: Now, fields: dict[str, Any] | None = None) -> Step:
        shows, topic = changes.after(change, now.shows, now.topic)
        fields = fields or {}
        if change.kind == "clear":
            return Step("remove_background", "", now.target, fields, shows=shows, topic=topic)
        if change.kind == "style" and change.value in self.styles:
            return Step("restyle", "", now.target, {**fields, "style": change.value}, shows=shows, topic=topic)
        how = {"where": change.where, "thing": change.thing} if change.where else {}
        return Step("edit", change.words, now.target, fields, how, shows, topic)

    def _step(self, action: Action, *, fields: dict[str, Any] | None = None, how: dict[str, Any] | None = None) -> Step:
        now = self.now
        return Step(action, "", now.target, fields or {}, how or {}, now.shows, now.topic)

    def _scene(self, text: str) -> Step:
        """A new picture."""
        rest, fields = taken(text)
        like = self._like(rest)
        rest, how = (like[0], {"like": like[1]}) if like and like[0] else (rest, {})
        rest, more = taken_of_new(rest, self.styles)
        words = rest or text
        return Step("generate", words, None, {**fields, **more}, how, caption_of(words), subject(words))


def _drawn(text: str) -> str:
    """A scene without the words that ask for it: "draw me a cat" -> "a cat"."""
    while (found := phrases.NEW.match(text)) is not None:
        text = plain(found["rest"])
    looks = phrases.LOOKS.match(text)
    return looks["rest"] if looks else phrases.DRAW.sub("", text)


def _mended(made: Change, rest: str, parent: Shown) -> Change | None:
    """The change with what a correction says instead; None where that is a change of its own."""
    lower = rest.lower()
    if side := phrases.SIDE_ONLY.match(lower):
        where = phrases.SIDES.get(side["where"], side["where"])
        return made.about(f"the {where} one", where)
    colour = re.fullmatch(rf"(?:in |to )?(?P<value>{COLOUR})", lower)
    if colour and made.kind in ("colour", "background"):
        return replace(made, value=colour["value"])
    if re.fullmatch(r"the [a-z ]+", lower) and made.kind in ("colour", "replace", "remove"):
        return made.about(*changes.placed(rest, parent.topic))
    if re.match(r"an? \S", lower) and made.kind in ("add", "replace") and not lower.endswith("background"):
        return replace(made, value=rest)
    return None
