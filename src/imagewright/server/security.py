"""Who may do what: every route declares its scope. Bearer tokens only, never cookies; see guard.py for browsers."""

from __future__ import annotations

from binascii import a2b_base64
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from imagewright.server.errors import ApiError

SCOPES = ("public", "images", "admin")


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


headers_to_tell: ContextVar[dict[str, str] | None] = ContextVar("headers_to_tell", default=None)


def tell(**headers: str) -> None:
    """Add headers to the answer of the request that is being worked on (in this task, or in a thread of its own)."""
    more = headers_to_tell.get()
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
