"""What every request passes before any route sees it, and what every answer says to browsers.

A browser tab of a stranger can reach a server on loopback (DNS rebinding, forms, images): so a Host that is not ours is
refused with 421, and what pages of other sites send with 403, before anything is read. Nothing here goes by cookies.
A body is only read for a caller whose key is good, up to `max_upload` bytes however they come, and not for ever.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
from fastapi import Request
from starlette.middleware.cors import CORSMiddleware

from imagewright.server import errors
from imagewright.server.errors import ApiError
from imagewright.server.links import PATH
from imagewright.server.security import headers_to_tell, token_of
from imagewright.server.settings import Settings

log = logging.getLogger(__name__)
GRACE, PACE = 30.0, 16 * 2**10  # a body comes at so many bytes a second at least, after so many seconds
VALUES, DEPTH = 200_000, 64  # of a JSON body, about; some answers hold what they were told, a little deeper
ONCE = ("host", "origin", "authorization", "content-length", "content-type", "sec-fetch-site")
METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")
ALWAYS = {  # where the answer itself says nothing else
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """ASGI middleware around all of an application."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self.app, self.settings = app, settings
        every = ("*",)
        self._shared = CORSMiddleware(
            self._answered, settings.origins, allow_methods=METHODS, allow_headers=every, expose_headers=every
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # there are no web sockets
        visit = Visit(receive, send, self.settings.max_upload)
        scope.setdefault("state", {}).update(request_id=visit.id, visit=visit)
        headers_to_tell.set(visit.told)
        if error := self._refusal(scope):
            await refuse(error, visit.send)
            return
        origin = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"), None)
        shared = origin in self.settings.origins
        await (self._shared if shared else self._answered)(scope, visit.receive, visit.send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's answer, or why there is none."""
        visit: Visit = scope["state"]["visit"]

        async def answer(message: Message) -> None:
            if visit.refusal is None:  # else whatever became of a body that broke off does not matter
                await send(message)

        try:
            if _brings_body(scope):
                await scope["app"].state.keys.caller(token_of(Request(scope)))
                if _is_json(scope):
                    receive = await _whole_json(receive)
            await self.app(scope, receive, answer)
        except Exception as error:
            if visit.begun:
                raise
            if visit.refusal is None:
                visit.refusal = errors.of(error)
                errors.note(log, f"request {visit.id}", error)
        if visit.refusal is not None and not visit.begun:
            await refuse(visit.refusal, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        """Why nothing of a request is looked at further."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            if (key := name.decode("latin-1")) in headers and key in ONCE:
                return ApiError(400, f"There are two headers {key}.", "Send it once.", code="invalid_header")
            headers[key] = value.decode("latin-1")
        host = headers.get("host", "").lower()
        if not self.settings.knows_host(host, scope.get("server")):
            return ApiError(
                421, "This server does not go by that name.", "Use its own address, or add the name to allowed_hosts.",
                code="unknown_host",
            )  # fmt: skip
        if not self._is_of_ours(scope, headers, host):
            return ApiError(
                403, "Pages of other sites may not use this server.", "The operator can add them to allowed_origins.",
                code="foreign_origin",
            )  # fmt: skip
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            return _nul()
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return ApiError(400, "The Content-Length is no number.", code="invalid_header")
        return too_large(self.settings.max_upload) if int(length[:20]) > self.settings.max_upload else None

    def _is_of_ours(self, scope: Scope, headers: dict[str, str], host: str) -> bool:
        """Whether no page sends this, or one of ours or the operator's does."""
        origin = headers.get("origin")
        if origin is not None:
            return origin.lower() in (f"http://{host}", f"https://{host}", *self.settings.origins)
        if headers.get("sec-fetch-site") != "cross-site":
            return True
        return scope["method"] in ("GET", "HEAD") and scope["path"].startswith(PATH)  # pages elsewhere show pictures


class Visit:
    """One request and its answer: counts and times what comes in, completes what goes out.

    `told` are headers that the work on it adds; `refusal` is why its body is not read to the end.
    """

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self.id = f"req_{secrets.token_hex(12)}"
        self.told: dict[str, str] = {}
        self.begun = False
        self.refusal: ApiError | None = None
        self._receive, self._send, self._limit = receive, send, limit
        self._started = time.perf_counter()
        self._bytes, self._whole = 0, False

    async def receive(self) -> Message:
        """The next part of the body. Raises ApiError (408, 413) where it is too slow or too much."""
        if self._whole:
            return await self._receive()
        left = self._started + GRACE + self._bytes / PACE - time.perf_counter()
        try:
            async with asyncio.timeout(left):
                message = await self._receive()
        except TimeoutError:
            self.refusal = ApiError(408, "The request came too slowly.", "Try again.", code="too_slow")
            raise self.refusal from None
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._bytes > self._limit:
            self.refusal = too_large(self._limit)
            raise self.refusal
        return message

    async def send(self, message: Message) -> None:
        """The next part of the answer; its head gets what every answer has."""
        if message["type"] == "http.response.start":
            self.begun = True
            given = list(message.get("headers", ()))
            names = {name.lower() for name, _ in given}
            took = f"{(time.perf_counter() - self._started) * 1000:.0f}"
            own = {"x-request-id": self.id, "openai-processing-ms": took, **self.told}
            more = {name: value for name, value in ALWAYS.items() if name.encode() not in names} | own
            message["headers"] = [*given, *((name.encode(), value.encode()) for name, value in more.items())]
        await self._send(message)


def _nul() -> ApiError:
    return ApiError(400, "There is a NUL character in the request.", "Send text without it.", code="invalid_value")


def too_large(limit: int) -> ApiError:
    """A body of more than `limit` bytes."""
    return ApiError(413, f"The request is larger than {limit / 2**20:.4g} MiB.", "Send less.", code="too_large")


async def _whole_json(receive: Receive) -> Receive:
    """`receive` with the body in one piece, which is JSON. Raises ApiError.

    JSON as its standard has it: no NaN, no half of a surrogate pair, not nested without end; also without NUL, and of
    so many values only that reading it takes little more memory than it has itself.
    """
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    if sum(map(body.count, (b",", b"[", b"{"))) > VALUES:
        raise ApiError(400, f"The body has more than {VALUES:,} values.", "Send less.", code="too_many_values")
    try:
        if body and _is_deeper(orjson.loads(body), DEPTH):
            raise ValueError(f"it is nested more than {DEPTH} deep")
    except ValueError as error:
        raise ApiError(400, f"The body is no JSON: {error}.", code="invalid_json") from None
    if b"\\u0000" in body and _NUL.search(body):
        raise _nul()
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth + 1):
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [one for several in inside for one in several]
        if not level:
            return False
    return True


def _is_json(scope: Scope) -> bool:
    return any(name == b"content-type" and b"json" in value.lower() for name, value in scope["headers"])


def _brings_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


async def refuse(error: ApiError, send: Send) -> None:
    """Answer with `error` below any framework."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
