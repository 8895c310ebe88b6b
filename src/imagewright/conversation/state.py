"""A conversation: what was said, and the pictures that came of it, each with the one it was made from.

It never changes: `then` gives the next one, so that several may go on from one turn (a branch). What it says of its
pictures is plain JSON; the pictures themselves lie in an `album`, by id, wherever its owner keeps them. Each has its
record with the stack of edits in `info["imagewright"]`.
"""

from __future__ import annotations

import secrets
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from imagewright.conversation.words import caption_of, has_thing, ordinal, subject
from imagewright.errors import RequestError

Album = Mapping[str, Image.Image]
SAID = 2000  # characters of what was said that are remembered
KEPT = 200  # turns that are remembered; the pictures of older ones stay


@dataclass(frozen=True)
class Shown:
    """A picture of the conversation: `parent` is the one it was made from, `action` and `made_by` the step that made
    it and its words. `shows` and `topic` are as in planner.Step."""

    id: str
    parent: str | None = None
    action: str = "generate"
    made_by: str = ""
    shows: str = ""
    topic: str = ""
    size: tuple[int, int] = (0, 0)
    style: str | None = None

    @classmethod
    def given(cls, id_: str, image: Image.Image) -> Shown:
        """A picture that the user brought along; its record says what it shows, if it has one."""
        record = image.info.get("imagewright")
        prompt = str(record.get("prompt") or "") if isinstance(record, dict) else ""
        shows = caption_of(prompt)
        return cls(id_, action="given", shows=shows, topic=subject(shows), size=image.size)


@dataclass(frozen=True)
class Turn:
    """What the user said and what became of it: the pictures of its last step, the answer, and what was adjusted.

    `images` are the new pictures by id, `shown` what is known of them, and `plan` is planner.Plan's JSON.
    """

    said: str
    plan: Mapping[str, Any]
    pictures: tuple[str, ...] = ()
    answer: str = ""
    notes: tuple[str, ...] = ()
    shown: tuple[Shown, ...] = ()
    images: Album = field(default_factory=dict, compare=False)
    action: str = ""  # of its last step

    def to_json(self) -> dict[str, Any]:
        """JSON values, without the pictures."""
        return {
            "said": self.said,
            "plan": dict(self.plan),
            "pictures": list(self.pictures),
            "answer": self.answer,
            "notes": list(self.notes),
            "action": self.action,
        }


@dataclass(frozen=True)
class Conversation:
    """Turns, and pictures in the order they were made. `past` are the ids that were current, the present one last;
    `future` those that were undone, the next to redo last."""

    turns: tuple[Turn, ...] = ()
    pictures: tuple[Shown, ...] = ()
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    album: Album = field(default_factory=dict, compare=False)

    @property
    def last(self) -> Shown | None:
        """The picture that is spoken of now."""
        return self.picture(self.past[-1]) if self.past else None

    def picture(self, id_: str) -> Shown:
        """Raises RequestError where there is none of that id."""
        for shown in self.pictures:
            if shown.id == id_:
                return shown
        raise RequestError(f"No picture {id_!r} in this conversation.", "Give the id of one that was made in it.")

    def image(self, id_: str) -> Image.Image:
        """The picture itself. Raises RequestError."""
        try:
            return self.album[id_]
        except KeyError:
            raise RequestError(f"The picture {id_!r} is no longer here.", "Give it again, or make another.") from None

    def number(self, id_: str) -> int:
        """Which one it is, from 1."""
        return 1 + [shown.id for shown in self.pictures].index(id_)

    @property
    def batch(self) -> tuple[str, ...]:
        """The pictures of the turn that is spoken of."""
        made = [turn.pictures for turn in self.turns if self.past and self.past[-1] in turn.pictures]
        return made[-1] if made else ()

    def find(self, reference: str) -> Shown | None:
        """The picture that words name: "the second one", "picture 2", "the original", "the cat picture", or an id.

        Where the last turn made several, "the second one" counts among these; "picture 2" always counts all.
        """
        text = reference.lower().strip()
        for shown in self.pictures:
            if shown.id == reference:
                return shown
        which = ordinal(text)
        if which is not None:
            return self._counted(*which)
        named = [shown for shown in self.pictures if has_thing(shown.shows, text)]
        return named[-1] if named else None

    def _counted(self, kind: str, number: int) -> Shown | None:
        batch = self.batch
        if kind == "previous":
            return self.picture(self.past[-2]) if len(self.past) > 1 else None
        if kind == "original":
            return self.origin
        ids = [shown.id for shown in self.pictures]
        if kind == "last":
            return self.picture(batch[-1]) if len(batch) > 1 else self.last
        among = batch if kind == "one" and len(batch) >= max(2, number) else ids
        return self.picture(among[number - 1]) if 0 < number <= len(among) else None

    @property
    def origin(self) -> Shown | None:
        """The picture that the one spoken of was made from in the first place."""
        shown = self.last
        while shown is not None and shown.parent is not None:
            shown = self.picture(shown.parent)
        return shown

    def shows(self, id_: str) -> Conversation:
        """Where the picture `id_` is the one that is spoken of."""
        self.picture(id_)
        return self if self.past[-1:] == (id_,) else replace(self, past=(*self.past, id_), future=())

    def given(self, image: Image.Image, id_: str | None = None) -> Conversation:
        """With a picture that the user brought along."""
        shown = Shown.given(id_ or new_id(), image)
        album = {**self.album, shown.id: image}
        return replace(self, pictures=(*self.pictures, shown), album=album).shows(shown.id)

    def then(self, turn: Turn) -> Conversation:
        """After one more turn."""
        kept = [shown for shown in turn.shown if shown.id not in {one.id for one in self.pictures}]
        after = replace(
            self,
            turns=(*self.turns, replace(turn, said=turn.said[:SAID], plan={}, shown=(), images={}))[-KEPT:],
            pictures=(*self.pictures, *kept),
            album=ChainMap(dict(turn.images), *getattr(self.album, "maps", [self.album])),
        )
        if not turn.pictures:
            return after
        return after._moved(turn.pictures[0]) if turn.action == "undo" else after.shows(turn.pictures[0])

    def _moved(self, to: str) -> Conversation:
        """Back to an earlier picture, or forth to one that was undone."""
        if to in self.past:
            end = len(self.past) - self.past[::-1].index(to)
            return replace(self, past=self.past[:end], future=(*self.future, *reversed(self.past[end:])))
        if to in self.future:
            start = self.future.index(to)
            past = (*self.past, *reversed(self.future[start:]))
            return replace(self, past=past, future=self.future[:start])
        return self.shows(to)

    def to_json(self) -> dict[str, Any]:
        """JSON values, without the pictures."""
        return {
            "turns": [turn.to_json() for turn in self.turns],
            "pictures": [{**vars(shown), "size": list(shown.size)} for shown in self.pictures],
            "past": list(self.past),
            "future": list(self.future),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], album: Album) -> Conversation:
        """What `to_json` gave, with its pictures. Raises KeyError, TypeError on anything else."""
        turns = (
            {**turn, "pictures": tuple(turn["pictures"]), "notes": tuple(turn["notes"])} for turn in value["turns"]
        )
        return cls(
            tuple(Turn(**turn) for turn in turns),
            tuple(Shown(**{**shown, "size": tuple(shown["size"])}) for shown in value["pictures"]),
            tuple(value["past"]),
            tuple(value["future"]),
            album,
        )


def new_id(prefix: str = "ig_") -> str:
    """An id that nobody can guess."""
    return prefix + secrets.token_hex(20)
