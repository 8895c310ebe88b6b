"""A stand-in for Black Forest Labs' API: tasks with their fields, looks, and pictures whose links end."""

from __future__ import annotations

import base64
from io import BytesIO
from math import sqrt
from typing import Any

from PIL import Image
from standin import Asked, Refused, Reply, StandIn, as_json, as_picture, drawn, route

RATIOS = {"21:9", "16:9", "3:2", "4:3", "1:1", "3:4", "2:3", "9:16", "9:21"}
RATIOS_3 = RATIOS | {"auto", "2:1", "7:5", "5:4", "4:5", "5:7", "1:2"}
TIERS_3 = {"768sq": 768, "1k": 1024, "1.5k": 1536, "2k": 2048, "4k": 4096}
_COMMON = {"prompt", "seed", "output_format", "safety_tolerance", "webhook_url", "webhook_secret"}
_TWO = _COMMON | {"width", "height"}
_INPUTS = ["input_image", *(f"input_image_{number}" for number in range(2, 9))]
_OLD = _COMMON | {"width", "height", "prompt_upsampling", "image_prompt"}
_TOOL = _COMMON | {"image", "prompt_upsampling", "steps", "guidance"}
_THREE = {"prompt", "images", "aspect_ratio", "resolution", "grounding", "safety_tolerance", "version"}
FIELDS = {
    "flux-2-pro": _TWO | set(_INPUTS),
    "flux-2-max": _TWO | set(_INPUTS),
    "flux-2-flex": _TWO | set(_INPUTS) | {"steps", "guidance", "prompt_upsampling"},
    "flux-2-klein-4b": _TWO | set(_INPUTS[:4]),
    "flux-2-klein-9b": _TWO | set(_INPUTS[:4]),
    "flux-3-image": _THREE,
    "flux-3-image-klein": _THREE,
    "flux-kontext-pro": _COMMON | set(_INPUTS[:4]) | {"aspect_ratio", "prompt_upsampling"},
    "flux-kontext-max": _COMMON | set(_INPUTS[:4]) | {"aspect_ratio", "prompt_upsampling"},
    "flux-pro-1.1": _OLD,
    "flux-pro": _OLD,
    "flux-dev": _OLD | {"steps", "guidance"},
    "flux-pro-1.1-ultra": _COMMON | {"aspect_ratio", "raw", "image_prompt", "image_prompt_strength"},
    "flux-pro-1.0-fill": _TOOL | {"mask"},
    "flux-pro-1.0-expand": _TOOL | {"top", "bottom", "left", "right"},
}
STEPS = {"flux-2-flex": (1, 50), "flux-dev": (1, 50), "flux-pro-1.0-fill": (15, 50), "flux-pro-1.0-expand": (15, 50)}
GUIDANCE = {
    "flux-2-flex": (1.5, 10),
    "flux-dev": (1.5, 5),
    "flux-pro-1.0-fill": (1.5, 100),
    "flux-pro-1.0-expand": (1.5, 100),
}


class Wrong(Refused):
    """A field that is not as it should be: 422, and where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(422, message)
        self.field = field


class Bfl(StandIn):
    """`forbidden` in the words is refused before, `withheld` after, `crash` ends in an error. A task is done after
    `looks` looks. `elsewhere` and `sample` replace the addresses that it names; `ended`: links are over."""

    key = "bfl-canary-77aa01"
    looks = 2
    credit = 40.0
    elsewhere = sample = ""
    ended = False

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, dict[str, Any]] = {}

    def failure(self, status: int, message: str) -> Reply:
        return as_json({"detail": message}, status)

    def _identify(self, asked: Asked) -> None:
        self.demand("x-key" in asked.headers, 403, "Not authenticated - No credentials provided")
        self.demand(asked.headers["x-key"] == self.key, 403, "Not authenticated - Invalid key")

    @route("POST", "/v1/*")
    def submit(self, asked: Asked) -> Reply:
        self._identify(asked)
        model, body = asked.path.removeprefix("/v1/"), asked.json()
        self.demand(model in FIELDS, 404, "Not Found")
        try:
            self._check(model, body)
        except Wrong as wrong:
            return as_json(
                {"detail": [{"loc": ["body", wrong.field], "msg": wrong.message, "type": "value_error"}]}, 422
            )
        self.demand(self.credit >= 4, 402, "Insufficient credits")
        self.credit -= 4
        task = f"task-{len(self.tasks)}"
        self.tasks[task] = {"model": model, "body": body, "looks": self.looks, "size": self._size(model, body)}
        url = self.elsewhere or f"{self.url}/v1/get_result?id={task}"
        return as_json({"id": task, "polling_url": url, "cost": 4, "input_mp": 0.0, "output_mp": 1.05})

    @route("GET", "/v1/get_result")
    def look(self, asked: Asked) -> Reply:
        self._identify(asked)
        name = asked.query["id"][0]
        if name not in self.tasks:
            return as_json({"id": name, "status": "Task not found", "result": None})
        task = self.tasks[name]
        words, task["looks"] = task["body"]["prompt"], task["looks"] - 1
        if "forbidden" in words:
            return as_json({"id": name, "status": "Request Moderated", "details": {"Moderation Reasons": ["violence"]}})
        if task["looks"] >= 0:
            return as_json({"id": name, "status": "Pending", "result": None, "progress": 0.5})
        if "withheld" in words:
            return as_json({"id": name, "status": "Content Moderated", "result": None})
        if "crash" in words:
            return as_json({"id": name, "status": "Error", "details": {"why": "out of memory"}})
        sample = self.sample or f"{self.url}/delivery/{name}.png"
        result = {"sample": sample, "seed": task["body"].get("seed", 99), "prompt": words, "duration": 1.5}
        return as_json({"id": name, "status": "Ready", "result": result})

    @route("GET", "/delivery/*")
    def delivery(self, asked: Asked) -> Reply:
        self.demand("x-key" not in asked.headers, 400, "a key has no place here")
        self.demand(not self.ended, 403, "AuthenticationFailed: Signature not valid in the specified time frame")
        task = self.tasks[asked.path.removeprefix("/delivery/").removesuffix(".png")]
        return as_picture(drawn(task["size"], "#1133aa"))

    def _check(self, model: str, body: dict[str, Any]) -> None:
        for name in set(body) - FIELDS[model]:
            raise Wrong(name, "Extra inputs are not permitted")
        need = "image" if model.endswith(("fill", "expand")) else "prompt"
        _right(need in body, need, "Field required")
        _right(body.get("output_format", "png") in ("png", "jpeg"), "output_format", "must be png or jpeg")
        ratios = RATIOS_3 if model.startswith("flux-3") else RATIOS
        _right(body.get("aspect_ratio", "1:1") in ratios, "aspect_ratio", "not supported")
        _right(body.get("resolution", "1k") in TIERS_3, "resolution", "not supported")
        for name, limits in (("steps", STEPS.get(model)), ("guidance", GUIDANCE.get(model))):
            if limits and name in body:
                _right(limits[0] <= body[name] <= limits[1], name, f"must be {limits[0]} to {limits[1]}")
        self._check_size(model, body)
        pictures = [*body.get("images", []), *(body[name] for name in [*_INPUTS, "image", "mask"] if name in body)]
        _right(len(pictures) <= 10, "images", "at most 10")
        decoded = [Image.open(BytesIO(base64.b64decode(one, validate=True)), formats=("PNG",)) for one in pictures]
        if model.startswith("flux-3"):
            _right(all(min(one.size) >= 256 for one in decoded), "images", "each must be at least 256x256")
        if "mask" in body:
            _right(decoded[0].size == decoded[1].size and decoded[1].mode == "L", "mask", "must be of the image's size")
        if model.endswith("expand"):
            sides = [body.get(name, 0) for name in ("top", "bottom", "left", "right")]
            _right(any(sides) and min(sides) >= 0 and max(sides) <= 2048, "top", "must be 0 to 2048")

    def _check_size(self, model: str, body: dict[str, Any]) -> None:
        for name in {"width", "height"} & set(body):
            least, most, step = (64, 2**22 // 64, 16) if model.startswith("flux-2") else (256, 1440, 32)
            _right(least <= body[name] <= most and body[name] % step == 0, name, f"{least}-{most}, multiple of {step}")
        _right(body.get("width", 1) * body.get("height", 1) <= 2**22, "width", "at most 4 megapixels")

    def _size(self, model: str, body: dict[str, Any]) -> tuple[int, int]:
        if "width" in body:
            return body["width"], body["height"]
        if "image" in body:
            width, height = Image.open(BytesIO(base64.b64decode(body["image"])), formats=("PNG",)).size
            return width + body.get("left", 0) + body.get("right", 0), height + body.get("top", 0) + body.get(
                "bottom", 0
            )
        across, down = (int(part) for part in body["aspect_ratio"].split(":"))
        side = TIERS_3.get(body.get("resolution", "1k"), 1024) / 16  # small, so that the tests are quick
        return round(side * sqrt(across / down)), round(side * sqrt(down / across))


def _right(fulfilled: object, field: str, message: str) -> None:
    if not fulfilled:
        raise Wrong(field, message)
