"""The stack of a picture's edits: its original and every step since, enough to make each again.

It is kept in the record of the edited picture. Of the original it has the file's name, never its folder, the digest of
its pixels and the words it was made from, if any. What a file says is a stranger's word: a step that is read back
chooses no files but neighbours whose pixels have the recorded digest.
"""

from __future__ import annotations

import base64
import json
from binascii import Error as Base64Error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagewright.editing import masks, place
from imagewright.editing.expand import Margins
from imagewright.errors import ImagewrightError, PictureError
from imagewright.pictures import encode, open_picture
from imagewright.request import MAX_SIDE, ImageRequest

MAX_MASK = 200_000  # characters of one mask; a larger one is not kept, and the step cannot be made again
MAX_STACK = 800_000  # characters of all masks
MAX_STEPS = 1000  # that are read back
WHOLE = ("edit", "vary", "restyle", "blend")  # verbs whose words may say what the whole picture shows
PICTURES = ("images", "style_images", "subject_images")  # further pictures, found again beside the edited one
_PLAIN = {
    *("prompt", "negative_prompt", "style", "seed", "num_inference_steps", "guidance_scale", "strength", "sampler"),
    *("temperature", "top_k", "top_p", "truncation", "instruction", "feather", "size", "style_weight"),
    *("subject_weight", "tile", "emphasis", "variety", "weird", "stop", "quality", "aspect", "stylize"),
}
_OF_TOOLS = ("colour", "select")  # of the verb recolor
_ADD_ONS = ("controls", "adapters", "embeddings")  # files and models that a record must not choose
_DEFAULT = {one.name: one.default for one in fields(ImageRequest)}
_USED = ("seed", "num_inference_steps", "guidance_scale", "sampler", "strength", "feather")  # the engine's word counts


@dataclass(frozen=True)
class Beside:
    """A picture by its file's name and the digest of its pixels (place.digest)."""

    file: str
    sha256: str

    def path(self, folders: Sequence[Path]) -> Path | None:
        """Where it lies, if a file of that name with these pixels is in one of `folders`."""
        name = Path(self.file).name
        for path in (folder / name for folder in folders if name and name == self.file):
            try:
                if path.is_file() and place.digest(masks.upright(open_picture(path))) == self.sha256:
                    return path
            except PictureError:
                continue
        return None


@dataclass(frozen=True)
class Step:
    """One edit: its verb, the model, the request's plain fields, and the mask or margins.

    `pictures` are further ones, by the request's field. `whole` is False where a part could not be kept (a mask too
    large, add-ons from files), so that the step cannot be made again.
    """

    verb: str
    fields: Mapping[str, Any]
    engine: str | None = None
    model: str | None = None
    model_digest: str = ""
    mask: Image.Image | None = None
    margins: Margins | None = None
    factor: int | None = None
    pictures: Mapping[str, tuple[Beside, ...]] = field(default_factory=dict)
    whole: bool = True

    @classmethod
    def of(cls, verb: str, asked: Mapping[str, Any], **others: Any) -> Step:
        """The step of a request's fields: those that are plain values and not the default."""
        plain = {name: value for name, value in asked.items() if name in _PLAIN and value != _DEFAULT[name]}
        return cls(verb, plain, whole=not any(asked.get(name) for name in _ADD_ONS), **others)

    def made(self, record: Mapping[str, Any]) -> Step:
        """The step as an engine took it: with its model, seed and steps."""
        used = {name: record[name] for name in _USED if record.get(name) is not None}
        digest = str(record.get("model_digest", ""))
        return replace(
            self,
            fields={**self.fields, **used},
            engine=record.get("engine"),
            model=record.get("model"),
            model_digest=digest,
        )

    def again(self, folders: Sequence[Path]) -> dict[str, Any]:
        """The request's fields that make the step again. Raises PictureError where a part of it is missing."""
        if not self.whole:
            raise PictureError(
                f"The step {self.told()!r} cannot be made again: its record has not all of it.",
                "Edit the picture as it is.",
            )
        found: dict[str, Any] = {name: _tuple(value) for name, value in self.fields.items()}
        found |= {name: tuple(_needed(one, folders) for one in many) for name, many in self.pictures.items()}
        if self.plain:
            return found
        try:
            ImageRequest(**{name: value for name, value in found.items() if name != "instruction"})
        except (TypeError, AttributeError, ValueError, ImagewrightError) as error:
            raise PictureError("The stack of edits in this picture is damaged.", "Use the original file.") from error
        return found

    @property
    def plain(self) -> bool:
        """Whether it needs no model: an `upscale`, a `recolor`, or a `fill` without words."""
        return self.engine is None and "prompt" not in self.fields

    def told(self) -> str:
        """One line for people: verb, where, what."""
        what = (str(self.fields.get(name, "")) for name in ("prompt", "select", "colour"))
        return " ".join(part for part in (self.verb, self.where(), *what) if part)

    def where(self) -> str:
        """Where it changed the picture, for people."""
        if self.margins is not None:
            named = zip(("left", "right", "up", "down"), self.margins.sides, strict=True)
            return ", ".join(f"{name} {side}" for name, side in named if side)
        if self.mask is not None:
            x, y, width, height = masks.told(masks.hole(self.mask))["box"]
            return f"{width}x{height} at {x},{y}"
        return f"{self.factor}x" if self.factor else ""

    def to_json(self) -> dict[str, Any]:
        """JSON values; the mask as a PNG in base64, cut to the box around its hole."""
        mask = None if self.mask is None else _packed(self.mask)
        whole = self.whole and (mask is None or len(mask.get("png", "")) <= MAX_MASK)
        return {
            "verb": self.verb,
            "engine": self.engine,
            "model": self.model,
            "model_digest": self.model_digest,
            **{name: value for name, value in self.fields.items()},
            **({"mask": mask if whole else {}} if mask else {}),
            **({"margins": list(self.margins.sides)} if self.margins else {}),
            **({"factor": self.factor} if self.factor else {}),
            **{name: [vars(one) for one in many] for name, many in self.pictures.items()},
            **({} if whole else {"whole": False}),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Step:
        """Raises TypeError, ValueError or KeyError on what `to_json` did not write."""
        margins, mask = value.get("margins"), value.get("mask")
        pictures = {name: tuple(_beside(one) for one in value[name]) for name in PICTURES if name in value}
        return cls(
            verb=_text(value["verb"]),
            fields={name: value[name] for name in (*_PLAIN, *_OF_TOOLS) if value.get(name) is not None},
            engine=_text(value["engine"]) if value.get("engine") else None,
            model=_text(value["model"]) if value.get("model") else None,
            model_digest=_text(value.get("model_digest", "")),
            mask=_unpacked(mask) if mask else None,
            margins=Margins(*(int(side) for side in margins)) if margins else None,
            factor=int(value["factor"]) if value.get("factor") else None,
            pictures=pictures,
            whole=value.get("whole", True) is True,
        )


@dataclass(frozen=True)
class Stack:
    """The original, the steps since, and the digest of the pixels that they lead to. `prompt`: the original's words."""

    original: Beside
    steps: tuple[Step, ...] = ()
    result: str = ""
    prompt: str = ""

    def then(self, step: Step, result: Image.Image) -> Stack:
        """With one more step, which led to `result`."""
        return replace(self, steps=(*self.steps, step), result=place.digest(result))

    def words(self) -> str:
        """What the whole picture was last said to show."""
        whole = [
            step for step in self.steps if step.verb in WHOLE and not step.mask and "instruction" not in step.fields
        ]
        return str(whole[-1].fields.get("prompt", "")) if whole else self.prompt

    def to_json(self) -> dict[str, Any]:
        """JSON values. Where the masks are too large together, none is kept."""
        steps = [step.to_json() for step in self.steps]
        if sum(len(step.get("mask", {}).get("png", "")) for step in steps) > MAX_STACK:
            steps = [{**step, "mask": {}, "whole": False} if "mask" in step else step for step in steps]
        return {"original": {**vars(self.original), "prompt": self.prompt}, "steps": steps, "result": self.result}

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> Stack | None:
        """The stack in a record, None where there is none. Raises PictureError where it is damaged."""
        if record is None or "edits" not in record:
            return None
        try:
            found = record["edits"]
            if len(found["steps"]) > MAX_STEPS:
                raise ValueError("too many steps")
            return cls(
                _beside(found["original"]),
                tuple(Step.from_json(step) for step in found["steps"]),
                _text(found["result"]),
                _text(found["original"].get("prompt", "")),
            )
        except (TypeError, ValueError, KeyError, AttributeError, ImagewrightError) as error:
            raise PictureError("The stack of edits in this picture is damaged.", "Use the original file.") from error


def _needed(one: Beside, folders: Sequence[Path]) -> Image.Image:
    path = one.path(folders)
    if path is None:
        raise PictureError(f"{one.file!r}, which the edit used, is not beside the picture.", "Put it there.")
    return masks.upright(open_picture(path))


def _packed(mask: Image.Image) -> dict[str, Any]:
    """A mask's size, the box around its hole (left, top, right, bottom), and what the hole has in it, if not all."""
    hole = masks.hole(mask)
    left, top, right, bottom = masks.bounds(hole)
    part = hole[top:bottom, left:right]
    packed: dict[str, Any] = {"size": list(hole.shape[::-1]), "box": [left, top, right, bottom]}
    if not part.all():
        packed["png"] = base64.b64encode(encode(Image.fromarray(part), "png")).decode()
    return packed


def _unpacked(packed: Mapping[str, Any]) -> Image.Image:
    width, height = (int(side) for side in packed["size"])
    left, top, right, bottom = (int(edge) for edge in packed["box"])
    if not (0 <= left < right <= width <= MAX_SIDE and 0 <= top < bottom <= height <= MAX_SIDE):
        raise ValueError("no such box")
    part = np.ones((bottom - top, right - left), bool)
    if "png" in packed:
        try:
            data = base64.b64decode(packed["png"], validate=True)
        except Base64Error as error:
            raise ValueError("no base64") from error
        part = np.asarray(open_picture(data).convert("L")) > 0
    hole = np.zeros((height, width), bool)
    hole[top:bottom, left:right] = part  # raises ValueError on another shape
    return masks.mask_of(hole)


def _beside(value: Mapping[str, Any]) -> Beside:
    return Beside(_text(value["file"]), _text(value["sha256"]))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(json.dumps(str(value)))
    return value


def _tuple(value: Any) -> Any:
    """JSON's lists as the tuples that a request has."""
    return tuple(_tuple(one) for one in value) if isinstance(value, list) else value
