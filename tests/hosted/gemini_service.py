"""A stand-in for the Gemini API's `generateContent` of the models that draw: unknown names and values are refused."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from PIL import Image
from standin import Asked, Reply, StandIn, as_json, drawn, route

USUAL = {
    "1:1": (1024, 1024),
    "16:9": (1376, 768),
    "9:16": (768, 1376),
    "3:2": (1264, 848),
    "2:3": (848, 1264),
    "4:3": (1200, 896),
    "3:4": (896, 1200),
    "4:5": (928, 1152),
    "5:4": (1152, 928),
    "21:9": (1584, 672),
}
EXTREME = {"1:4": (512, 2048), "4:1": (2048, 512), "1:8": (352, 2944), "8:1": (2944, 352)}
SCALES = {"512": 0.5, "1K": 1, "2K": 2, "4K": 4}
MODELS = {
    "gemini-3-pro-image": ({"1K", "2K", "4K"}, USUAL),
    "gemini-3.1-flash-image": (set(SCALES), USUAL | EXTREME),
    "gemini-3.1-flash-lite-image": ({"1K"}, USUAL),
    "gemini-nano-banana-2.1": ({"1K", "2K", "4K"}, USUAL | EXTREME),
}
STATUS = {400: "INVALID_ARGUMENT", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}
SIGNATURE = "c2lnbmF0dXJl"


class Gemini(StandIn):
    """`forbidden` in the words is refused before, `withheld` after; `talk` is answered in words alone."""

    key = "AIza-canary-gemini-91c2"
    small = 16  # its pictures are so much smaller than the real ones, so that the tests are quick

    def failure(self, status: int, message: str) -> Reply:
        error: dict[str, Any] = {"code": status, "message": message, "status": STATUS.get(status, "INTERNAL")}
        if message.startswith("API key not valid"):
            error["details"] = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
        return as_json({"error": error}, status)

    @route("POST", "/v1beta/models/*")
    def generate(self, asked: Asked) -> Reply:
        key = asked.headers.get("x-goog-api-key")
        self.demand(key is not None, 403, "Method doesn't allow unregistered callers")
        self.demand(key == self.key and not asked.query, 400, "API key not valid. Please pass a valid API key.")
        model, _, method = asked.path.rpartition("/")[2].partition(":")
        self.demand(model in MODELS and method == "generateContent", 404, f"models/{model} is not found")
        body = asked.json()
        parts = self._contents(body)
        size = self._size(model, body.get("generationConfig", {}))
        words = " ".join(part.get("text", "") for part in parts)
        used = {"promptTokenCount": 7, "candidatesTokenCount": 1120, "totalTokenCount": 1127}
        told = {"usageMetadata": used, "modelVersion": model, "responseId": "resp-1"}
        if "forbidden" in words:
            return as_json({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, **told})
        if "withheld" in words:
            return as_json({"candidates": [{"finishReason": "IMAGE_SAFETY", "index": 0}], **told})
        if "talk" in words:
            content = {"role": "model", "parts": [{"text": "I would rather talk."}]}
            return as_json({"candidates": [{"content": content, "finishReason": "NO_IMAGE"}], **told})
        return as_json({"candidates": [{"content": self._drawn(size), "finishReason": "STOP"}], **told})

    def _drawn(self, size: tuple[int, int]) -> dict[str, Any]:
        small = (size[0] // self.small, size[1] // self.small)
        draft, final = (base64.b64encode(drawn(small, colour)).decode() for colour in ("#0000ff", "#aa3311"))
        return {
            "role": "model",
            "parts": [
                {"text": "First a draft.", "thought": True},
                {"inlineData": {"mimeType": "image/png", "data": draft}, "thought": True},
                {"text": "Here it is."},
                {"inlineData": {"mimeType": "image/png", "data": final}, "thoughtSignature": SIGNATURE},
            ],
        }

    def _contents(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The parts of the last turn."""
        self._known(body, {"contents", "generationConfig"}, "")
        turns = body.get("contents")
        self.demand(isinstance(turns, list) and turns, 400, "contents is not specified")
        for number, turn in enumerate(turns):
            self._known(turn, {"role", "parts"}, f"contents[{number}]")
            self.demand(turn["role"] == ("model" if number % 2 else "user"), 400, "turns must alternate")
            for part in turn["parts"]:
                self._known(part, {"text", "inlineData", "thoughtSignature", "thought_signature", "thought"}, "parts")
                if turn["role"] == "model" and "inlineData" in part and not part.get("thought"):
                    signed = part.get("thoughtSignature") or part.get("thought_signature")
                    self.demand(signed == SIGNATURE, 400, "a thought_signature is missing")
                if "inlineData" in part:
                    self._inline(part["inlineData"])
        last: list[dict[str, Any]] = turns[-1]["parts"]
        self.demand(turns[-1]["role"] == "user" and last, 400, "the last turn must be the user's")
        return last

    def _inline(self, inline: dict[str, Any]) -> None:
        self._known(inline, {"mimeType", "mime_type", "data"}, "inlineData")  # Google's own client writes the second
        data = base64.b64decode(inline["data"].replace("-", "+").replace("_", "/"), validate=True)  # and this alphabet
        image = Image.open(BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        kind = inline.get("mimeType") or inline.get("mime_type")
        self.demand(kind == f"image/{str(image.format).lower()}", 400, "mimeType does not fit the data")

    def _size(self, model: str, config: dict[str, Any]) -> tuple[int, int]:
        self._known(config, {"responseModalities", "imageConfig"}, "generationConfig")
        self.demand("IMAGE" in config.get("responseModalities", ["IMAGE"]), 400, "no image was asked for")
        image = config.get("imageConfig", {})
        self._known(image, {"aspectRatio", "imageSize"}, "imageConfig")
        tiers, ratios = MODELS[model]
        tier, ratio = image.get("imageSize", "1K"), image.get("aspectRatio", "1:1")
        self.demand(tier in tiers, 400, f"imageSize {tier} is not supported")
        self.demand(ratio in ratios, 400, f"aspectRatio {ratio} is not supported")
        return int(ratios[ratio][0] * SCALES[tier]), int(ratios[ratio][1] * SCALES[tier])

    def _known(self, value: dict[str, Any], names: set[str], where: str) -> None:
        for name in set(value) - names:
            self.demand(False, 400, f'Invalid JSON payload received. Unknown name "{name}" at "{where}"')
