"""The usage log: one row for every order that was accepted, written when it ends. It holds no words and no pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from imagewright.database import metadata
from imagewright.server.jobs import Job

MAX_ROWS = 1000  # of one answer
GROUPS = ("key", "model", "day")
Json = dict[str, Any]

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("time", sa.Double, nullable=False),  # when it was accepted
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("asked", sa.Text),  # the model that the client named
    sa.Column("model", sa.Text),  # the one that drew
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("size", sa.String(16)),
    sa.Column("quality", sa.String(32), nullable=False),
    sa.Column("images", sa.Integer, nullable=False),  # delivered
    sa.Column("tokens_in", sa.BigInteger, nullable=False),
    sa.Column("tokens_out", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("cost", sa.BigInteger),  # µ$; null: nobody knows
    sa.Column("status", sa.Integer, nullable=False),  # HTTP
    sa.Column("error", sa.Text),  # its code
    sa.Column("request_id", sa.Text),
    sa.Index("usage_of_key", "key", "time"),
    sa.Index("usage_by_time", "time"),
)


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What became of an order: the model that drew, how many pictures, tokens in and out, seconds, and the cost in µ$
    (None: nobody knows). `status` and `error` as the client saw them."""

    model: str | None = None
    images: int = 0
    tokens: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    cost: int | None = 0
    status: int = 200
    error: str | None = None


CANCELLED = Bill(status=499, error="cancelled")


def enter(connection: sa.Connection, job: Job, bill: Bill) -> None:
    """Write an order down, in the transaction that ends it."""
    size = job.order.get("size")
    row = {
        "job": job.id,
        "key": job.owner,
        "time": job.created,
        "kind": job.kind,
        "asked": job.asked,
        "model": bill.model or job.model,
        "n": job.order.get("n", 1),
        "size": f"{size[0]}x{size[1]}" if size else None,
        "quality": job.order.get("quality", "auto"),
        "images": bill.images,
        "tokens_in": bill.tokens[0],
        "tokens_out": bill.tokens[1],
        "seconds": bill.seconds,
        "cost": bill.cost,
        "status": bill.status,
        "error": bill.error,
        "request_id": job.request_id,
    }
    connection.execute(usage.insert(), row)


def rows(
    connection: sa.Connection, key: str | None = None, since: float = 0.0, until: float | None = None, limit: int = 100
) -> list[Json]:
    """Rows of a key (None: of all), the newest first."""
    query = _within(sa.select(usage), key, since, until).order_by(usage.c.time.desc(), usage.c.job)
    return [dict(row._mapping) for row in connection.execute(query.limit(min(limit, MAX_ROWS)))]


def totals(
    connection: sa.Connection, by: str, key: str | None = None, since: float = 0.0, until: float | None = None
) -> list[Json]:
    """Sums for each key, model or day (UTC): requests, failed ones, images, tokens, seconds, cost in µ$.

    `unpriced`: how many of the requests had a cost that nobody knows.
    """
    columns = usage.c
    day = sa.cast(sa.func.floor(columns.time / 86_400), sa.Integer)
    group = {"key": columns.key, "model": columns.model, "day": day}[by]
    sums = (
        sa.func.count().label("requests"),
        sa.func.sum(sa.case((columns.status >= 400, 1), else_=0)).label("failed"),
        sa.func.sum(columns.images).label("images"),
        sa.func.sum(columns.tokens_in).label("tokens_in"),
        sa.func.sum(columns.tokens_out).label("tokens_out"),
        sa.func.sum(columns.seconds).label("seconds"),
        sa.func.coalesce(sa.func.sum(columns.cost), 0).label("cost"),
        sa.func.sum(sa.case((columns.cost.is_(None), 1), else_=0)).label("unpriced"),
    )
    query = _within(sa.select(group.label("of"), *sums), key, since, until).group_by(group).order_by(group)
    return [_total(by, dict(row._mapping)) for row in connection.execute(query)]


def _total(by: str, sums: Mapping[str, Any]) -> Json:
    of = sums["of"]
    named = f"{datetime.fromtimestamp(of * 86_400, UTC):%Y-%m-%d}" if by == "day" else of
    numbers = {name: float(value) if name == "seconds" else int(value) for name, value in sums.items() if name != "of"}
    return {by: named, **numbers}


def _within(query: Any, key: str | None, since: float, until: float | None) -> Any:
    query = query.where(usage.c.time >= since, usage.c.time < (time.time() + 1 if until is None else until))
    return query if key is None else query.where(usage.c.key == key)
