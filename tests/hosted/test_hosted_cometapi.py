"""CometAPI in OpenAI's form: its own rules for errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from comet_service import KEY, CometService
from hosting import config, hole, photo
from standin import Reply, as_json

from imagewright.config import Config
from imagewright.engines.hosted import breaker
from imagewright.engines.hosted.cometapi import CometAPIEngine
from imagewright.errors import CredentialError, ProviderError, QuotaError
from imagewright.request import ImageRequest, ImageResult


@pytest.fixture
def service() -> Iterator[CometService]:
    with CometService() as running:
        yield running


@pytest.fixture
def engine(service: CometService) -> Iterator[CometAPIEngine]:
    found = CometAPIEngine(config("cometapi", f"{service.url}/v1", key=KEY))
    yield found
    found.close()


def made(engine: CometAPIEngine, **fields: object) -> ImageResult:
    return engine.generate(ImageRequest(**{"prompt": "a red cube", "model": "gpt-image-2", **fields}))


def test_openais_models_as_at_openai(service: CometService, engine: CometAPIEngine) -> None:
    result = made(engine, size=(1920, 1080), n=2)
    assert [image.size for image in result.images] == [(1920, 1088)] * 2
    assert result.records[0]["provider"] == "cometapi"
    assert made(engine, image=photo(), mask=hole()).images[0].size == (96, 64)


def test_qwen_draws_one_at_a_time(service: CometService, engine: CometAPIEngine) -> None:
    assert len(made(engine, model="qwen-image", n=3, size=(900, 700))) == 3
    assert [asked.json()["size"] for asked in service.asked] == ["900x700"] * 3


@pytest.mark.parametrize("status", [429, 500, 503, 504, 524])
def test_what_may_be_sent_again(service: CometService, engine: CometAPIEngine, status: int) -> None:
    service.next.append(as_json({"error": {"message": "busy", "type": "comet_api_error", "code": ""}}, status))
    made(engine)
    assert len(service.asked) == 2


def test_a_500_may_be_the_callers_mistake(service: CometService, engine: CometAPIEngine) -> None:
    wrong = {"error": {"message": "size (request id: 3)", "type": "comet_api_error", "code": "invalid_request"}}
    service.next.extend([as_json(wrong, 500)] * 7)
    for _ in range(7):
        with pytest.raises(ProviderError, match="does not take this: size") as caught:
            made(engine)
        assert not caught.value.retryable
    assert len(service.asked) == 7  # each sent once, and none of them opened the breaker
    made(engine)


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (Reply(200, b"<!doctype html><title>home</title>", {}, "text/html"), ProviderError, "text/html"),
        (Reply(301, b"", {"location": "https://www.cometapi.com/"}), ProviderError, "another address"),
        (as_json({"error": {"message": "no token", "code": ""}}, 401), CredentialError, "no token"),
        (as_json({"error": {"message": "quota", "code": "insufficient_user_quota"}}, 403), QuotaError, "no credit"),
    ],
)
def test_trouble(
    service: CometService, engine: CometAPIEngine, reply: Reply, kind: type[ProviderError], message: str
) -> None:
    service.next.append(reply)
    with pytest.raises(kind, match=message):
        made(engine)
    assert len(service.asked) == 1
    breaker.forget()


def test_usage_with_more_keys_is_kept_as_it_is(service: CometService, engine: CometAPIEngine) -> None:
    from base64 import b64encode

    from standin import drawn

    usage = {"prompt_tokens": 1, "completion_tokens": 2, "input_tokens_details": {"text_tokens": 1}, "new": None}
    one = {"b64_json": b64encode(drawn((1024, 1024))).decode()}
    service.next.append(as_json({"created": 1, "data": [one], "usage": usage}))
    assert made(engine).records[0]["usage"] == usage


def test_its_key_is_named() -> None:
    with pytest.raises(CredentialError) as caught:
        CometAPIEngine(Config()).find("gpt-image-2")
    assert "COMETAPI_KEY" in caught.value.fix
