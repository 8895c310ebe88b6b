"""Midjourney through CometAPI (`/mj`): a machine of tasks with buttons.

An `imagine` draws a grid of four, which is cut into four pictures; with the option `upscale` the buttons U1 to U4 are
pressed instead, one more task each. The record of a picture has its task and the labels of its buttons, so that a later
request can press one: `provider_options={"task": ..., "action": "V2"}`, or `act`. A button may ask back (Vary Region,
Custom Zoom): then the task waits in MODAL for words and, of a region, a mask, which is white where to repaint.

Statuses and codes are those of the open protocol that this one derives from; an unknown one is an error, not a wait.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from imagewright.config import Provider
from imagewright.editing import masks
from imagewright.engines.engine import ModelInfo
from imagewright.engines.hosted.answers import Refusal, text
from imagewright.engines.hosted.base import HostedEngine, hosted_model
from imagewright.engines.hosted.cometapi import CometAPIEngine, comet_refusal
from imagewright.engines.hosted.openrouter import data_url
from imagewright.errors import ProviderError, UnsupportedError
from imagewright.pictures import decode
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.watch import Watch

if TYPE_CHECKING:
    from imagewright.engines.hosted.call import Call

EVERY = 2.0  # seconds between two looks at a task
GRID = 4  # pictures of an imagine
SPEEDS = {"fast": "FAST", "relax": "RELAX", "turbo": "TURBO"}
WAITING = ("", "NOT_START", "SUBMITTED", "IN_PROGRESS")
GOOD, ASKS, BAD = "SUCCESS", "MODAL", ("FAILURE", "FAILED", "CANCEL")
SUBMITTED = (1, 21, 22)  # done, there already, queued
QUEUE_FULL, BANNED, NOT_FOUND, INVALID = 23, 24, 3, 4
_REFUSED = re.compile(r"banned|moderat|sensitive|inappropriate|content polic|blocked", re.IGNORECASE)
_MODEL = re.compile(r"(v|niji-)(\d(?:\.\d)?)")
_OPTIONS = ("upscale", "speed", "task", "action", "sref", "cref", "raw", "image_weight")
CAN = Capabilities(
    size=(1024, 1024),
    any_size=False,
    sides=(256, 4096, 1),
    ratio=14.0,
    image=True,
    mask=True,
    strength=False,
    negative_prompt=True,
    features=("instruction", "images", "variety", "weird", "tile", "stop", "stylize"),
    provider_options=_OPTIONS,
    max_prompt=6000,
    max_n=GRID,
)


@dataclass(frozen=True)
class Task:
    """A task as it stands: `buttons` are its labels with what pressing them takes."""

    id: str
    status: str
    url: str = ""
    buttons: Mapping[str, str] | None = None

    def told(self) -> dict[str, Any]:
        """For the record of its pictures."""
        return {"task": self.id, "buttons": sorted(self.buttons or {})}


class MidjourneyEngine(HostedEngine):
    """Midjourney, with CometAPI's key."""

    name = "midjourney"
    provider_name = "cometapi"
    base_url = CometAPIEngine.base_url
    may_repeat = CometAPIEngine.may_repeat
    known: ClassVar[Mapping[str, str]] = {
        "v7": "Midjourney 7, through CometAPI",
        "v6.1": "Midjourney 6.1, through CometAPI",
        "niji-6": "Midjourney for anime, through CometAPI",
    }

    def headers(self, provider: Provider) -> Mapping[str, str]:
        """The key as a bearer."""
        assert provider.key is not None
        return {"authorization": f"Bearer {provider.key.reveal()}"}

    def provider(self, model: ModelInfo | None = None) -> Provider:
        """CometAPI, beside whose `/v1` this is."""
        found = super().provider(model)
        return replace(found, base_url=found.base_url.removesuffix("/v1"))

    def listed(self) -> Sequence[ModelInfo]:
        return [hosted_model(self.name, name, summary, CAN) for name, summary in self.known.items()]

    def unlisted(self, name: str) -> ModelInfo | None:
        return hosted_model(self.name, name, "passed on by its version", CAN) if _MODEL.fullmatch(name) else None

    def refusal(self, status: int, body: Any) -> Refusal:
        return comet_refusal(super().refusal(status, body))

    def act(
        self, task: str, label: str, prompt: str = "", mask: Image.Image | None = None, watch: Watch = Watch()
    ) -> list[Image.Image]:
        """Presses the button `label` of a finished task (`U2`, `V3`, `Vary (Region)`); a grid comes as four pictures.

        `prompt` and `mask` (transparent: repaint) are for a button that asks back. Raises UnsupportedError where the
        task has no such button, ProviderError.
        """
        return _pictures(*_acted(self.call(watch), task, label, prompt, mask))

    def draw(self, request: ImageRequest, model: ModelInfo, call: Call) -> tuple[list[Image.Image], list[Adjustment]]:
        options = request.provider_options
        speed = text(options.get("speed")) or "fast"
        if speed not in SPEEDS:
            raise UnsupportedError(f"Midjourney has no speed {speed!r}.", f"Use {', '.join(SPEEDS)}.")
        if "task" in options or "action" in options:
            task, label = text(options.get("task")), text(options.get("action"))
            images = _pictures(*_acted(call, task, label, request.prompt, request.mask))[: request.n]
        else:
            images = self._drawn(request, model, call, speed, bool(options.get("upscale")))
        for place, image in enumerate(images):
            image.info["record"] |= {"seed": request.seed, "position": place + 1}  # the seed is that of the grid
        fewer = Adjustment("n", request.n, len(images), f"{label} gives fewer" if "task" in options else "drew fewer")
        return images, [fewer] if len(images) < request.n else []

    def _drawn(
        self, request: ImageRequest, model: ModelInfo, call: Call, speed: str, upscale: bool
    ) -> list[Image.Image]:
        path, body = _body(request, model.name, speed)
        task = _finished(call, _submitted(call, path, body))
        if task.status == ASKS:
            task = _finished(call, _submitted(call, "mj/submit/modal", _modal(task.id, request.prompt, request.mask)))
        labels = [f"U{index + 1}" for index in range(request.n)]
        if not upscale or any(label not in (task.buttons or {}) for label in labels):
            return _pictures(call, task)[: request.n]
        pressed = [_submitted(call, "mj/submit/action", _press(task, label)) for label in labels]
        return [image for one in pressed for image in _pictures(call, _finished(call, one), whole=True)]


def _body(request: ImageRequest, name: str, speed: str) -> tuple[str, dict[str, Any]]:
    """The path and the body of the first task of an adapted request."""
    kind, _ = _version(name)
    body: dict[str, Any] = {
        "prompt": " ".join([request.prompt, *_flags(request, name)]),
        "botType": "NIJI_JOURNEY" if kind == "niji-" else "MID_JOURNEY",
        "accountFilter": {"modes": [SPEEDS[speed]]},
    }
    if request.mask is not None:
        assert request.image is not None
        return "mj/submit/edits", {**body, "image": data_url(request.image), "maskBase64": _white(request.mask)}
    pictures = [*(() if request.image is None else (request.image,)), *request.images]
    if pictures:
        body["base64Array"] = [data_url(picture) for picture in pictures]
    return "mj/submit/imagine", body


def _version(name: str) -> tuple[str, str]:
    match = _MODEL.fullmatch(name)
    assert match is not None
    return match[1], match[2]


def _flags(request: ImageRequest, name: str) -> Iterator[str]:
    """What a request asks for, as Midjourney's parameters."""
    kind, number = _version(name)
    yield f"--{'niji' if kind == 'niji-' else 'v'} {number}"
    if request.size is not None and request.mask is None:
        common = gcd(*request.size)
        yield f"--ar {request.size[0] // common}:{request.size[1] // common}"
    if request.seed is not None:
        yield f"--seed {request.seed}"
    if request.negative_prompt:
        yield f"--no {_one_line(request.negative_prompt)}"
    if request.stylize != 1:
        yield f"--stylize {round(100 * request.stylize)}"
    if request.variety:
        yield f"--chaos {round(100 * request.variety)}"
    if request.weird:
        yield f"--weird {round(3000 * request.weird)}"
    if request.stop < 1:
        yield f"--stop {max(10, round(100 * request.stop))}"
    if request.tile:
        yield "--tile"
    options = request.provider_options
    if options.get("raw"):
        yield "--raw"
    for option, flag in (("sref", "sref"), ("cref", "cref"), ("image_weight", "iw")):
        if option in options:
            yield f"--{flag} {_one_line(text(options[option]))}"


def _one_line(words: str) -> str:
    """Words that begin no parameter of their own."""
    return " ".join(words.replace("--", " ").split())


def _white(mask: Image.Image) -> str:
    """A mask as it is wanted here: white where to repaint, black elsewhere."""
    return data_url(Image.fromarray(np.where(masks.hole(mask), 255, 0).astype(np.uint8), "L"))


def _modal(task: str, prompt: str, mask: Image.Image | None) -> dict[str, Any]:
    return {"taskId": task, "prompt": prompt, **({} if mask is None else {"maskBase64": _white(mask)})}


def _press(task: Task, label: str) -> dict[str, Any]:
    assert task.buttons is not None
    return {"taskId": task.id, "customId": task.buttons[label]}


def _acted(call: Call, task: str, label: str, prompt: str, mask: Image.Image | None) -> tuple[Call, Task]:
    """The finished task of a pressed button."""
    if not re.fullmatch(r"[\w-]{1,100}", task):
        raise UnsupportedError(f"{task!r} is no task of Midjourney.", "Give the task of a picture's record.")
    before = _finished(call, task)
    if label not in (before.buttons or {}):
        raise UnsupportedError(
            f"The task has no button {label!r}.", f"It has: {', '.join(sorted(before.buttons or {})) or 'none'}."
        )
    found = _finished(call, _submitted(call, "mj/submit/action", _press(before, label)))
    if found.status == ASKS:
        found = _finished(call, _submitted(call, "mj/submit/modal", _modal(found.id, prompt, mask)))
    return call, found


def _submitted(call: Call, path: str, body: Mapping[str, Any]) -> str:
    """The id of a task that was accepted. Raises ModerationError, QuotaError, ProviderError."""
    answer = call.post(path, json=body)
    told = answer.json()
    code, task = told.get("code"), text(told.get("result"))
    if code in SUBMITTED and task:
        return task
    message = text(told.get("description")) or f"code {text(code)}"
    refusal = Refusal(message, text(code) or None, moderated=code == BANNED, ours=code in (NOT_FOUND, INVALID))
    raise call.refused(refusal, 429 if code == QUEUE_FULL else 400 if refusal.ours else answer.status)


def _finished(call: Call, task: str) -> Task:
    """A task when it is done, or when it asks back. Raises ModerationError, ProviderError, ProviderTimeoutError."""

    def look() -> Task | None:
        told = call.get(f"mj/task/{task}/fetch").json()
        status = text(told.get("status")).upper()
        if status in WAITING:
            call.told(_percent(told.get("progress")))
            return None
        if status in BAD:
            reason = text(told.get("failReason")) or text(told.get("description")) or "no reason given"
            raise call.refused(Refusal(reason, status, moderated=bool(_REFUSED.search(reason))), 200)
        if status not in (GOOD, ASKS):
            raise call.error(f"{call.service} says that the task is {status!r}, which is not known here.", status)
        return Task(task, status, text(told.get("imageUrl")), _buttons(told.get("buttons")))

    return call.poll(look, EVERY)


def _percent(value: Any) -> float:
    match = re.fullmatch(r"(\d{1,3})%?", text(value))
    return float(match[1]) if match else 0.0


def _buttons(value: Any) -> dict[str, str]:
    """What pressing each labelled button takes."""
    buttons = [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
    labelled = [(text(one.get("label")) or text(one.get("emoji")), text(one.get("customId"))) for one in buttons]
    return {label: custom for label, custom in labelled if label and custom}


def _pictures(call: Call, task: Task, whole: bool = False) -> list[Image.Image]:
    """The pictures of a finished task: the four of a grid, which has buttons to choose one, or the one."""
    if task.status != GOOD or not task.url:
        raise ProviderError(f"{call.service} finished without a picture.", "Ask again.", provider=call.service)
    from imagewright.engines.hosted.answers import picture

    image = picture(call.fetch(task.url), call.service, **task.told())
    if whole or "U1" not in (task.buttons or {}):
        return [image]
    decode(image)
    width, height = image.width // 2, image.height // 2
    corners = [(x, y) for y in (0, height) for x in (0, width)]
    parts = [image.crop((x, y, x + width, y + height)) for x, y in corners]
    for part in parts:
        part.info = {"record": task.told()}
    return parts
