"""Google's Gemini image models (`generateContent` of the Gemini Developer API).

The request is bent to an aspect ratio and a tier of resolution; a picture that is edited is widened to the nearest
ratio first and cut back afterwards. One picture a call. What the models take no field for (a seed, a mask, steps) is
said. Text that comes along is kept in the record. Thoughts are skipped; the signature of a picture, which a later turn
about it must give back, is kept where it is short (`thought_signature`; see `generate_body`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagewright.config import Provider
from imagewright.engines.engine import ModelInfo
from imagewright.engines.hosted import fitting
from imagewright.engines.hosted.answers import Answer, Refusal, from_base64, text
from imagewright.engines.hosted.base import HostedEngine, hosted_model
from imagewright.request import Adjustment, Capabilities, ImageRequest

if TYPE_CHECKING:
    from imagewright.engines.hosted.call import Call

BASE_URL = "https://generativelanguage.googleapis.com/v1beta"
RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
EXTREME = ("1:4", "4:1", "1:8", "8:1")
SIDES = {"512": 512, "1K": 1024, "2K": 2048, "4K": 4096}  # about the side of a square picture, in pixels
BLOCKED = frozenset(
    {
        "SAFETY",
        "IMAGE_SAFETY",
        "PROHIBITED_CONTENT",
        "IMAGE_PROHIBITED_CONTENT",
        "RECITATION",
        "IMAGE_RECITATION",
        "BLOCKLIST",
    }
)
MAX_SIGNATURE = 16_000  # characters of a signature that a record keeps
REFERENCE = 2**21  # pixels of a further picture that are sent


@dataclass(frozen=True)
class Model:
    """What tells one model from another: its tiers of resolution, the smallest first, and its ratios."""

    summary: str
    tiers: tuple[str, ...]
    ratios: tuple[str, ...] = RATIOS


MODELS: Mapping[str, Model] = {
    "gemini-3.1-flash-image": Model("fast, up to 4K", ("512", "1K", "2K", "4K"), RATIOS + EXTREME),
    "gemini-3-pro-image": Model("Google's best, plans before it draws, up to 4K", ("1K", "2K", "4K")),
    "gemini-3.1-flash-lite-image": Model("the fastest, 1K only", ("1K",)),
    "gemini-nano-banana-2.1": Model("up to 4K", ("1K", "2K", "4K"), RATIOS + EXTREME),
}


def generate_body(request: ImageRequest, model: str, earlier: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The JSON of one call. `earlier` are the turns so far (`contents`), each as it was sent or came, signatures and
    all; the pictures of `request` go with its words into a new one."""
    kind, size = MODELS[model], request.size or (1024, 1024)
    ratio = fitting.nearest_ratio(size, kind.ratios)
    pictures = [fitting.bounded(picture, REFERENCE) for picture in request.images]
    if (widened := widened_of(request, model)) is not None:
        pictures = [widened.image, *pictures]
    inline = [{"inlineData": {"mimeType": "image/png", "data": fitting.png_base64(one)}} for one in pictures]
    return {
        "contents": [*earlier, {"role": "user", "parts": [{"text": request.prompt}, *inline]}],
        "generationConfig": {
            "responseModalities": ["TEXT", "IMAGE"],
            "imageConfig": {
                "aspectRatio": ratio,
                "imageSize": fitting.nearest_tier(size, {name: SIDES[name] for name in kind.tiers}),
            },
        },
    }


def widened_of(request: ImageRequest, model: str) -> fitting.Widened | None:
    """The picture that is changed, if any, as the model gets it."""
    if request.image is None:
        return None
    ratio = fitting.nearest_ratio(request.image.size, MODELS[model].ratios)
    return fitting.Widened.to(request.image, fitting.ratio_of(ratio))


class GeminiEngine(HostedEngine):
    """Pictures from Google's Gemini models."""

    name, base_url = "gemini", BASE_URL

    def listed(self) -> list[ModelInfo]:
        """The models that draw."""
        can = Capabilities(
            size=(1024, 1024),
            sides=(64, 4096, 8),
            seed=False,
            image=True,
            strength=False,
            features=("instruction", "images"),
        )
        return [hosted_model(self.name, name, model.summary, can) for name, model in MODELS.items()]

    def headers(self, provider: Provider) -> Mapping[str, str]:
        """The key."""
        return {"x-goog-api-key": provider.key.reveal()} if provider.key else {}

    def refusal(self, status: int, body: Any) -> Refusal:
        """`{"error": {"code", "message", "status", "details"}}`."""
        return refusal_of(status, body)

    def draw(self, request: ImageRequest, model: ModelInfo, call: Call) -> tuple[list[Image.Image], list[Adjustment]]:
        """One call a picture."""
        widened = widened_of(request, model.name)
        body = generate_body(request, model.name)

        def one(_: ImageRequest) -> Image.Image:
            answer = call.post(f"/models/{model.name}:generateContent", json=body)
            return self.cut_back(picture_of(answer, call), widened)

        return self.each(request, one)


def picture_of(answer: Answer, call: Call) -> Image.Image:
    """The first picture that is no thought. Raises ModerationError where it was refused or withheld, ProviderError
    where there is none."""
    body = answer.json()
    if reason := text(_part(body, "promptFeedback").get("blockReason")):
        said = text(_part(body, "promptFeedback").get("blockReasonMessage")) or "the words or pictures were refused"
        raise call.refused(Refusal(said, reason, moderated=True), answer.status)
    candidates = body.get("candidates")
    candidate = candidates[0] if isinstance(candidates, list) and candidates else {}
    parts = _part(candidate, "content").get("parts") if isinstance(candidate, dict) else None
    shown = [part for part in parts or () if isinstance(part, dict) and part.get("thought") is not True]
    words = " ".join(text(part.get("text")) for part in shown if "text" in part).strip()
    for part in shown:
        if inline := _part(part, "inlineData"):
            signature = part.get("thoughtSignature")
            short = isinstance(signature, str) and len(signature) <= MAX_SIGNATURE
            return answer.picture(
                from_base64(inline.get("data"), call.service),
                response_id=text(body.get("responseId")) or None,
                model_version=text(body.get("modelVersion")) or None,
                usage=body.get("usageMetadata"),
                words=words or None,
                thought_signature=signature if short else None,
            )
    raise _without_picture(candidate, words, answer, call)


def _without_picture(candidate: Any, words: str, answer: Answer, call: Call) -> Exception:
    reason = text(candidate.get("finishReason")) if isinstance(candidate, dict) else ""
    said = text(candidate.get("finishMessage")) if isinstance(candidate, dict) else ""
    if reason in BLOCKED:
        return call.refused(Refusal(said or words or "the picture was withheld", reason, moderated=True), answer.status)
    told = f": {words}" if words else f": {said}" if said else "."
    return call.error(f"{call.service} drew no picture ({reason or 'no reason given'}){told}", reason, retryable=True)


def _part(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, dict) else {}


def refusal_of(status: int, body: Any) -> Refusal:
    """What an error says. A key that is wrong is a 400 here."""
    error = _part(body, "error") if isinstance(body, dict) else {}
    message, code = text(error.get("message")) or f"HTTP {status}", text(error.get("status")) or None
    details = error.get("details")
    reasons = {one.get("reason") for one in details if isinstance(one, dict)} if isinstance(details, list) else set()
    return Refusal(message, code, bad_key="API_KEY_INVALID" in reasons)
