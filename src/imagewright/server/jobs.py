"""The queue: every order is a row before any work starts, and a row leaves `running` only in the transaction that
enters its pictures and settles its price.

A worker claims rows, holds a lease that it renews while it lives, and loses them when the lease runs out: so a job
outlives any process. What a worker that lost its lease still delivers is refused, so that nothing is entered twice.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from imagewright.database import Database, metadata
from imagewright.server.errors import ApiError

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
OPEN = (QUEUED, RUNNING)
ATTEMPTS = 3  # a job that took three workers down with it is at fault itself

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # generate, edit, variation, ...
    sa.Column("asked", sa.Text),  # the model that the client named
    sa.Column("model", sa.Text),  # ours, that it stands for
    sa.Column("pool", sa.Text, nullable=False),  # local: uses this machine's cores; hosted: waits for others
    sa.Column("lane", sa.Text),  # orders of one lane may be drawn together
    sa.Column("order", sa.Text, nullable=False),  # JSON, see orders.py
    sa.Column("plan", sa.Text),  # JSON, see routes.py
    sa.Column("background", sa.Boolean, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("previews", sa.Integer, nullable=False),  # pictures on the way that the client wants to see
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float),
    sa.Column("finished", sa.Float),
    sa.Column("worker", sa.Text),
    sa.Column("lease", sa.Float),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("cancel", sa.Boolean, nullable=False),
    sa.Column("done", sa.Integer, nullable=False),  # steps
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("reserved", sa.BigInteger, nullable=False),  # millionths of a dollar
    sa.Column("cost", sa.BigInteger),
    sa.Column("request_id", sa.Text),
    sa.Index("jobs_waiting", "state", "pool", "priority", "created"),
    sa.Index("jobs_of_owner", "owner", "created"),
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the queue. `order` is what orders.py wrote; times in seconds since 1970, money in µ$."""

    id: str
    owner: str
    kind: str
    asked: str | None
    model: str | None
    pool: str = "local"
    lane: str | None = None
    order: dict[str, Any]
    plan: dict[str, Any] | None = None
    background: bool = False
    priority: int = 0
    previews: int = 0
    state: str = QUEUED
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    worker: str | None = None
    lease: float | None = None
    attempts: int = 0
    cancel: bool = False
    done: int = 0
    total: int = 0
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    reserved: int = 0
    cost: int | None = None
    request_id: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is still something to wait for."""
        return self.state in OPEN


def new_id() -> str:
    """An id that cannot be guessed."""
    return f"job_{secrets.token_urlsafe(16)}"


def worker_id() -> str:
    """This process, so that others on this machine can tell whether it is alive."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def add(connection: sa.Connection, job: Job, bound: int) -> None:
    """Enter a job, in the caller's transaction. Raises ApiError (429) where `bound` jobs are open already."""
    waiting = connection.execute(_COUNT_OPEN).scalar_one()
    if waiting >= bound:
        raise ApiError(
            429,
            f"{waiting} requests are waiting already.",
            "Try again a little later.",
            type="requests",
            code="queue_full",
            retry_after=5,
        )
    connection.execute(jobs.insert(), _row(job))


def claim(
    database: Database, worker: str, pool: str, lease: float, *, together: int = 1, now: float | None = None
) -> list[Job]:
    """The next job of a pool, with up to `together` - 1 more of its lane; [] if none waits."""
    now = time.time() if now is None else now
    queued = (jobs.c.state == QUEUED) & (jobs.c.pool == pool)
    with database.read() as connection:  # an idle worker must not take the lock of SQLite
        if connection.execute(sa.select(jobs.c.id).where(queued).limit(1)).first() is None:
            return []
    waiting = sa.select(jobs).where(queued).order_by(jobs.c.priority.desc(), jobs.c.created)
    waiting = waiting.with_for_update(skip_locked=True)
    with database.write() as connection:
        rows = list(connection.execute(waiting.limit(1)).all())
        if rows and together > 1 and rows[0].lane is not None:
            same = waiting.where(jobs.c.lane == rows[0].lane, jobs.c.id != rows[0].id)
            rows += connection.execute(same.limit(together - 1)).all()
        taken = {"state": RUNNING, "worker": worker, "lease": now + lease, "started": now}
        ids = [row.id for row in rows]
        update = jobs.update().where(jobs.c.id.in_(ids)).values(**taken, attempts=jobs.c.attempts + 1)
        if ids:
            connection.execute(update)
    return [_job(row, **taken, attempts=row.attempts + 1) for row in rows]


def finish(connection: sa.Connection, job: Job, state: str, **values: Any) -> bool:
    """End a running job, in the caller's transaction; False if it is not this worker's any more: then enter nothing."""
    mine = (jobs.c.id == job.id) & (jobs.c.state == RUNNING) & (jobs.c.worker == job.worker)
    ended = connection.execute(jobs.update().where(mine).values(state=state, finished=time.time(), **_plain(values)))
    return ended.rowcount == 1


def cancel_waiting(connection: sa.Connection, job_id: str) -> bool:
    """Cancel a job that nobody works on yet; else mark it, for its worker to see, and return False."""
    values = {"state": CANCELLED, "finished": time.time(), "cancel": True}
    waiting = (jobs.c.id == job_id) & (jobs.c.state == QUEUED)
    if connection.execute(jobs.update().where(waiting).values(**values)).rowcount == 1:
        return True
    connection.execute(jobs.update().where(jobs.c.id == job_id).values(cancel=True))
    return False


def beat(database: Database, worker: str, lease: float) -> list[str]:
    """Renew the leases of a worker; the ids of its jobs that were cancelled meanwhile."""
    mine = (jobs.c.worker == worker) & (jobs.c.state == RUNNING)
    with database.write() as connection:
        connection.execute(jobs.update().where(mine).values(lease=time.time() + lease))
        return list(connection.execute(sa.select(jobs.c.id).where(mine, jobs.c.cancel)).scalars())


def reclaim(connection: sa.Connection, now: float | None = None) -> tuple[list[str], list[Job]]:
    """Put the jobs of workers that died back, in the caller's transaction: their ids, and those given up for good."""
    now = time.time() if now is None else now
    lost = (jobs.c.state == RUNNING) & (jobs.c.lease < now)
    rows = connection.execute(sa.select(jobs).where(lost).with_for_update(skip_locked=True)).all()
    again = [row.id for row in rows if row.attempts < ATTEMPTS and not row.cancel]
    given_up = [_job(row) for row in rows if row.id not in again]
    if again:
        back = jobs.update().where(jobs.c.id.in_(again)).values(state=QUEUED, worker=None, lease=None)
        connection.execute(back)
    return again, given_up


def put_back(connection: sa.Connection, worker: str) -> None:
    """Give up the jobs that a worker has begun, for others to do; nothing of it counts as an attempt."""
    mine = (jobs.c.worker == worker) & (jobs.c.state == RUNNING)
    back = {"state": QUEUED, "worker": None, "lease": None}
    connection.execute(jobs.update().where(mine).values(**back, attempts=jobs.c.attempts - 1))


def progress(connection: sa.Connection, job: Job, done: int, total: int) -> None:
    """Note how far a job is, for those who ask from elsewhere."""
    connection.execute(jobs.update().where(jobs.c.id == job.id).values(done=done, total=total))


def get(connection: sa.Connection, job_id: str, owner: str | None = None) -> Job | None:
    """A job; of `owner` only, unless None."""
    query = sa.select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(query if owner is None else query.where(jobs.c.owner == owner)).first()
    return None if row is None else _job(row)


def listed(
    connection: sa.Connection,
    owner: str | None,
    states: Sequence[str] = (),
    limit: int = 20,
    before: float | None = None,
) -> list[Job]:
    """Jobs, the newest first; created before a time if one is given."""
    query = sa.select(jobs).order_by(jobs.c.created.desc()).limit(limit)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    if states:
        query = query.where(jobs.c.state.in_(states))
    if before is not None:
        query = query.where(jobs.c.created < before)
    return [_job(row) for row in connection.execute(query)]


_COUNT_OPEN = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state.in_(OPEN))
_JSON = ("order", "plan", "result", "error")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if name in _JSON and value is not None else value for name, value in values.items()}


def _row(job: Job) -> dict[str, Any]:
    return _plain({name: getattr(job, name) for name in Job.__dataclass_fields__})


def _job(row: Any, **newer: Any) -> Job:
    values = {**row._mapping, **newer}
    return Job(**{name: json.loads(v) if name in _JSON and v is not None else v for name, v in values.items()})
