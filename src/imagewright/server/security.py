"""Who may do what: every route declares its scope, and every request's Host and Origin are checked first.

A browser tab of a stranger can reach a server on loopback (DNS rebinding, forms): so a Host that is not ours is
refused with 421, and a foreign Origin with 403, before anything is read. Bearer tokens only, never cookies.
"""

from __future__ import annotations

import secrets
import time
from binascii import a2b_base64
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request

from imagewright.server.errors import ApiError
from imagewright.server.settings import Settings

SCOPES = ("public", "images", "admin")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Caller:
    """Who asks: the id of the key (`owner` of all that is made with it) and what the key may do.

    `models`: patterns of names, None: all. `budget`: µ$ that the key may spend, None: no bound. An admin sees and may
    cancel what others made.
    """

    key_id: str
    name: str = ""
    scopes: frozenset[str] = field(default_factory=frozenset)
    models: tuple[str, ...] | None = None
    budget: int | None = None

    @property
    def is_key(self) -> bool:
        """Whether it is one of the virtual keys (keys.py), with limits and a budget."""
        return self.key_id.startswith("key_")

    @property
    def is_admin(self) -> bool:
        """Whether everything is allowed."""
        return "admin" in self.scopes


_answer: ContextVar[dict[str, str] | None] = ContextVar("answer", default=None)


def tell(**headers: str) -> None:
    """Add headers to the answer of the request that is being worked on (in this task, or in a thread of its own)."""
    more = _answer.get()
    if more is not None:
        more |= headers


EVERYBODY = Caller("local", "everybody on this machine", frozenset(SCOPES))
ADMIN = Caller("admin", "the operator", frozenset(SCOPES))


class Scope:
    """A dependency that lets in callers whose key has the scope. `public`: everyone; there is no caller then."""

    def __init__(self, name: str) -> None:
        assert name in SCOPES
        self.name = name

    async def __call__(self, request: Request) -> Caller | None:
        if self.name == "public":
            return None
        caller: Caller = await request.app.state.keys.caller(token_of(request))
        if self.name not in caller.scopes:
            raise ApiError(403, "This key may not do that.", "Use a key with more rights.", code="insufficient_scope")
        return caller


Public = Depends(Scope("public"))
Maker = Annotated[Caller, Depends(Scope("images"))]
Operator = Annotated[Caller, Depends(Scope("admin"))]


def token_of(request: Request) -> str | None:
    """The bearer token of a request; AUTOMATIC1111's clients send it as the password of any user."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            token = a2b_base64(token.strip()).decode().partition(":")[2]
        except ValueError:
            return None
    elif kind.lower() != "bearer":
        return None
    return token.strip() or None


def unauthorised() -> ApiError:
    """No key, or a wrong one."""
    return ApiError(401, "Incorrect API key provided.", "Use a key that the operator made.", code="invalid_api_key")


class Guard:
    """ASGI middleware: Host, Origin, the size of the body, the request's id and time, headers for every answer."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return  # there are none
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        told: dict[str, str] = {}
        _answer.set(told)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                took = f"{(time.perf_counter() - started) * 1000:.0f}"
                more = {
                    "x-request-id": request_id,
                    "openai-processing-ms": took,
                    "x-content-type-options": "nosniff",
                    **told,
                }
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in more.items()),
                ]
            await send(message)

        if error := self._refusal(scope):
            await refuse(error, answer)
            return
        await self.app(scope, receive, answer)

    def _refusal(self, scope: MutableMapping[str, Any]) -> ApiError | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not self.settings.knows_host(headers.get("host", "")):
            return ApiError(421, "This server does not go by that name.", "Use its own address, or allowed_hosts.")
        origin = headers.get("origin")
        if origin is not None and not self._is_ours(origin, headers["host"]):
            return ApiError(403, "Pages of other sites may not use this server.", "Add the site to allowed_origins.")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.settings.max_upload:
            limit = self.settings.max_upload // 2**20
            return ApiError(413, f"The request is larger than {limit} MiB.", "Send smaller pictures.", code="too_large")
        return None

    def _is_ours(self, origin: str, host: str) -> bool:
        parts = urlsplit(origin)
        return origin.lower() in self.settings.allowed_origins or (
            parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
        )


async def refuse(error: ApiError, send: Send) -> None:
    """Answer with `error` below any framework."""
    import json

    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
