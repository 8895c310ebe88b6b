"""One request for pictures as a hosted service sees it: calls that share a deadline, and are sent again where that is
safe.

Sent again: what never went out; what the service says may be (`HostedEngine.may_repeat`, its `x-should-retry`); and
whatever only looks (GET). A POST whose answer was lost may have been charged, and is not. At most three attempts, at a
random moment of a span that doubles (full jitter), or when `Retry-After` says.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import httpx

from imagewright import __version__
from imagewright.config import Provider
from imagewright.engines.hosted import wire
from imagewright.engines.hosted.answers import Answer, Refusal, dumps, loads
from imagewright.engines.hosted.breaker import breaker
from imagewright.errors import (
    CredentialError,
    ModerationError,
    ProviderError,
    ProviderTimeoutError,
    QuotaError,
)
from imagewright.watch import Watch

if TYPE_CHECKING:
    from imagewright.engines.hosted.base import HostedEngine

ATTEMPTS = 3
FIRST_SPAN, LAST_SPAN = 0.5, 8.0  # seconds
PATIENCE = 60.0  # seconds of Retry-After that are waited for
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})  # statuses that may pass
GONE = frozenset({401, 403, 404, 410})  # of a picture that is fetched without a key: its link has ended

_CONNECTING = {"timeout": {"connect": wire.CONNECT, "pool": wire.CONNECT}}
_T = TypeVar("_T")
OnEvent = Callable[[dict[str, Any]], None]


class Call:
    """The calls for one request. Usable from several threads at once."""

    def __init__(self, engine: HostedEngine, provider: Provider, transport: httpx.BaseTransport, watch: Watch) -> None:
        self.engine, self.provider, self.watch = engine, provider, watch
        self._transport, self._errand = transport, wire.Errand(provider.timeout, watch)
        self._breaker = breaker(f"{provider.name} {provider.base_url}")

    @property
    def service(self) -> str:
        """The service's name."""
        return self.provider.name

    def post(
        self,
        path: str,
        *,
        json: Any = None,
        data: Mapping[str, Any] | None = None,
        files: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        on_event: OnEvent | None = None,
    ) -> Answer:
        """What the service answers to JSON, a form or plain bytes; `path` is below its base URL, or a URL of its own.

        `on_event` gets each event where it answers with a stream; the Answer then has no body. Raises ProviderError
        and what is below it, StoppedError.
        """
        body: dict[str, Any] = {"data": data, "files": files, "content": content}
        sent = dict(headers or {})
        if json is not None:
            body, sent["content-type"] = {"content": dumps(json)}, "application/json"
        request = self._request("POST", self._own(path), sent | dict(self.engine.headers(self.provider)), **body)
        return self._sent(request, lambda response: self._read(response, on_event), safe=False)

    def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> Answer:
        """What the service answers when one looks. `path` and errors as for `post`."""
        sent = dict(headers or {}) | dict(self.engine.headers(self.provider))
        return self._sent(self._request("GET", self._own(path), sent), self._read, safe=True)

    def put(self, path: str) -> Answer:
        """What the service answers to a PUT without a body. `path` and errors as for `post`."""
        request = self._request("PUT", self._own(path), dict(self.engine.headers(self.provider)))
        return self._sent(request, self._read, safe=True)

    def fetch(self, url: Any) -> bytes:
        """A finished picture from where the service says that it lies; the key is not sent there."""
        if not isinstance(url, str) or not self._may_fetch(url):
            raise self.error(f"{self.service} names a place for the picture that is not fetched from.")
        try:
            return self._sent(self._request("GET", url, {}), self._read, safe=True).body
        except ProviderError as error:
            if error.status not in GONE:
                raise
            raise self.error(
                f"The picture is no longer where {self.service} put it.", "expired", status=error.status, retryable=True
            ) from None

    def poll(self, look: Callable[[], _T | None], every: float = 1.0) -> _T:
        """What `look` finds, asked again every so many seconds until it is not None. Raises ProviderTimeoutError."""
        while True:
            found = look()
            if found is not None:
                return found
            if self._errand.left() <= every:
                raise self._late()
            self._errand.pause(every)

    def told(self, percent: float) -> None:
        """How far the service says that it is. Raises StoppedError where nobody wants more."""
        self.watch.told(round(min(100.0, max(0.0, percent))), 100)

    def end(self) -> None:
        """Ends what is in flight, in whatever thread."""
        self._errand.end()

    def afterwards(self, seconds: float = 5.0) -> Call:
        """For what must still be said to the service when this is over: another deadline, and no stop."""
        other = Call(self.engine, self.provider, self._transport, Watch())
        other._errand = wire.Errand(seconds, Watch())
        return other

    def error(self, message: str, code: str | None = None, **told: Any) -> ProviderError:
        """An error of this service, in its own words: without its key, and not too long."""
        return ProviderError(self._clean(message), "Ask again, or use another model.", **self._facts(code), **told)

    def refused(self, refusal: Refusal, status: int | None = None, retry_after: float | None = None) -> ProviderError:
        """The error for what the service says is wrong."""
        who, what = self.service, refusal.message
        facts: dict[str, Any] = {**self._facts(refusal.code), "status": status}
        if refusal.moderated:
            found = f" ({', '.join(refusal.categories)})" if refusal.categories else ""
            return ModerationError(
                self._clean(f"{who} refused this for what it shows{found}: {what}"),
                "Change the words or the pictures.",
                **facts,
            )
        if refusal.no_credit or status == 402:
            return QuotaError(self._clean(f"{who} has no credit left: {what}"), "Top up the account there.", **facts)
        if status == 429:
            facts |= {"retryable": True, "retry_after": retry_after}
            return QuotaError(self._clean(f"{who} wants fewer requests: {what}"), "Ask again later.", **facts)
        if refusal.bad_key or status in (401, 403):
            return CredentialError(
                self._clean(f"{who} does not accept the key: {what}"), "Check the key, and what it may do.", **facts
            )
        if status in PASSING and not refusal.ours:
            facts |= {"retryable": True, "retry_after": retry_after}
            kind = ProviderTimeoutError if status in (408, 504, 524) else ProviderError
            return kind(self._clean(f"{who} failed: {what}"), "Ask again later, or use another model.", **facts)
        return ProviderError(self._clean(f"{who} does not take this: {what}"), "Change the request.", **facts)

    def _facts(self, code: str | None) -> dict[str, Any]:
        return {"provider": self.service, "code": code and self._clean(code)}

    def _clean(self, message: str) -> str:
        for secret in self.engine.secrets(self.provider):
            message = message.replace(secret, "***")
        return " ".join(message[:1000].split())

    def _request(self, method: str, url: str, headers: Mapping[str, str], **body: Any) -> httpx.Request:
        told = {"user-agent": f"imagewright/{__version__}", "accept-encoding": "identity", **headers}
        return httpx.Request(method, url, headers=told, extensions=_CONNECTING, **body)

    def _own(self, path: str) -> str:
        """The URL for `path`. Raises ProviderError where that is not the service's own, which alone gets the key."""
        if not path.startswith(("http://", "https://")):
            return f"{self.provider.base_url}/{path.lstrip('/')}"
        at, base = urlsplit(path), urlsplit(self.provider.base_url)
        same = (at.scheme, at.netloc) == (base.scheme, base.netloc)
        if same or (at.scheme == "https" and _below(at.hostname, self.engine.own_hosts)):
            return path
        raise self.error(f"{self.service} names an address that is not its own; the key is not sent there.")

    def _may_fetch(self, url: str) -> bool:
        at, base = urlsplit(url), urlsplit(self.provider.base_url)
        if _is_loopback(at.hostname):
            return _is_loopback(base.hostname) and at.scheme in ("http", "https")
        hosts = self.engine.result_hosts
        return at.scheme == "https" and (_below(at.hostname, hosts) if hosts else not _is_number(at.hostname))

    def _read(self, response: httpx.Response, on_event: OnEvent | None = None) -> Answer:
        headers = response.headers
        if on_event is None or not headers.get("content-type", "").startswith("text/event-stream"):
            return Answer(self.service, response.status_code, headers, wire.body(response, wire.MAX_ANSWER))
        for data in wire.events(response, wire.MAX_ANSWER):
            if data == b"[DONE]":
                break
            try:
                event = loads(data)
            except ValueError:
                raise self.error(f"{self.service} sent an event that is no JSON.") from None
            if isinstance(event, dict):
                on_event(event)
        return Answer(self.service, response.status_code, headers)

    def _sent(self, request: httpx.Request, read: Callable[[httpx.Response], Answer], safe: bool) -> Answer:
        """The answer, if it is a good one; asked for again where that may be done and may help."""
        span = FIRST_SPAN
        for attempt in range(1, ATTEMPTS + 1):
            self.watch.check()
            if wait := self._breaker.enter():
                raise ProviderError(
                    f"{self.service} has failed several times in a row; it is left alone for {wait:.0f} s.",
                    "Use another model meanwhile.",
                    retryable=True,
                    retry_after=wait,
                    **self._facts("circuit_open"),
                )
            error, again = self._attempt(request, read, safe)
            if isinstance(error, Answer):
                return error
            pause = error.retry_after if error.retry_after is not None else random.uniform(0, span)
            if not again or attempt == ATTEMPTS or pause > PATIENCE or pause >= self._errand.left():
                raise error
            self._errand.pause(pause)
            span = min(LAST_SPAN, 2 * span)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _attempt(
        self, request: httpx.Request, read: Callable[[httpx.Response], Answer], safe: bool
    ) -> tuple[Answer | ProviderError, bool]:
        """A good answer, or an error and whether to ask again."""
        told = self._breaker.unknown
        try:
            with self._errand.serving():
                response = self._transport.handle_request(request)
                try:
                    answer = read(response)
                finally:
                    response.close()
            error, again = self._judged(answer, safe)
            down = error is not None and answer.status >= 500 and error.retryable
            told = self._breaker.failed if down else self._breaker.answered
            if answer.status == 429:
                told = self._breaker.unknown
            return (answer, False) if error is None else (error, again)
        except wire.UNSENT as error:
            self._stopped_or_late()
            told = self._breaker.failed
            return self.error(f"{self.service} cannot be reached: {error}.", retryable=True), True
        except wire.LATE:
            self._stopped_or_late()
            told = self._breaker.failed
            raise self._late() from None
        except wire.BROKEN as error:
            self._stopped_or_late()
            told = self._breaker.failed
            what = f"The connection to {self.service} broke before its answer was whole ({type(error).__name__})."
            return self.error(what, retryable=True), safe
        except wire.TooLargeError:
            raise self.error(f"{self.service} answered with more than {wire.MAX_ANSWER >> 20} MiB.") from None
        finally:
            told()

    def _judged(self, answer: Answer, safe: bool) -> tuple[ProviderError | None, bool]:
        """What is wrong with an answer, and whether to ask again."""
        if 200 <= answer.status < 300:
            return None, False
        if 300 <= answer.status < 400:
            return self.error(f"{self.service} sends on to another address.", status=answer.status), False
        refusal = self.engine.refusal_in(answer)
        error = self.refused(refusal, answer.status, _retry_after(answer.headers))
        wanted = answer.headers.get("x-should-retry")
        again = answer.status in (PASSING if safe else self.engine.may_repeat)
        if wanted in ("true", "false"):
            again = wanted == "true"
        return error, again and not isinstance(error, ModerationError | CredentialError) and error.retryable

    def _late(self) -> ProviderTimeoutError:
        return ProviderTimeoutError(
            f"{self.service} did not finish within {self.provider.timeout:g} s; the work may be charged all the same.",
            f"Ask again, or set a longer timeout under [providers.{self.service}].",
            retryable=True,
            **self._facts("timeout"),
        )

    def _stopped_or_late(self) -> None:
        """Raises StoppedError or ProviderTimeoutError where that, and not the network, ended the waiting."""
        self.watch.check()
        if self._errand.left() <= 0:
            raise self._late() from None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds to wait that an answer names: in milliseconds, in seconds, or as a date."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "")
        if value.replace(".", "", 1).isdecimal():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except (ValueError, OverflowError):
        return None


def _below(host: str | None, names: tuple[str, ...]) -> bool:
    return host is not None and any(host == name or host.endswith(f".{name}") for name in names)


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


def _is_number(host: str | None) -> bool:
    """Whether a host is an address and no name: a service has no reason to name one."""
    try:
        ip_address(host or "")
    except ValueError:
        return False
    return True
