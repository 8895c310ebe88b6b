"""A stand-in that answers as OpenAI's Images API does, and refuses what that refuses."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import Image
from standin import Asked, Reply, StandIn, as_events, as_json, as_picture, drawn, route

KEY = "sk-canary-openai-51d2"
GPT = {
    *("model", "prompt", "n", "size", "quality", "background", "moderation", "output_format", "output_compression"),
    *("stream", "partial_images", "user", "safety_identifier"),
}
DALL_E = {"model", "prompt", "n", "size", "quality", "response_format", "style", "user"}
FIXED = ("1024x1024", "1536x1024", "1024x1536")
USAGE = {
    "total_tokens": 1066,
    "input_tokens": 10,
    "output_tokens": 1056,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
}
LIVE = (
    *("gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "chatgpt-image-latest", "gpt-image-2"),
    *("gpt-image-2.5-sunburst", "gpt-image-2.5-flare", "gpt-image-2.6-sunburst", "gpt-image-2.6-flare"),
    *("dall-e-2", "dall-e-3", "gpt-image-9"),
)


class OpenAIService(StandIn):
    """`colour` is what it draws; `streams`: whether it knows about streams; `links`: DALL-E answers with addresses."""

    def __init__(self, streams: bool = True, links: bool = False) -> None:
        super().__init__()
        self.colour, self.streams, self.links = "#2277cc", streams, links

    def failure(self, status: int, message: str) -> Reply:
        code, _, rest = message.rpartition(": ")
        kind = "image_generation_user_error" if code == "moderation_blocked" else "invalid_request_error"
        error = {"message": rest, "type": kind, "param": None, "code": code or None}
        return as_json({"error": error}, status, x_request_id="req-bad")

    @route("POST", "/v1/images/generations")
    def generations(self, asked: Asked) -> Reply:
        self._known(asked)
        self.demand(asked.headers["content-type"] == "application/json", 400, "not JSON")
        body = asked.json()
        self._check(body, GPT | {"complexity"})
        return self._answer(body, "image_generation")

    @route("POST", "/v1/images/edits")
    def edits(self, asked: Asked) -> Reply:
        self._known(asked)
        self.demand(asked.headers["content-type"].startswith("multipart/form-data; boundary="), 400, "not a form")
        body: dict[str, Any] = dict(asked.texts())
        for name in ("n", "output_compression", "partial_images"):
            if name in body:
                body[name] = int(body[name])
        if "stream" in body:
            body["stream"] = json.loads(body["stream"])
        self._check(body, (GPT | {"input_fidelity", "complexity"}) - {"moderation"})
        files = asked.files()
        self.demand(set(files) <= {"image", "image[]", "mask"}, 400, "unknown_parameter: a file")
        self.demand(("image" in files) != ("image[]" in files), 400, "missing_required_parameter: image")
        self.demand(len(files.get("image", [0])) == 1 and len(files.get("image[]", [])) <= 16, 400, "images")
        first = files.get("image", files.get("image[]", []))[0]
        self._check_file(first.data, first.content_type)
        for part in files.get("mask", []):
            mask = self._check_file(part.data, part.content_type)
            self.demand(mask.size == Image.open(BytesIO(first.data), formats=("PNG",)).size, 400, "mask size")
            self.demand(mask.mode == "RGBA" and mask.getchannel("A").getextrema()[0] == 0, 400, "mask alpha")
        return self._answer(body, "image_edit")

    @route("GET", "/files/*")
    def files(self, asked: Asked) -> Reply:
        self.demand("authorization" not in asked.headers, 400, "a key for the files")
        self.demand(asked.query.get("sig") == ["1"], 403, "AuthenticationFailed")
        return as_picture(drawn((1024, 1024), self.colour))

    def _known(self, asked: Asked) -> None:
        self.demand("authorization" in asked.headers, 401, "missing: You didn't provide an API key")
        right = asked.headers["authorization"] == f"Bearer {KEY}"
        self.demand(right, 401, f"invalid_api_key: Incorrect API key provided ({asked.headers['authorization']})")

    def _check_file(self, data: bytes, content_type: str) -> Image.Image:
        self.demand(content_type == "image/png" and data.startswith(b"\x89PNG"), 400, "invalid_image: not a PNG")
        return Image.open(BytesIO(data), formats=("PNG",))

    def _check(self, body: Mapping[str, Any], known: set[str]) -> None:
        model = body.get("model", "")
        self.demand(model in LIVE, 404, f"model_not_found: {model}")
        if model.startswith("dall-e"):
            known = DALL_E
        elif not model.startswith(("gpt-image-2.6", "gpt-image-9")):
            known = known - {"complexity"}
        if model.startswith(("gpt-image-2", "gpt-image-1-mini")):
            known = known - {"input_fidelity"}
        unknown = sorted(set(body) - known)
        self.demand(not unknown, 400, f"unknown_parameter: {unknown}")
        self.demand("forbidden" not in body["prompt"], 400, "moderation_blocked: safety_violations=[violence]")
        self.demand(1 <= body["n"] <= (1 if model == "dall-e-3" else 10), 400, "invalid_value: n")
        self.demand(self._size_good(model, body["size"]), 400, f"invalid_value: size {body['size']}")
        good = {"low", "medium", "high"} | ({"xhigh", "max"} if model[10:13] in ("2.5", "2.6") else set())
        good = {"standard", "hd"} if model.startswith("dall-e") else good
        self.demand(body.get("quality", "auto") in good | {"auto"}, 400, "invalid_value: quality")
        jpeg = body.get("output_format") == "jpeg"
        self.demand(not (jpeg and body.get("background") == "transparent"), 400, "invalid_value: background")
        clear = body.get("background") == "transparent" and model == "gpt-image-2"
        self.demand(not clear, 400, "invalid_value: transparent background")

    def _size_good(self, model: str, text: str) -> bool:
        if model == "dall-e-2":
            return text in ("256x256", "512x512", "1024x1024")
        if model == "dall-e-3":
            return text in ("1024x1024", "1792x1024", "1024x1792")
        if model.startswith(("gpt-image-1", "chatgpt")):
            return text in FIXED
        match = re.fullmatch(r"(\d+)x(\d+)", text)
        if match is None:
            return False
        width, height = int(match[1]), int(match[2])
        whole = width % 16 == height % 16 == 0 and max(width, height) <= min(3840, 3 * min(width, height))
        return whole and 655_360 <= width * height <= 8_294_400

    def _answer(self, body: Mapping[str, Any], kind: str) -> Reply:
        if body.get("stream"):
            self.demand("partial_images" in body and body["partial_images"] <= 3, 400, "invalid_value: partial_images")
            if self.streams:
                return as_events(self._events(body, kind))
        encoded = self._drawn(body)
        one: dict[str, Any] = {"b64_json": encoded}
        if body["model"].startswith("dall-e"):
            one["revised_prompt"] = f"{body['prompt']}, in detail"
        if body["model"].startswith("dall-e") and self.links:
            one = {"url": f"{self.url}/files/a.png?sig=1"}
        told = {"size": body["size"], "usage": USAGE} if body["model"].startswith("gpt") else {}
        return as_json({"created": 1, "data": [one] * body["n"], **told}, x_request_id="req-good")

    def _events(self, body: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
        encoded = self._drawn(body)
        common = {"b64_json": encoded, "created_at": 1, "size": body["size"], "output_format": "png"}
        partial = [
            {"type": f"{kind}.partial_image", "partial_image_index": index, **common}
            for index in range(body["partial_images"])
        ]
        return [*partial, {"type": f"{kind}.completed", **common, "usage": USAGE}]

    def _drawn(self, body: Mapping[str, Any]) -> str:
        width, _, height = body["size"].partition("x")
        kind = body.get("output_format", "png").upper()
        clear = body.get("background") == "transparent"
        colour = f"{self.colour}80" if clear else self.colour
        data = drawn((int(width), int(height)), colour, kind, "RGBA" if clear else "RGB")
        return b64encode(data).decode()
