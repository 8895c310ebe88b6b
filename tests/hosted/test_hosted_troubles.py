"""What goes wrong with any hosted service, on each of four: nothing is paid for twice, told wrongly, or leaked."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import bfl_service
import firefly_service
import gemini_service
import pytest
import stability_service
from hosting import config
from standin import Asked, Reply, StandIn, as_json

from imagewright.config import Config
from imagewright.engines.hosted import bfl, firefly, stability
from imagewright.engines.hosted.base import HostedEngine
from imagewright.engines.hosted.bfl import BFLEngine
from imagewright.engines.hosted.firefly import FireflyEngine
from imagewright.engines.hosted.gemini import GeminiEngine
from imagewright.engines.hosted.stability import StabilityEngine
from imagewright.errors import CredentialError, ProviderError, ProviderTimeoutError, QuotaError
from imagewright.request import ImageRequest


@dataclass(frozen=True)
class Case:
    """A service: its stand-in and where that makes pictures, the engine, and what is asked for."""

    service: type[Any]
    module: Any
    engine: type[HostedEngine]
    path: str
    model: str
    base: str = ""

    def config(self, service: Any, timeout: float = 20.0) -> Config:
        """The keys and the address."""
        if isinstance(service, firefly_service.Firefly):
            told = {"client_id": service.client, "client_secret": service.secret}
            told["token_url"] = f"{service.url}/ims/token/v3"
        else:
            told = {"key": service.key}
        return config(self.engine.name, service.url + self.base, timeout, **told)

    @property
    def request(self) -> ImageRequest:
        """One small picture."""
        return ImageRequest(prompt="a fox", model=self.model)


CASES = [
    Case(stability_service.Stability, stability_service, StabilityEngine, "/v2beta/stable-image/generate/core", "core"),
    Case(firefly_service.Firefly, firefly_service, FireflyEngine, "/v3/images/generate-async", "image3"),
    Case(bfl_service.Bfl, bfl_service, BFLEngine, "/v1/flux-2-klein-4b", "flux-2-klein-4b", "/v1"),
    Case(
        gemini_service.Gemini,
        gemini_service,
        GeminiEngine,
        "/v1beta/models/gemini-3.1-flash-image:generateContent",
        "gemini-3.1-flash-image",
        "/v1beta",
    ),
]
ODD: list[Any] = [
    None,
    [],
    {},
    5,
    "x",
    {"error": 7},
    {"id": [], "images": {}, "access_token": None},
    {"status": "Ready"},
]


@pytest.fixture(params=CASES, ids=lambda case: case.engine.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def service(case: Case) -> Iterator[Any]:
    with case.service() as running:
        yield running


@pytest.fixture
def engine(case: Case, service: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostedEngine]:
    for module in (stability, firefly, bfl):
        monkeypatch.setattr(module, "POLL", 0.005)
    with closing(case.engine(case.config(service))) as made:
        yield made


def instead(service: StandIn, case: Case, *replies: Reply) -> None:
    """The next requests for a picture get these replies."""
    left, usual = list(replies), service._reply

    def reply(asked: Asked) -> Reply:
        return left.pop(0) if left and asked.path == case.path else usual(asked)

    service._reply = reply  # type: ignore[method-assign]


def failing(service: StandIn, status: int, **headers: str) -> Reply:
    """An error of the service's own form."""
    reply = service.failure(status, "trouble")
    return Reply(reply.status, reply.body, {name.replace("_", "-"): text for name, text in headers.items()})


def test_too_many_requests_are_asked_again_when_the_service_says(
    service: Any, engine: HostedEngine, case: Case
) -> None:
    instead(service, case, failing(service, 429, retry_after="0.3"))
    start = time.monotonic()
    assert len(engine.generate(case.request)) == 1
    assert time.monotonic() - start >= 0.3 and service.count(case.path) == 2


def test_too_many_requests_for_long_are_told_with_the_time_to_wait(
    service: Any, engine: HostedEngine, case: Case
) -> None:
    instead(service, case, failing(service, 429, retry_after="3600"))
    with pytest.raises(QuotaError) as caught:
        engine.generate(case.request)
    assert caught.value.retry_after == 3600 and caught.value.retryable and service.count(case.path) == 1


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_failure_that_may_have_been_charged_is_not_asked_again(
    service: Any, engine: HostedEngine, case: Case, status: int
) -> None:
    instead(service, case, failing(service, status))
    with pytest.raises(ProviderError) as caught:
        engine.generate(case.request)
    assert caught.value.retryable and caught.value.status == status and service.count(case.path) == 1


@pytest.mark.parametrize("reply", [Reply(hang_up=True), Reply(200, b"{" * 500, cut=100)], ids=["nothing", "half"])
def test_a_lost_answer_is_not_asked_for_again(service: Any, engine: HostedEngine, case: Case, reply: Reply) -> None:
    instead(service, case, reply)
    with pytest.raises(ProviderError, match="broke") as caught:
        engine.generate(case.request)
    assert caught.value.retryable and service.count(case.path) == 1


@pytest.mark.parametrize("reply", [Reply(200, b"{" * 500, drip=0.05), Reply(wait=30)], ids=["drip", "silence"])
def test_a_slow_answer_ends_at_the_deadline(service: Any, case: Case, reply: Reply) -> None:
    instead(service, case, reply)
    start = time.monotonic()
    with closing(case.engine(case.config(service, timeout=0.5))) as engine, pytest.raises(ProviderTimeoutError):
        engine.generate(case.request)
    assert time.monotonic() - start < 1.5


def test_a_damaged_picture_is_no_picture(
    service: Any, engine: HostedEngine, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = case.module.drawn
    monkeypatch.setattr(case.module, "drawn", lambda *told, **more: whole(*told, **more)[:-40])
    with pytest.raises(ProviderError, match="damaged picture"):
        engine.generate(case.request)
    monkeypatch.setattr(case.module, "drawn", lambda *told, **more: b"<html>")
    with pytest.raises(ProviderError, match="no picture"):
        engine.generate(case.request)


def test_a_wrong_key_is_told_once(service: Any, case: Case) -> None:
    given = case.config(service)
    name = "secret" if hasattr(service, "secret") else "key"
    setattr(service, name, "sk-another")
    with closing(case.engine(given)) as engine, pytest.raises(CredentialError):
        engine.generate(case.request)
    assert len(service.asked) == 1


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_odd_answers_at_any_step_are_clear_errors(service: Any, engine: HostedEngine, case: Case, odd: Any) -> None:
    engine.generate(case.request)
    steps, usual = len(service.asked), service._reply
    for step in range(steps):
        seen: list[Asked] = []

        def reply(asked: Asked, step: int = step, seen: list[Asked] = seen) -> Reply:
            seen.append(asked)
            return as_json(odd) if len(seen) == step + 1 else usual(asked)

        service._reply = reply
        try:  # a look may be odd once: the next one may be right
            engine.generate(case.request)
        except ProviderError as error:
            assert error.provider == engine.name


def _secrets(service: Any) -> list[str]:
    return [*([service.key] if hasattr(service, "key") else [service.secret, *service.tokens])]


def test_no_key_is_in_any_log_message_or_error(
    service: Any, engine: HostedEngine, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where the service itself says it back."""
    with caplog.at_level(logging.DEBUG):
        result = engine.generate(case.request)
        leaks: list[Callable[[], Reply]] = [
            lambda: service.failure(400, f"no such thing as {' or '.join(_secrets(service))}"),
            lambda: Reply(307, b"", {"location": f"{service.url}/elsewhere"}),
            lambda: Reply(200, _secrets(service)[-1].encode()),
        ]
        told = []
        for leak in leaks:
            instead(service, case, leak())
            with pytest.raises(ProviderError) as caught:
                engine.generate(case.request)
            told.append("".join(traceback.format_exception(caught.value)))
    everything = "\n".join([caplog.text, *told, repr(result.records), repr(engine.config), repr(vars(engine))])
    assert "httpx" in caplog.text or "httpcore" in caplog.text  # or nothing was looked at
    for secret in _secrets(service):
        assert secret not in everything
    assert not any(asked.path == "/elsewhere" for asked in service.asked)
