"""What a planner gives: the steps that a user's words mean. A planner is local (rules) or remote (a language model)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from imagewright.conversation.state import Conversation
from imagewright.errors import RequestError

Action = Literal[
    "generate", "edit", "undo", "vary", "restyle", "upscale", "expand", "remove_background", "answer"
]  # fmt: skip
Force = Literal["generate", "edit"]
ACTIONS: tuple[str, ...] = get_args(Action)
PREVIOUS = "+"  # as a target: the picture that the step before made
FIELDS = ("size", "aspect", "n", "style", "background", "seed", "quality", "output_format")  # a step may set
SIDES = ("left", "right", "top", "bottom")  # where one of several things is
HOW = (
    "factor",
    "zoom_out",
    "left",
    "right",
    "up",
    "down",
    "like",
    "where",
    "thing",
    "strong",
)  # what verbs take besides


@dataclass(frozen=True)
class Step:
    """One thing to do. `words` are for the model (of an answer: the answer; empty: say what the picture shows).

    `target` is the id of the picture to change, to go back to or to speak of. `fields` are of ImageRequest; `how` has
    what the verb takes besides: `factor`, `zoom_out`, sides, `like` (the id of a picture whose style counts), `where`
    (one of SIDES: which of several is meant), `thing`. `shows` is a caption of the picture afterwards, and `topic` the
    thing in it that "it" will mean.
    """

    action: Action
    words: str = ""
    target: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)
    shows: str = ""
    topic: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**vars(self), "fields": dict(self.fields), "how": dict(self.how)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Step:
        """Raises RequestError where it is no step."""
        texts = {name: value.get(name) or "" for name in ("words", "shows", "topic")}
        target, fields, how = value.get("target"), value.get("fields") or {}, value.get("how") or {}
        if (
            value.get("action") not in ACTIONS
            or not all(isinstance(text, str) for text in texts.values())
            or not (target is None or isinstance(target, str))
            or not (isinstance(fields, Mapping) and isinstance(how, Mapping))
            or not (set(fields) <= set(FIELDS) and set(how) <= set(HOW))
        ):
            raise RequestError("This is no step of a plan.", f"Its action is one of {', '.join(ACTIONS)}.")
        return cls(value["action"], target=target, fields=paired(fields), how=dict(how), **texts)


@dataclass(frozen=True)
class Plan:
    """What is to be done: `steps` in order, `understood` in a sentence for the user, and `doubts`: what was not."""

    steps: tuple[Step, ...]
    understood: str
    doubts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        steps = [step.to_json() for step in self.steps]
        return {"steps": steps, "understood": self.understood, "doubts": list(self.doubts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Raises RequestError where it is no plan."""
        steps = value.get("steps")
        if not isinstance(steps, list) or not all(isinstance(step, Mapping) for step in steps):
            raise RequestError("This is no plan.", "It needs a list of steps.")
        doubts = value.get("doubts") or []
        return cls(tuple(map(Step.from_json, steps)), str(value.get("understood") or ""), tuple(map(str, doubts)))


class Planner(Protocol):
    """Understands words. `styles` are those that the model has; `force` says what the caller insists on."""

    name: str

    def plan(
        self, words: str, conversation: Conversation, styles: Collection[str] = (), force: Force | None = None
    ) -> Plan:
        """What `words` mean after all that was said. Raises RequestError without words."""
        ...


def paired(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Request fields as a request has them: JSON's lists as pairs."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
