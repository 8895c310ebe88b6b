"""OpenRouter's image API, against a service with its fields and its errors."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from hosting import config, hole, photo
from PIL import Image
from standin import Asked, Reply, StandIn, as_json, drawn, route

from imagewright.config import Config
from imagewright.engines.hosted.openrouter import OpenRouterEngine
from imagewright.errors import (
    CredentialError,
    ModelNotFoundError,
    ModerationError,
    ProviderError,
    QuotaError,
    UnsupportedError,
)
from imagewright.request import ImageRequest, ImageResult

KEY = "sk-canary-router-12ab"
MODEL = "acme/paint-1"
FIELDS = {
    *("model", "prompt", "n", "size", "aspect_ratio", "resolution", "quality", "background", "output_format"),
    *("output_compression", "seed", "input_references", "provider", "stream", "user"),
}


class RouterService(StandIn):
    """Draws what it is asked for, and says what that cost."""

    def failure(self, status: int, message: str) -> Reply:
        return as_json({"error": {"code": status, "message": message, "metadata": {}}}, status)

    def _known(self, asked: Asked) -> None:
        self.demand(asked.headers.get("authorization") == f"Bearer {KEY}", 401, "User not found.")

    @route("POST", "/api/v1/images")
    def images(self, asked: Asked) -> Reply:
        self._known(asked)
        body = asked.json()
        self.demand(set(body) <= FIELDS, 400, f"unknown {sorted(set(body) - FIELDS)}")
        self.demand(body["model"] == MODEL, 404, f"No endpoints found for {body['model']}")
        self.demand(1 <= body["n"] <= 10 and isinstance(body["seed"], int), 400, "n")
        for reference in body.get("input_references", []):
            self.demand(set(reference) == {"type", "image_url"}, 400, "a reference")
            Image.open(BytesIO(b64decode(reference["image_url"]["url"].partition(",")[2])), formats=("PNG",)).load()
        width, _, height = body.get("size", "1024x1024").partition("x")
        kind = body["output_format"].upper()
        one = {"b64_json": b64encode(drawn((int(width), int(height)), "#118833", kind)).decode()}
        usage = {"prompt_tokens": 4, "completion_tokens": 90, "total_tokens": 94, "cost": 0.04 * body["n"]}
        return as_json({"created": 1, "data": [one] * body["n"], "usage": usage})

    @route("GET", "/api/v1/images/models")
    def models(self, asked: Asked) -> Reply:
        self._known(asked)
        return as_json({"data": [{"id": MODEL}, {"id": "acme/paint-2"}, {"name": "no id"}, 7]})


@pytest.fixture
def service() -> Iterator[RouterService]:
    with RouterService() as running:
        yield running


@pytest.fixture
def engine(service: RouterService) -> Iterator[OpenRouterEngine]:
    found = OpenRouterEngine(config("openrouter", f"{service.url}/api/v1", key=KEY))
    yield found
    found.close()


def made(engine: OpenRouterEngine, **fields: object) -> ImageResult:
    return engine.generate(ImageRequest(**{"prompt": "a red cube", "model": MODEL, "seed": 5, **fields}))


def test_the_plainest_request(service: RouterService, engine: OpenRouterEngine) -> None:
    result = made(engine)
    assert service.asked[0].json() == {
        "model": MODEL,
        "prompt": "a red cube",
        "n": 1,
        "seed": 5,
        "output_format": "png",
        "size": "1024x1024",
    }
    assert result.images[0].size == (1024, 1024)
    assert (result.records[0]["cost"], result.records[0]["seed"]) == (0.04, 5)


def test_what_several_cost_is_counted_once(engine: OpenRouterEngine) -> None:
    result = made(engine, n=4)
    assert sum(record.get("cost", 0) for record in result.records) == pytest.approx(0.16)
    assert [record["seed"] for record in result.records] == [5, None, None, None]


def test_the_fields(service: RouterService, engine: OpenRouterEngine) -> None:
    result = made(
        engine,
        size=(1000, 700),
        quality="max",
        background="transparent",
        output_format="webp",
        output_compression=50,
        provider_options={"provider": {"order": ["acme"]}, "webhook": "http://evil"},
    )
    body = service.asked[0].json()
    assert (body["size"], body["quality"], body["background"]) == ("1000x700", "high", "transparent")
    assert (body["output_format"], body["output_compression"]) == ("webp", 50)
    assert body["provider"] == {"order": ["acme"]} and "webhook" not in body
    assert {one.field for one in result.adjustments} == {"quality", "provider_options.webhook"}
    made(engine, provider_options={"resolution": "2K"})
    assert service.asked[1].json()["resolution"] == "2K" and "size" not in service.asked[1].json()


def test_pictures_go_along_as_references(service: RouterService, engine: OpenRouterEngine) -> None:
    result = made(engine, image=photo((300, 200)), images=(photo(),), instruction=True, output_format="jpeg")
    body = service.asked[0].json()
    assert len(body["input_references"]) == 2
    assert body["output_format"] == "png"
    assert result.images[0].size == (300, 200)
    assert np.asarray(result.images[0]).any()


def test_a_mask_is_refused_before_anything_is_sent(service: RouterService, engine: OpenRouterEngine) -> None:
    with pytest.raises(UnsupportedError, match="mask"):
        made(engine, image=photo(), mask=hole())
    assert not service.asked


def test_its_models_are_asked_for(engine: OpenRouterEngine) -> None:
    assert engine.discover() == [MODEL, "acme/paint-2"]
    assert engine.models() == ()
    with pytest.raises(ModelNotFoundError):
        engine.find("paint")  # without an author
    with pytest.raises(CredentialError, match="needs a key"):
        OpenRouterEngine(Config()).find(MODEL)


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [
        (400, ProviderError, 1),
        (401, CredentialError, 1),
        (402, QuotaError, 1),
        (413, ProviderError, 1),
        (429, QuotaError, 3),
        (500, ProviderError, 1),
        (502, ProviderError, 3),
        (524, ProviderError, 1),
        (529, ProviderError, 3),
    ],
)
def test_trouble(
    service: RouterService, engine: OpenRouterEngine, status: int, kind: type[ProviderError], attempts: int
) -> None:
    service.next.extend([as_json({"error": {"code": status, "message": "no"}}, status)] * 5)
    with pytest.raises(kind) as caught:
        made(engine)
    assert caught.value.status == status
    assert len(service.asked) == attempts


def test_an_error_in_a_good_answer_is_an_error(service: RouterService, engine: OpenRouterEngine) -> None:
    service.next.append(as_json({"error": {"code": 502, "message": "upstream"}}))
    with pytest.raises(ProviderError, match="upstream"):
        made(engine)
    service.next.append(as_json({"error": {"code": "moderation_blocked", "message": "no"}}))
    with pytest.raises(ModerationError):
        made(engine)
