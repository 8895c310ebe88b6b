"""OpenRouter's own image API (`POST /images`): many makers' models with one key, named `openrouter/AUTHOR/MODEL`.

Its models change often, so none are listed here; `discover` asks for them. Pictures go out as references, and there is
no mask. What a picture cost comes with it.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagewright.config import Provider
from imagewright.engines.engine import ModelInfo
from imagewright.engines.hosted.answers import text
from imagewright.engines.hosted.base import HostedEngine, hosted_model
from imagewright.engines.hosted.openai import pictures_of
from imagewright.pictures import encode
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.watch import Watch

if TYPE_CHECKING:
    from imagewright.engines.hosted.call import Call

CAN = Capabilities(
    size=(1024, 1024),
    any_size=False,
    sides=(64, 4096, 1),
    image=True,
    strength=False,
    transparent=True,
    features=("instruction", "images"),
    qualities=("low", "medium", "high"),
    provider_options=("provider", "resolution", "user"),
    max_prompt=32_000,
    max_n=10,
)


class OpenRouterEngine(HostedEngine):
    """OpenRouter."""

    name = "openrouter"
    base_url = "https://openrouter.ai/api/v1"
    may_repeat = frozenset({429, 502, 503, 529})

    def headers(self, provider: Provider) -> Mapping[str, str]:
        """The key as a bearer."""
        assert provider.key is not None
        return {"authorization": f"Bearer {provider.key.reveal()}"}

    def listed(self) -> Sequence[ModelInfo]:
        return ()

    def unlisted(self, name: str) -> ModelInfo | None:
        author, _, model = name.partition("/")
        return hosted_model(self.name, name, "passed on by its name", CAN) if author and model else None

    def discover(self) -> list[str]:
        """The ids of the models that draw, asked of the service now. Raises ProviderError."""
        body = self.call(Watch()).get("images/models").json()
        data = body.get("data")
        return [text(one["id"]) for one in data if isinstance(one, dict) and text(one.get("id"))] if data else []

    def draw(self, request: ImageRequest, model: ModelInfo, call: Call) -> tuple[list[Image.Image], list[Adjustment]]:
        answer = call.post("images", json=body_of(request, model.name))
        images = pictures_of(answer.json(), answer, call)[: request.n]
        for image in images[1:]:
            image.info["record"]["seed"] = None  # the seed is that of the call: the others cannot be made alone
        fewer = Adjustment("n", request.n, len(images), f"{call.service} drew fewer")
        return images, [fewer] if len(images) < request.n else []


def body_of(request: ImageRequest, name: str) -> dict[str, Any]:
    """The body for an adapted request. An edit comes without losses, because it is set back into its picture."""
    pictures = [*(() if request.image is None else (request.image,)), *request.images]
    clear = request.background not in ("auto", "opaque")  # laid on its colour afterwards
    lossless = request.image is not None or request.output_format == "svg"
    output_format = "png" if lossless or (clear and request.output_format == "jpeg") else request.output_format
    body: dict[str, Any] = {
        **request.provider_options,
        "model": name,
        "prompt": request.prompt,
        "n": request.n,
        "seed": request.seed,
        "output_format": output_format,
    }
    if request.size is not None and "resolution" not in request.provider_options:
        body["size"] = f"{request.size[0]}x{request.size[1]}"
    if request.quality != "auto":
        body["quality"] = request.quality
    if clear or request.background == "opaque":
        body["background"] = "transparent" if clear else "opaque"
    if output_format != "png" and request.output_compression < 100:
        body["output_compression"] = request.output_compression
    if pictures:
        body["input_references"] = [{"type": "image_url", "image_url": {"url": data_url(one)}} for one in pictures]
    return body


def data_url(picture: Image.Image) -> str:
    """A picture as PNG in a data URL."""
    return f"data:image/png;base64,{b64encode(encode(picture, 'png')).decode()}"
