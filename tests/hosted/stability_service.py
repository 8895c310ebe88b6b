"""A stand-in for Stability's v2beta: every field that a service does not know, or of a wrong value, is refused."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from PIL import Image
from standin import Asked, Reply, StandIn, as_json, as_picture, drawn, route

RATIOS = {
    "21:9": (1536, 640),
    "16:9": (1344, 768),
    "3:2": (1216, 832),
    "5:4": (1088, 896),
    "1:1": (1024, 1024),
    "4:5": (896, 1088),
    "2:3": (832, 1216),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}
STYLES = {
    "enhance",
    "anime",
    "photographic",
    "digital-art",
    "comic-book",
    "fantasy-art",
    "line-art",
    "analog-film",
    "neon-punk",
    "isometric",
    "low-poly",
    "origami",
    "modeling-compound",
    "cinematic",
    "3d-model",
    "pixel-art",
    "tile-texture",
}
_COMMON = {"seed", "output_format"}
# path: (fields that must be there, fields that may be there)
SERVICES: dict[str, tuple[set[str], set[str]]] = {
    "generate/ultra": ({"prompt"}, {"negative_prompt", "aspect_ratio", "image", "strength"}),
    "generate/core": ({"prompt"}, {"negative_prompt", "aspect_ratio", "style_preset"}),
    "generate/sd3": (
        {"prompt"},
        {"mode", "image", "strength", "aspect_ratio", "model", "negative_prompt", "cfg_scale"},
    ),
    "edit/erase": ({"image"}, {"mask", "grow_mask"}),
    "edit/inpaint": ({"image", "prompt"}, {"negative_prompt", "mask", "grow_mask", "style_preset"}),
    "edit/outpaint": ({"image"}, {"left", "right", "up", "down", "creativity", "prompt"}),
    "edit/search-and-replace": ({"image", "prompt", "search_prompt"}, {"negative_prompt", "grow_mask"}),
    "edit/remove-background": ({"image"}, set()),
    "upscale/fast": ({"image"}, set()),
    "upscale/conservative": ({"image", "prompt"}, {"negative_prompt", "creativity"}),
    "upscale/creative": ({"image", "prompt"}, {"negative_prompt", "creativity"}),
}
NAMES = {400: "bad_request", 401: "unauthorized", 403: "content_moderation", 413: "payload_too_large", 404: "not_found"}
LATE = {"upscale/creative"}


class Stability(StandIn):
    """`forbidden` in the words is refused before, `blurred` after. What takes longer is done after `looks` looks."""

    key = "sk-canary-stability-5f1e"
    looks = 2

    def __init__(self) -> None:
        super().__init__()
        self._late: dict[str, list[Any]] = {}

    def failure(self, status: int, message: str) -> Reply:
        return as_json({"id": "e7", "name": NAMES.get(status, "error"), "errors": [message]}, status)

    def _identify(self, asked: Asked) -> None:
        self.demand(asked.headers.get("authorization") == f"Bearer {self.key}", 401, "authorization: invalid key")

    @route("POST", "/v2beta/stable-image/*")
    def service(self, asked: Asked) -> Reply:
        self._identify(asked)
        path = asked.path.removeprefix("/v2beta/stable-image/")
        self.demand(path in SERVICES, 404, f"no service {path}")
        form = asked.headers.get("content-type", "").startswith("multipart/form-data; boundary=")
        self.demand(form, 400, "content-type: must be multipart/form-data")
        accepted = "application/json" if path in LATE else "image/*"
        self.demand(asked.headers.get("accept") == accepted, 400, "accept: must be image/* or application/json")
        texts, files = asked.texts(), {name: found[0].data for name, found in asked.files().items()}
        self._check(path, texts, files)
        words = texts.get("prompt", "")
        self.demand("forbidden" not in words, 403, "Your request was flagged by our content moderation system")
        if path in LATE:
            self._late["f00d"] = [self.looks, self._drawn(path, texts, files)]
            return as_json({"id": "f00d"})
        seed = texts.get("seed", "0")
        told = {"finish-reason": "SUCCESS", "seed": "77" if seed == "0" else seed, "x-request-id": "req-5"}
        if "blurred" in words:
            told["finish-reason"] = "CONTENT_FILTERED"
        return Reply(200, self._drawn(path, texts, files), told, "image/png")

    @route("GET", "/v2beta/results/*")
    def result(self, asked: Asked) -> Reply:
        self._identify(asked)
        job = asked.path.rpartition("/")[2]
        self.demand(job in self._late, 404, "results: no such id, or it has expired")
        self.demand(asked.headers.get("accept") in ("*/*", "application/json"), 400, "accept: must be */*")
        self._late[job][0] -= 1
        if self._late[job][0] >= 0:
            return as_json({"id": job, "status": "in-progress"}, 202)
        return as_picture(self._late[job][1], finish_reason="SUCCESS", seed="9")

    def _check(self, path: str, texts: dict[str, str], files: dict[str, bytes]) -> None:
        required, optional = SERVICES[path]
        given = {*texts, *files}
        for name in given - required - optional - _COMMON:
            self.demand(False, 400, f"{name}: unrecognized field")
        self.demand(required <= given, 400, f"{', '.join(required - given)}: is required")
        self.demand(set(files) <= {"image", "mask"}, 400, "a text field came as a file")
        self.demand(len(texts.get("prompt", "x")) <= 10_000, 400, "prompt: cannot exceed 10000 characters")
        self.demand(0 <= int(texts.get("seed", "0")) <= 4_294_967_294, 400, "seed: must be 0 to 4294967294")
        formats = ("jpeg", "png") if path.endswith("sd3") else ("jpeg", "png", "webp")
        self.demand(texts.get("output_format", "png") in formats, 400, "output_format: not supported")
        self.demand(texts.get("aspect_ratio", "1:1") in RATIOS, 400, "aspect_ratio: not supported")
        self.demand(texts.get("style_preset", "enhance") in STYLES, 400, "style_preset: not supported")
        self.demand(0 <= float(texts.get("strength", "0")) <= 1, 400, "strength: must be 0 to 1")
        self.demand(1 <= float(texts.get("cfg_scale", "1")) <= 10, 400, "cfg_scale: must be 1 to 10")
        self.demand(("strength" in texts) == ("image" in files) or "generate" not in path, 400, "strength with image")
        if path == "generate/sd3":
            to_image = "image" in files
            self.demand(texts.get("mode") == ("image-to-image" if to_image else "text-to-image"), 400, "mode: wrong")
            self.demand(not (to_image and "aspect_ratio" in texts), 400, "aspect_ratio: only for text-to-image")
            known = {"sd3.5-large", "sd3.5-large-turbo", "sd3.5-medium"}
            self.demand(texts.get("model", "sd3.5-large") in known, 400, "model: not supported")
        if path == "edit/outpaint":
            sides = [int(texts.get(name, "0")) for name in ("left", "right", "up", "down")]
            self.demand(any(sides) and min(sides) >= 0 and max(sides) <= 2000, 400, "a direction is required")
        for name, data in files.items():
            self._check_picture(path, name, data)

    def _check_picture(self, path: str, name: str, data: bytes) -> None:
        image = Image.open(BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        self.demand(min(image.size) >= 64, 400, f"{name}: each side must be at least 64 pixels")
        most = 1_048_576 if path == "upscale/fast" else 9_437_184
        self.demand(image.width * image.height <= most, 400, f"{name}: too many pixels")
        if name == "mask":
            self.demand(image.mode == "L", 400, "mask: must be grey")

    def _drawn(self, path: str, texts: dict[str, str], files: dict[str, bytes]) -> bytes:
        if "image" not in files:
            return drawn(RATIOS[texts.get("aspect_ratio", "1:1")])
        width, height = Image.open(BytesIO(files["image"]), formats=("PNG",)).size
        if path == "edit/outpaint":
            width += int(texts.get("left", 0)) + int(texts.get("right", 0))
            height += int(texts.get("up", 0)) + int(texts.get("down", 0))
        scale = 4 if path.startswith("upscale") else 1
        mode = "RGBA" if path == "edit/remove-background" else "RGB"
        return drawn((width * scale, height * scale), "#11aa3380" if mode == "RGBA" else "#11aa33", mode=mode)
