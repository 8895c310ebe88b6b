"""Keys and usage over HTTP: /v1/usage for the owner of a key, /v1/admin/* for the operator. Money is in dollars."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from imagewright.database import Database
from imagewright.server import keys, usage
from imagewright.server.allowance import since
from imagewright.server.keys import Key
from imagewright.server.security import Maker, Operator

router = APIRouter(prefix="/v1", tags=["keys and usage"])
Json = dict[str, Any]
_MICRO = 1_000_000
_Rate = Annotated[int | None, Field(ge=1, le=keys.MAX_RATE)]


class KeyChange(BaseModel):
    """What may be changed of a key; what is left out stays, null takes a bound away. Rates are per minute."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(default="", min_length=1, max_length=200)
    scopes: list[Literal["images", "admin"]] = Field(default=["images"], min_length=1, max_length=2)
    models: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=200)] | None = None
    requests: _Rate = None
    images: _Rate = None
    parallel: _Rate = None
    budget: float | None = Field(default=None, ge=0, le=keys.MAX_MONEY // _MICRO, allow_inf_nan=False)
    period: Literal["day", "week", "month", "total"] = "total"
    expires: float | None = Field(default=None, ge=0, le=1e11, description="seconds since 1970")
    disabled: bool = False
    metadata: dict[str, str] = Field(default={}, max_length=16)

    def values(self) -> Json:
        """As keys.py has it; only what was given."""
        given = self.model_dump(exclude_unset=True)
        if given.get("budget") is not None:
            given["budget"] = round(given["budget"] * _MICRO)
        return given


class NewKey(KeyChange):
    """The body that makes a key."""

    name: str = Field(min_length=1, max_length=200)


class Window(BaseModel):
    """Which rows of the usage log. Times are seconds since 1970, `until` is left out."""

    model_config = ConfigDict(extra="forbid")

    by: Literal["key", "model", "day"] | None = None
    since: float = Field(default=0.0, ge=0, le=1e11)
    until: float | None = Field(default=None, ge=0, le=1e11)
    limit: int = Field(default=100, ge=1, le=usage.MAX_ROWS)


class WindowOfAll(Window):
    """The same, of one key or of all."""

    key: str | None = Field(default=None, max_length=64)


@router.get("/usage")
async def own_usage(http: Request, caller: Maker, window: Annotated[Window, Query()]) -> Json:
    """What the caller's key has used: sums by model or day, or the rows of the log, the newest first."""
    return await run_in_threadpool(_usage, http.app.state.database, window, caller.key_id)


@router.get("/admin/usage")
async def all_usage(http: Request, caller: Operator, window: Annotated[WindowOfAll, Query()]) -> Json:
    """What all keys have used, or one."""
    return await run_in_threadpool(_usage, http.app.state.database, window, window.key)


@router.post("/admin/keys", status_code=201)
async def create(http: Request, caller: Operator, body: NewKey) -> Json:
    """Make a key. The answer holds its token, which is told this once only."""
    return await _write(http, lambda connection: with_token(*keys.create(connection, **_new(body))))


@router.get("/admin/keys")
async def listed(http: Request, caller: Operator) -> Json:
    """All keys, without their tokens."""
    return {"object": "list", "data": await run_in_threadpool(_listed, http.app.state.database)}


@router.get("/admin/keys/{key_id}")
async def one(http: Request, caller: Operator, key_id: str) -> Json:
    """One key, without its token."""
    return await _write(http, lambda connection: to_json(keys.get(connection, key_id)))


@router.patch("/admin/keys/{key_id}")
async def change(http: Request, caller: Operator, key_id: str, body: KeyChange) -> Json:
    """Change what a key may do."""
    return await _write(http, lambda connection: to_json(keys.change(connection, key_id, body.values())))


@router.delete("/admin/keys/{key_id}")
async def disable(http: Request, caller: Operator, key_id: str) -> Json:
    """Take a key's rights away. What it made and used is kept."""
    return await _write(http, lambda connection: to_json(keys.change(connection, key_id, {"disabled": True})))


@router.post("/admin/keys/{key_id}/rotate")
async def rotate(http: Request, caller: Operator, key_id: str) -> Json:
    """Give a key a new token; the old one is worth nothing from now on."""
    return await _write(http, lambda connection: with_token(*keys.rotate(connection, key_id)))


def to_json(key: Key) -> Json:
    """A key as clients see it; `spent` is of the current period."""
    shown = {name: getattr(key, name) for name in Key.__dataclass_fields__ if name != "since"}
    if key.since != since(key.period, time.time()):
        shown["spent"] = 0
    money = {name: None if shown[name] is None else shown[name] / _MICRO for name in ("budget", "spent", "reserved")}
    return {"object": "key", **shown, **money}


def with_token(key: Key, token: str) -> Json:
    """A key as whoever made it sees it, once."""
    return to_json(key) | {"token": token}


def in_dollars(row: Mapping[str, Any]) -> Json:
    """A row or sum of the log with its cost in dollars."""
    return dict(row) | {"cost": None if row["cost"] is None else row["cost"] / _MICRO}


def _new(body: NewKey) -> Json:
    values = body.values()
    values.pop("disabled", None)
    return values


async def _write(http: Request, work: Any) -> Json:
    database: Database = http.app.state.database

    def done() -> Json:
        with database.write() as connection:
            found: Json = work(connection)
        return found

    found = await run_in_threadpool(done)
    http.app.state.keys.forget()
    return found


def _listed(database: Database) -> list[Json]:
    with database.read() as connection:
        return [to_json(key) for key in keys.listed(connection)]


def _usage(database: Database, window: Window, key: str | None) -> Json:
    with database.read() as connection:
        if window.by is None:
            found = usage.rows(connection, key, window.since, window.until, window.limit)
        else:
            found = usage.totals(connection, window.by, key, window.since, window.until)
    return {"object": "list", "data": [in_dollars(row) for row in found]}
