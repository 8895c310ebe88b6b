"""A stand-in for CometAPI: OpenAI's form with its own errors, and Midjourney's tasks with their buttons."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from openai_service import OpenAIService
from PIL import Image
from standin import Asked, Reply, as_json, as_picture, drawn, route

KEY = "sk-canary-comet-90fe"
CORNERS = ("#ff0000", "#00ff00", "#0000ff", "#ffff00")
FLAGS = {"v", "niji", "ar", "seed", "no", "stylize", "chaos", "weird", "stop", "tile", "raw", "sref", "cref", "iw"}


@dataclass
class Task:
    """What the service knows of a task; `states` are what the next looks at it will find."""

    action: str
    prompt: str
    picture: bytes
    buttons: list[dict[str, Any]] = field(default_factory=list)
    states: list[str] = field(default_factory=lambda: ["NOT_START", "SUBMITTED", "IN_PROGRESS"])
    ends: str = "SUCCESS"
    reason: str = ""


def grid(side: int = 32) -> bytes:
    """Four squares of one colour each, in one picture."""
    whole = Image.new("RGB", (2 * side, 2 * side))
    for index, colour in enumerate(CORNERS):
        whole.paste(Image.new("RGB", (side, side), colour), (side * (index % 2), side * (index // 2)))
    out = BytesIO()
    whole.save(out, "PNG")
    return out.getvalue()


class CometService(OpenAIService):
    """`code` is what the next submit answers, `ends` and `reason` how the next task does."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, Task] = {}
        self.code, self.ends, self.reason = 1, "SUCCESS", ""

    def failure(self, status: int, message: str) -> Reply:
        code = "invalid_request" if status in (400, 500) else ""
        error = {"message": f"{message} (request id: 1)", "type": "comet_api_error", "param": "", "code": code}
        return as_json({"error": error}, status)

    def _known(self, asked: Asked) -> None:
        self.demand(asked.headers.get("authorization") == f"Bearer {KEY}", 401, "invalid token")

    def _check(self, body: Any, known: set[str]) -> None:
        if not body["model"].startswith("qwen-image"):
            return super()._check(body, known)
        self.demand(set(body) <= {"model", "prompt", "n", "size", "response_format", "mask"}, 500, "unknown field")
        self.demand(body["n"] == 1, 500, "n must be 1")
        return None

    @route("POST", "/mj/submit/imagine")
    def imagine(self, asked: Asked) -> Reply:
        body = self._submit(asked, {"prompt", "botType", "accountFilter", "base64Array"})
        for picture in body.get("base64Array", []):
            self._picture(picture)
        words, *flags = body["prompt"].split(" --")
        names = [flag.partition(" ")[0] for flag in flags]
        self.demand(words and set(names) <= FLAGS and len(set(names)) == len(names), 400, f"bad flags {names}")
        self.demand(body["botType"] == ("NIJI_JOURNEY" if "niji" in names else "MID_JOURNEY"), 400, "bot type")
        return self._new(Task("IMAGINE", body["prompt"], grid(), _grid_buttons()))

    @route("POST", "/mj/submit/edits")
    def edits_of(self, asked: Asked) -> Reply:
        body = self._submit(asked, {"prompt", "botType", "accountFilter", "image", "maskBase64"})
        image, mask = self._picture(body["image"]), self._mask(body["maskBase64"])
        self.demand(image.size == mask.size, 400, "mask size")
        out = BytesIO()
        Image.new("RGB", image.size, "#00ff00").save(out, "PNG")
        return self._new(Task("EDITS", body["prompt"], out.getvalue()))

    @route("POST", "/mj/submit/action")
    def action(self, asked: Asked) -> Reply:
        body = self._submit(asked, {"taskId", "customId"})
        task = self.tasks[body["taskId"]]
        pressed = [one for one in task.buttons if one["customId"] == body["customId"]]
        self.demand(pressed, 400, "no such button")
        label = pressed[0]["label"]
        if label.startswith("U"):
            return self._new(Task("UPSCALE", task.prompt, drawn((64, 64), CORNERS[int(label[1]) - 1]), _one_buttons()))
        if label.startswith("V") and len(label) == 2:
            return self._new(Task("VARIATION", task.prompt, grid(), _grid_buttons()))
        return self._new(Task("INPAINT", task.prompt, b"", ends="MODAL"))

    @route("POST", "/mj/submit/modal")
    def modal(self, asked: Asked) -> Reply:
        body = self._submit(asked, {"taskId", "prompt", "maskBase64"})
        self.demand(self.tasks[body["taskId"]].ends == "MODAL", 400, "not in MODAL")
        if "maskBase64" in body:
            self._mask(body["maskBase64"])
        return self._new(Task("INPAINT", body["prompt"], grid(), _grid_buttons()))

    @route("GET", "/mj/task/*")
    def fetch(self, asked: Asked) -> Reply:
        self._known(asked)
        match = re.fullmatch(r"/mj/task/(\d+)/fetch", asked.path)
        self.demand(match and match[1] in self.tasks, 404, "no such task")
        assert match is not None
        task = self.tasks[match[1]]
        told = {"id": match[1], "action": task.action, "prompt": task.prompt, "imageUrl": "", "buttons": []}
        if task.states:
            status = task.states.pop(0)
            return as_json({**told, "status": status, "progress": "58%" if status == "IN_PROGRESS" else ""})
        link = f"{self.url}/mj/image/{match[1]}" if task.ends == "SUCCESS" else ""
        found = {"status": task.ends, "progress": "100%", "failReason": task.reason}
        return as_json({**told, **found, "imageUrl": link, "buttons": task.buttons})

    @route("GET", "/mj/image/*")
    def image(self, asked: Asked) -> Reply:
        self.demand("authorization" not in asked.headers, 400, "a key for the picture")
        return as_picture(self.tasks[asked.path.rpartition("/")[2]].picture)

    def _submit(self, asked: Asked, known: set[str]) -> dict[str, Any]:
        self._known(asked)
        body: dict[str, Any] = asked.json()
        self.demand(set(body) <= known and "notifyHook" not in body, 400, f"unknown {sorted(set(body) - known)}")
        if "accountFilter" in body:
            (mode,) = body["accountFilter"]["modes"]
            self.demand(mode in ("FAST", "RELAX", "TURBO"), 400, "mode")
        return body

    def _picture(self, text: str) -> Image.Image:
        self.demand(text.startswith("data:image/png;base64,"), 400, "no data URL")
        return Image.open(BytesIO(b64decode(text.partition(",")[2])), formats=("PNG",))

    def _mask(self, text: str) -> Image.Image:
        mask = self._picture(text)
        values = set(np.unique(np.asarray(mask)).tolist())
        self.demand(mask.mode == "L" and values <= {0, 255} and 255 in values, 400, "no black and white mask")
        return mask

    def _new(self, task: Task) -> Reply:
        code, self.code = self.code, 1
        if code not in (1, 22):
            return as_json({"code": code, "description": f"code {code}", "result": None})
        if task.ends == "SUCCESS":
            task.ends, task.reason = self.ends, self.reason
            self.ends, self.reason = "SUCCESS", ""
        name = str(1000 + len(self.tasks))
        self.tasks[name] = task
        return as_json({"code": code, "description": "Submit success", "result": name, "properties": {}})


def _grid_buttons() -> list[dict[str, Any]]:
    labels = [*(f"U{i}" for i in range(1, 5)), *(f"V{i}" for i in range(1, 5))]
    named = [{"customId": f"MJ::JOB::{one}::hash", "emoji": "", "label": one, "type": 2, "style": 2} for one in labels]
    return [*named, {"customId": "MJ::JOB::reroll::0::hash", "emoji": "🔄", "label": "", "type": 2, "style": 2}]


def _one_buttons() -> list[dict[str, Any]]:
    return [{"customId": "MJ::Inpaint::1::hash", "emoji": "🖌️", "label": "Vary (Region)", "type": 2, "style": 2}]
