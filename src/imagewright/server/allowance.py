"""What a key may still do: requests and pictures a minute, work at the same time, money.

All of it is taken by one conditional UPDATE of the key's row, in the transaction that accepts the order, so that any
number of processes together never give out more than there is. Rates are buckets that fill evenly (the generic cell
rate algorithm): a column holds the time at which the bucket is full again, and a minute's worth may come at once.

Money: what an order may cost at most is `reserved` when it is accepted. When it ends, in the same transaction, the
reservation goes and what it did cost is `spent`: so spent + reserved never exceeds the budget. Where a service charges
more than the estimate, which is an upper bound (prices.py), the true cost counts, and nothing more is accepted.
A period's `spent` begins at 0 with the first order that it accepts, in UTC; reservations are carried over.
"""

from __future__ import annotations

import logging
import math
import time
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from imagewright.server import jobs
from imagewright.server.errors import ApiError
from imagewright.server.jobs import Job
from imagewright.server.keys import keys
from imagewright.server.security import Caller, tell, unauthorised

log = logging.getLogger(__name__)
MINUTE = 60.0
_SLACK = 1e-3  # s by which sums of fractions may be off
_k = keys.c


def take(connection: sa.Connection, caller: Caller, job: Job, now: float | None = None) -> None:
    """Take what a new job needs from its key's row, in the transaction that enters it. Raises ApiError (401, 429)."""
    if not caller.is_key:
        return
    now = time.time() if now is None else now
    n = int(job.order.get("n", 1))
    row = connection.execute(_TAKE, {**_since(now), "key": job.owner, "now": now, "n": n, "cost": job.reserved}).first()
    if row is None:
        raise _refusal(connection, job, n, now)
    for kind, bound, full in (("requests", row.requests, row.requests_full), ("images", row.images, row.images_full)):
        if bound is not None:
            tell(**{f"x-ratelimit-limit-{kind}": str(bound)})
            tell(**{f"x-ratelimit-remaining-{kind}": str(_remaining(bound, full, now))})
            tell(**{f"x-ratelimit-reset-{kind}": _duration(full - now)})
    if row.parallel is not None:  # the row is locked by now: nobody else counts at the same time
        running = connection.execute(_OPEN, {"key": job.owner}).scalar_one()
        if running > row.parallel:
            raise _too_many(f"This key may have {row.parallel} requests at work at the same time.", 1.0)


def settle(connection: sa.Connection, job: Job, cost: int) -> None:
    """Give a job's reservation back and charge what it did cost, in the transaction that ends it."""
    if job.reserved or cost:
        connection.execute(_SETTLE, {"key": job.owner, "back": job.reserved, "cost": cost})
    if cost > job.reserved:
        log.warning("job %s cost %d millionths of a dollar, and %d were reserved", job.id, cost, job.reserved)


def since(period: str, now: float) -> str:
    """The name of the period that `now` lies in; two times of one period have the same."""
    return _since(now)[period]


def _since(now: float) -> dict[str, str]:
    day = datetime.fromtimestamp(now, UTC)
    year, week, _ = day.isocalendar()
    return {"day": f"{day:%Y-%m-%d}", "week": f"{year}-W{week:02}", "month": f"{day:%Y-%m}", "total": "all"}


def _full(kind: str, count: Any) -> Any:
    """When the bucket of `kind` is full again once `count` were taken; unchanged where there is no bound."""
    column, now = _k[f"{kind}_full"], sa.bindparam("now", type_=sa.Double)
    begun = sa.case((column > now, column), else_=now)
    return sa.case((_k[kind].is_(None), column), else_=begun + count * MINUTE / _k[kind])


def _compiled() -> tuple[Any, Any, Any]:
    now, cost = sa.bindparam("now", type_=sa.Double), sa.bindparam("cost", type_=sa.BigInteger)
    names = {period: sa.bindparam(period, type_=sa.String) for period in ("day", "week", "month", "total")}
    current = sa.case(*((_k.period == period, name) for period, name in names.items()))
    spent = sa.case((_k.since == current, _k.spent), else_=0)
    requests, images = _full("requests", 1.0), _full("images", sa.bindparam("n", type_=sa.Double))
    free = (
        (_k.id == sa.bindparam("key"))
        & ~_k.disabled
        & (_k.expires.is_(None) | (_k.expires > now))
        & (_k.requests.is_(None) | (requests <= now + MINUTE + _SLACK))
        & (_k.images.is_(None) | (images <= now + MINUTE + _SLACK))
        & (_k.budget.is_(None) | (spent + _k.reserved + cost <= _k.budget))
    )
    taken = (
        keys.update()
        .where(free)
        .values(requests_full=requests, images_full=images, since=current, spent=spent, reserved=_k.reserved + cost)
    )
    told = (_k.requests, _k.images, _k.parallel, _k.requests_full, _k.images_full)
    settled = (
        keys.update()
        .where(_k.id == sa.bindparam("key"))
        .values(reserved=_k.reserved - sa.bindparam("back"), spent=_k.spent + cost)
    )
    is_open = jobs.jobs.c.state.in_(jobs.OPEN) & (jobs.jobs.c.owner == sa.bindparam("key"))
    return taken.returning(*told), settled, sa.select(sa.func.count()).select_from(jobs.jobs).where(is_open)


_TAKE, _SETTLE, _OPEN = _compiled()


def _refusal(connection: sa.Connection, job: Job, n: int, now: float) -> ApiError:
    """Which of the bounds it was."""
    key = connection.execute(sa.select(keys).where(_k.id == job.owner)).first()
    if key is None or key.disabled or (key.expires is not None and key.expires <= now):
        return unauthorised()
    for kind, count in (("requests", 1), ("images", n)):
        bound, full = getattr(key, kind), max(now, getattr(key, f"{kind}_full"))
        if bound is None:
            continue
        if count > bound:
            return ApiError(
                429, f"This key may make {bound} {kind} a minute, and {count} were asked for.", "Ask for fewer.",
                type="requests", code="rate_limit_exceeded", retry=False,
            )  # fmt: skip
        wait = full + count * MINUTE / bound - now - MINUTE
        if wait > _SLACK:
            tell(**{f"x-ratelimit-limit-{kind}": str(bound), f"x-ratelimit-reset-{kind}": _duration(full - now)})
            tell(**{f"x-ratelimit-remaining-{kind}": str(_remaining(bound, full, now))})
            return _too_many(f"This key may make {bound} {kind} a minute.", wait)
    spent = key.spent if key.since == since(key.period, now) else 0
    period = "in all" if key.period == "total" else f"a {key.period}"
    left = max(0, key.budget - spent - key.reserved) if key.budget is not None else 0
    return ApiError(
        429,
        f"This key may spend ${dollars(key.budget or 0)} {period}; ${dollars(left)} are free, and this may cost "
        f"${dollars(job.reserved)}.",
        "Ask the operator for more, or for something cheaper.",
        type="insufficient_quota",
        code="insufficient_quota",
        retry=False,
    )


def dollars(money: int) -> str:
    """µ$ as dollars with as many decimals as it takes, at least two."""
    text = f"{money / 1e6:.6f}".rstrip("0")
    whole, _, rest = text.partition(".")
    return f"{whole}.{rest:0<2}"


def _too_many(message: str, wait: float) -> ApiError:
    return ApiError(
        429, message, f"Try again in {math.ceil(wait)} s.",
        type="requests", code="rate_limit_exceeded", retry_after=max(1.0, wait),
    )  # fmt: skip


def _remaining(bound: int, full: float, now: float) -> int:
    return max(0, math.floor(bound * (1 - (full - now) / MINUTE) + _SLACK))


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `1s`, `6m0s`."""
    whole = math.ceil(max(0.0, seconds))
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
