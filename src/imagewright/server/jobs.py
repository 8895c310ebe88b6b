"""The queue: every order is a row before any work starts, and a row leaves `running` only in the transaction that
enters its pictures and settles its price.

A worker claims rows, holds a lease that it renews while it lives, and loses them when the lease runs out: so a job
outlives any process. On one machine (SQLite) it need not run out: a worker whose process is gone loses its rows at
once. What a worker that lost a row still delivers is refused, so that nothing is entered twice. Leases go by the
database's clock where it is a server, so that machines whose clocks differ agree.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from imagewright.database import Database, metadata
from imagewright.server.errors import ApiError

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
OPEN = (QUEUED, RUNNING)
SUSPECT = 2  # a job whose worker died so often is done alone from then on, so that it takes no others with it,
PAUSE, LONGER = 5.0, 4  # after so many seconds, and each time so many times as many, so that others get on meanwhile;
ATTEMPTS = 8  # begun so often, half an hour in all, it is at fault itself
FAR = 3600.0  # s: a lease that ends later was given before the clock was set back
PACE = 60.0  # s over which the pace is measured
_LOCK = 7236947  # of Postgres, for who adds to the queue

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # generate, edit, variation, ...
    sa.Column("asked", sa.Text),  # the model that the client named
    sa.Column("model", sa.Text),  # ours, that it stands for
    sa.Column("pool", sa.Text, nullable=False),  # local: uses this machine's cores; hosted: waits for others
    sa.Column("order", sa.Text, nullable=False),  # JSON, see orders.py
    sa.Column("plan", sa.Text),  # JSON, see routes.py
    sa.Column("reply", sa.Text),  # JSON: how the client wants its answer, for the route that gives it
    sa.Column("background", sa.Boolean, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("previews", sa.Integer, nullable=False),  # pictures on the way that the client wants to see
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("started", sa.Double),
    sa.Column("finished", sa.Double),
    sa.Column("worker", sa.Text),
    sa.Column("lease", sa.Double),  # until when its worker has it; of one that waits: it must not be begun before
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
    sa.Index("jobs_ended", "finished"),
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
    order: dict[str, Any]
    plan: dict[str, Any] | None = None
    reply: dict[str, Any] | None = None
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


class QueueFull(ApiError):
    """As many jobs are open as the operator allows."""

    def __init__(self, waiting: int, seconds: float) -> None:
        self.waiting, self.seconds = waiting, seconds
        super().__init__(
            429,
            f"{waiting} requests are waiting already.",
            f"Try again in {seconds:.0f} s.",
            type="requests",
            code="queue_full",
            retry_after=seconds,
        )


def new_id() -> str:
    """An id that cannot be guessed."""
    return f"job_{secrets.token_urlsafe(16)}"


_HERE: set[str] = set()  # the workers of this process


def worker_id() -> str:
    """A new worker in this process; others on this machine can tell by it whether the process is alive."""
    name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    _HERE.add(name)
    return name


def is_gone(worker: str) -> bool:
    """Whether a worker of this machine has no process any more. False also where that cannot be told."""
    host, _, pid = worker.rpartition(":")[0].rpartition(":")
    if host != socket.gethostname() or worker in _HERE:
        return False
    if int(pid) == os.getpid():  # as in a container that was started again
        return True
    try:
        if os.name == "posix":  # elsewhere this would end the process
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


def add(connection: sa.Connection, job: Job, bound: int, worker: str | None = None, lease: float = 0.0) -> Job:
    """Enter a job, in the caller's transaction; at once as `worker`'s, if one is named and no other of its pool waits.

    Raises QueueFull where `bound` jobs are open already.
    """
    if connection.dialect.name != "sqlite":  # where nobody else can write meanwhile
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    count = connection.execute(_COUNT_OPEN, {"pool": job.pool}).one()
    if count.all >= bound:
        raise QueueFull(count.all, _wait(connection, count.all))
    if worker is None or count.waiting:
        connection.execute(_ADD, _plain(_fields(job)))
        return job
    job = replace(job, state=RUNNING, worker=worker, started=time.time(), attempts=1)
    row = _plain(_fields(job))
    if connection.dialect.name == "sqlite":
        connection.execute(_ADD, row | {"lease": time.time() + lease})
    else:
        row.pop("lease")
        connection.execute(_ADD_BEGUN, row | {"seconds": lease})
    return job


def claim(database: Database, worker: str, pool: str, lease: float, busy: bool = False) -> list[Job] | None:
    """The next job of a pool, or [] if none waits. None where it is a suspect, which must be done alone, and the worker
    is `busy`."""
    queued = (jobs.c.state == QUEUED) & (jobs.c.pool == pool)
    waiting = sa.select(jobs).where(queued).order_by(jobs.c.priority.desc(), jobs.c.created, jobs.c.id)
    waiting = waiting.with_for_update(skip_locked=True)
    with database.write() as connection:
        waiting = waiting.where(_is_due(connection))
        rows = list(connection.execute(waiting.limit(1)).all())
        if busy and rows and rows[0].attempts >= SUSPECT:
            return None
        taken = {"state": RUNNING, "worker": worker, "started": time.time()}
        update = jobs.update().where(jobs.c.id.in_([row.id for row in rows]))
        if rows:
            more = {"lease": _now(connection) + lease, "attempts": jobs.c.attempts + 1}
            connection.execute(update.values(**taken, **more))
    return [_job(row, **taken, attempts=row.attempts + 1) for row in rows]


def waiting(connection: sa.Connection) -> list[str]:
    """The pools in which jobs wait."""
    queued = (jobs.c.state == QUEUED) & _is_due(connection)
    return list(connection.execute(sa.select(jobs.c.pool).where(queued).distinct()).scalars())


def finish(connection: sa.Connection, job: Job, state: str, **values: Any) -> bool:
    """End a running job, in the caller's transaction; False if it is not this worker's any more: then enter nothing."""
    mine = {"mine": job.id, "whose": job.worker, "turn": job.attempts}  # it may have lost the job and got it again
    new = {"state": state, "finished": time.time(), **_plain(values)}
    return connection.execute(_FINISH, mine | new).rowcount == 1


def cancel(connection: sa.Connection, job_id: str, error: ApiError) -> bool:
    """Cancel a job that nobody works on yet, with what its client is told; else mark it, for its worker to see, and
    return False."""
    values = {"state": CANCELLED, "finished": time.time(), "cancel": True, **_plain({"error": error.to_json()})}
    one = jobs.update().where(jobs.c.id == job_id)
    if connection.execute(one.where(jobs.c.state == QUEUED).values(**values)).rowcount == 1:
        return True
    connection.execute(one.where(jobs.c.state == RUNNING).values(cancel=True))
    return False


def beat(connection: sa.Connection, worker: str, ids: Collection[str], lease: float) -> set[str]:
    """Renew the leases of those of `ids` that are still the worker's; which those are."""
    mine = (jobs.c.worker == worker) & (jobs.c.state == RUNNING) & jobs.c.id.in_(ids)
    renewed = jobs.update().where(mine).values(lease=_now(connection) + lease).returning(jobs.c.id)
    return set(connection.execute(renewed).scalars())


def cancelled(connection: sa.Connection, worker: str) -> list[str]:
    """The running jobs of a worker that were cancelled meanwhile."""
    mine = (jobs.c.worker == worker) & (jobs.c.state == RUNNING) & jobs.c.cancel
    return list(connection.execute(sa.select(jobs.c.id).where(mine)).scalars())


def lost(connection: sa.Connection) -> list[str]:
    """The running jobs whose workers died."""
    now = _now(connection)
    running = jobs.c.state == RUNNING
    gone = []
    if connection.dialect.name == "sqlite":  # all are on this machine
        workers = connection.execute(sa.select(jobs.c.worker).where(running).distinct()).scalars()
        gone = [worker for worker in workers if is_gone(worker)]
    over = (jobs.c.lease < now) | (jobs.c.lease > now + FAR) | jobs.c.worker.in_(gone)
    return list(connection.execute(sa.select(jobs.c.id).where(running, over)).scalars())


def take_back(connection: sa.Connection, ids: Sequence[str] | None, worker: str | None = None) -> list[Job]:
    """Put running jobs back into the queue, in the caller's transaction: those of `ids`, whose workers died, or all
    of `worker`, which stops (nothing of it counts as an attempt).

    Returned are those that the caller must end: they were cancelled, or begun too often.
    """
    running = sa.select(jobs).where(jobs.c.state == RUNNING)
    if ids is not None:
        running = running.where(jobs.c.id.in_(ids))
    if worker is not None:
        running = running.where(jobs.c.worker == worker)
    rows = connection.execute(running.with_for_update(skip_locked=True)).all()
    over = [row for row in rows if row.cancel or (worker is None and row.attempts >= ATTEMPTS)]
    for row in rows:
        if row in over:
            continue
        back: dict[str, Any] = {"state": QUEUED, "worker": None, "lease": None, "done": 0}
        if worker is not None:
            back["attempts"] = row.attempts - 1
        elif row.attempts >= SUSPECT:
            back["lease"] = _now(connection) + PAUSE * LONGER ** (row.attempts - SUSPECT)
        connection.execute(jobs.update().where(jobs.c.id == row.id).values(**back))
    return [_job(row) for row in over]


def _is_due(connection: sa.Connection) -> sa.ColumnElement[bool]:
    return sa.or_(jobs.c.lease.is_(None), jobs.c.lease <= _now(connection))


def progress(connection: sa.Connection, job: Job, done: int, total: int) -> None:
    """Note how far a job is, for those who ask from elsewhere."""
    mine = (jobs.c.id == job.id) & (jobs.c.state == RUNNING) & (jobs.c.worker == job.worker)
    connection.execute(jobs.update().where(mine).values(done=done, total=total))


def get(connection: sa.Connection, job_id: str, owner: str | None = None) -> Job | None:
    """A job; of `owner` only, unless None."""
    query = sa.select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(query if owner is None else query.where(jobs.c.owner == owner)).first()
    return None if row is None else _job(row)


def news(connection: sa.Connection, ids: Collection[str]) -> dict[str, Any]:
    """state, done, total and previews of each of `ids`."""
    columns = (jobs.c.id, jobs.c.state, jobs.c.done, jobs.c.total, jobs.c.previews)
    return {row.id: row for row in connection.execute(sa.select(*columns).where(jobs.c.id.in_(ids)))}


def listed(
    connection: sa.Connection,
    owner: str | None,
    *,
    states: Sequence[str] = (),
    limit: int = 20,
    after: Job | None = None,
) -> list[Job]:
    """Jobs of `owner` (None: of everybody), the newest first, from behind `after`."""
    newest = (jobs.c.created.desc(), jobs.c.id.desc())
    query = sa.select(jobs).order_by(*newest).limit(limit)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    if states:
        query = query.where(jobs.c.state.in_(states))
    if after is not None:
        query = query.where(sa.tuple_(jobs.c.created, jobs.c.id) < (after.created, after.id))
    return [_job(row) for row in connection.execute(query)]


def sweep(connection: sa.Connection, before: float) -> int:
    """Forget the jobs that ended before a time; how many."""
    return connection.execute(jobs.delete().where(jobs.c.finished < before, jobs.c.state.not_in(OPEN))).rowcount


def _wait(connection: sa.Connection, waiting: int) -> float:
    """Seconds until half of what waits is done, at the pace of the last minute."""
    now = time.time()
    ended = sa.select(sa.func.count(), sa.func.min(jobs.c.finished)).where(jobs.c.finished > now - PACE)
    count, first = connection.execute(ended).one()
    if not count:
        return PACE / 2
    return float(min(PACE, max(1.0, waiting / 2 * (now - first) / count)))


def _now(connection: sa.Connection) -> Any:
    """The time by which leases go: the database's, where it has a clock of its own."""
    return time.time() if connection.dialect.name == "sqlite" else _CLOCK


_CLOCK = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)
# Statements that are made once: to make one costs more than to carry it out.
_ADD = jobs.insert()
_ADD_BEGUN = jobs.insert().values(lease=_CLOCK + sa.bindparam("seconds", type_=sa.Double))
_FINISH = jobs.update().where(
    jobs.c.id == sa.bindparam("mine"),
    jobs.c.state == RUNNING,
    jobs.c.worker == sa.bindparam("whose"),
    jobs.c.attempts == sa.bindparam("turn"),
)
_IS_WAITING = (jobs.c.state == QUEUED) & (jobs.c.pool == sa.bindparam("pool"))
_COUNT_OPEN = sa.select(
    sa.func.count().label("all"), sa.func.coalesce(sa.func.sum(sa.case((_IS_WAITING, 1), else_=0)), 0).label("waiting")
).where(jobs.c.state.in_(OPEN))
_JSON = ("order", "plan", "reply", "result", "error")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if name in _JSON and value is not None else value for name, value in values.items()}


def _fields(job: Job) -> dict[str, Any]:
    return {name: getattr(job, name) for name in Job.__dataclass_fields__}


def _job(row: Any, **newer: Any) -> Job:
    values = {**row._mapping, **newer}
    return Job(**{name: json.loads(v) if name in _JSON and v is not None else v for name, v in values.items()})
