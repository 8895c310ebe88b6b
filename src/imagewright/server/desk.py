"""The front desk: accepts an order durably, hands it to the workers, and waits for what becomes of it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool

from imagewright.database import Database
from imagewright.request import ImageRequest
from imagewright.server import errors, idempotency, jobs, orders
from imagewright.server.allowance import dollars
from imagewright.server.delivery import as_ended
from imagewright.server.gateway import Gateway
from imagewright.server.hub import Hub, News
from imagewright.server.idempotency import Once
from imagewright.server.jobs import Job, QueueFull
from imagewright.server.security import Caller, tell
from imagewright.server.settings import DAY, Settings
from imagewright.server.usage import Bill
from imagewright.server.worker import CANCELLED, Worker
from imagewright.store import Row, Store, new_id

log = logging.getLogger(__name__)
LOOK = 0.25  # s between two looks at jobs that other processes do
FULL = 0.1  # s for which a full queue is believed to be full
SPARE = 1.0  # s before the end of the drain at which those who still wait are told
STOPPING = errors.ApiError(
    503, "The server is stopping.", "Try again in a moment.", type="server_error", code="stopping", retry_after=5
)


def stopping() -> errors.ApiError:
    """What is said where nothing is accepted any more."""
    return errors.ApiError.from_json(STOPPING.to_json())


@dataclass(frozen=True)
class Outcome:
    """A job that is done: its `result` (see delivery.py) and the bytes of its pictures, by their ids."""

    job: Job
    files: Mapping[str, bytes]

    @property
    def result(self) -> dict[str, Any]:
        """What the worker noted."""
        assert self.job.result is not None
        return self.job.result

    @property
    def pictures(self) -> list[tuple[dict[str, Any], bytes]]:
        """Each picture's facts (id, digest, media_type) and its file."""
        return [(picture, self.files[picture["id"]]) for picture in self.result["pictures"]]


class Desk:
    """Where routes leave orders. `worker` is None where other processes do the work."""

    def __init__(
        self, database: Database, store: Store, gateway: Gateway, settings: Settings, hub: Hub, worker: Worker | None
    ) -> None:
        self.database, self.store, self.gateway = database, store, gateway
        self.settings, self.hub, self.worker = settings, hub, worker
        self.closing, self._until = False, 0.0
        self._leaving: asyncio.Future[None] | None = None
        self._full = (0.0, 0, 0.0)  # until when the queue is full, how many wait, when to try again

    async def submit(
        self,
        caller: Caller,
        request: ImageRequest,
        *,
        kind: str,
        asked: str | None,
        background: bool = False,
        priority: int = 0,
        previews: int = 0,
        reply: dict[str, Any] | None = None,
        request_id: str | None = None,
        once: Once | None = None,
        relay: bool = False,
    ) -> Job:
        """Accept an order: when this returns, it survives a crash. Raises ApiError.

        `reply` is kept for whoever answers (jobs.reply). With `once` it may be the job of an earlier request
        (idempotency.py). `relay`: a hosted service's own files will do, and nobody asks for them later.
        """
        self._check_room()
        job_id = jobs.new_id()
        if not background:
            self.hub.expect(job_id)
        accepting = asyncio.ensure_future(run_in_threadpool(
            self._accept, caller, request, id=job_id, kind=kind, asked=asked, background=background,
            priority=priority, previews=previews, reply=reply, request_id=request_id, once=once,
            relay=relay and not background and once is None,
        ))  # fmt: skip
        job = None
        try:
            job = await asyncio.shield(accepting)
        except QueueFull as full:
            self._full = time.monotonic() + FULL, full.waiting, full.seconds
            raise
        except asyncio.CancelledError:  # the client left; the thread goes on
            accepting.add_done_callback(lambda done: self._unwanted(job_id, done))
            raise
        finally:
            if job is None or job.id != job_id:
                self.hub.forget(job_id)
        return job

    def _unwanted(self, job_id: str, accepting: asyncio.Future[Job]) -> None:
        """Nobody waits for what is accepted now."""
        if accepting.exception() is None and accepting.result().id == job_id and not accepting.result().background:
            self._leaving = asyncio.ensure_future(run_in_threadpool(self.cancel, job_id))

    def _check_room(self) -> None:
        """Raises ApiError where nothing is accepted, without asking the database about every request."""
        if self.closing:
            raise stopping()
        until, waiting, seconds = self._full
        if time.monotonic() < until:
            raise QueueFull(waiting, seconds)

    def _accept(
        self, caller: Caller, request: ImageRequest, *, asked: str | None, once: Once | None, relay: bool, **facts: Any
    ) -> Job:
        choice = self.gateway.choose(caller, asked, request, relay and self.worker is not None)
        brought: dict[str, Row] = {}  # pictures that the job needs, with rows of their own, so that they stay

        def save(data: bytes, size: tuple[int, int]) -> str:
            digest = self.store.save(data)
            brought[digest] = Row(
                id=new_id(), digest=digest, media_type="image/png", width=size[0], height=size[1], bytes=len(data),
                owner=caller.key_id, created=time.time(), expires=time.time() + self.settings.keep_days * DAY,
                kind="input",
            )  # fmt: skip
            return digest

        order = orders.to_json(request, save)
        if choice.adjustments:
            order["adjustments"] = [vars(one) for one in choice.adjustments] + order.get("adjustments", [])
        job = Job(
            owner=caller.key_id,
            asked=asked,
            model=choice.model,
            pool=choice.pool,
            order=order,
            plan=choice.plan,
            reserved=choice.estimate or 0,
            **facts,
        )
        rows = [replace(row, job=job.id) for row in brought.values()]
        return self._enter(caller, job, rows, once)

    def _enter(self, caller: Caller, job: Job, rows: Sequence[Row], once: Once | None) -> Job:
        """The one transaction that accepts a job; where a seat is free in this process, it takes it."""
        seat = self.worker.seat(job.pool) if self.worker is not None else None
        worker = self.worker.id if self.worker is not None and seat is not None else None
        entered = None

        def enter(connection: sa.Connection) -> Job:
            if once is not None and (first := idempotency.earlier(connection, self.database.insert, once, job)):
                return first
            self.store.enter(connection, rows)
            accepted = jobs.add(connection, job, self.settings.queue, worker, self.settings.lease)
            self.gateway.reserve(connection, caller, accepted)
            return accepted

        try:
            found = self.database.together(enter)
            entered = found if found.id == job.id else None
        finally:
            if self.worker is not None:
                self.worker.accepted(seat, entered)
        return found

    async def news(self, job: Job) -> AsyncGenerator[News]:
        """What happens to a job: what did so far, then progress and partial pictures as they come, then its end."""
        with self.hub.listening(job.id) as ear:
            if ear.late:
                for news in await run_in_threadpool(self._so_far, job.id):
                    yield news
                    if news.kind == "ended":
                        return
            while True:
                news = await ear.queue.get()
                yield news
                if news.kind == "ended":
                    return

    async def outcome(self, job: Job) -> Outcome:
        """Wait for a job. Raises ApiError where it failed or was cancelled.

        When the waiting itself is cancelled, because the client went away, so is the job.
        """
        try:
            with self.hub.listening(job.id, whole=False) as ear:
                ended = None
                if ear.late:
                    ended = next((n for n in await run_in_threadpool(self._so_far, job.id) if n.kind == "ended"), None)
                while ended is None:
                    news = await ear.queue.get()
                    ended = news if news.kind == "ended" else None
        except asyncio.CancelledError:
            await asyncio.shield(run_in_threadpool(self.cancel, job.id))
            raise
        files = ended.data["files"]
        if files:
            return self.concluded(ended.data["job"], files)
        return await run_in_threadpool(self.concluded, ended.data["job"], files)

    def finished(self, job_id: str, files: Mapping[str, bytes]) -> Outcome:
        """The outcome of a job that is over. Raises ApiError."""
        job = self.get(job_id)
        if job is None:
            raise errors.not_found("job")
        return self.concluded(job, files)

    def concluded(self, job: Job, files: Mapping[str, bytes]) -> Outcome:
        """The outcome of a job that is over; what is not in `files` is read from the store. Raises ApiError."""
        if job.error is not None:
            raise errors.ApiError.from_json(job.error)
        assert job.result is not None
        if job.cost is not None:
            tell(**{"x-imagewright-cost": dollars(job.cost)})
        found = {p["id"]: files.get(p["id"]) or self._file(p["digest"]) for p in job.result["pictures"]}
        return Outcome(job, found)

    def _file(self, digest: str) -> bytes:
        if not digest:
            raise errors.ApiError(410, "The pictures were passed on as they came, and were not kept.", code="gone")
        return self.store.load(digest)

    def get(self, job_id: str, owner: str | None = None) -> Job | None:
        """A job as it stands."""
        with self.database.read() as connection:
            return jobs.get(connection, job_id, owner)

    def cancel(self, job_id: str, error: errors.ApiError = CANCELLED) -> None:
        """End a job as soon as can be; `error` is what whoever waits for it is told, if nobody has begun it."""
        if self.worker is not None:
            self.worker.cancel(job_id)
        with self.database.write() as connection:
            job = jobs.get(connection, job_id)
            ended = job is not None and jobs.cancel(connection, job_id, error)
            if job is not None and ended:
                self.gateway.settle(connection, job, Bill(status=error.status, error=error.code))
        if job is not None and ended:
            self.hub.tell(job_id, "ended", job=as_ended(job, error), files={})

    @property
    def left(self) -> float:
        """Seconds until all must have ended."""
        return max(0.0, self._until - time.monotonic())

    async def close(self, seconds: float) -> None:
        """Accept no more and begin no more. Who waits for work that nobody has begun is told so now, and who waits for
        other work a little before `seconds` are over; returns when nobody waits. Once is enough."""
        if not self.closing:
            self.closing, self._until = True, time.monotonic() + seconds
            if self.worker is not None:
                await run_in_threadpool(self.worker.close)
            for job_id in self.hub.heard():
                self.hub.tell(job_id, "closing")
        while self.hub.heard() and self.left > SPARE:
            if self.worker is not None:  # again and again: some were being accepted when it was closed
                await run_in_threadpool(self._give_up, (jobs.QUEUED,))
            await asyncio.sleep(0.1)
        await run_in_threadpool(self._give_up, jobs.OPEN)

    def _give_up(self, states: Sequence[str]) -> None:
        """Tell those who wait for a job in one of `states` that it will not be, and cancel it: they will ask again."""
        for job_id in self.hub.heard():
            job = self.get(job_id)
            if job is not None and not job.background and job.state in states:
                self.hub.tell(job_id, "ended", job=as_ended(job, STOPPING), files={})
                self.cancel(job_id, STOPPING)

    async def look(self) -> None:
        """For ever: news of jobs that somebody listens to here and that are done elsewhere, or that still wait."""
        seen: dict[str, tuple[int, int]] = {}  # (steps done, partial pictures)
        while True:
            await asyncio.sleep(LOOK)
            ids = [id for id in self.hub.heard() if self.worker is None or not self.worker.does(id)]
            seen = {id: seen.get(id, (0, 0)) for id in ids}
            try:
                if ids:
                    await run_in_threadpool(self._look, seen)
            except Exception as error:
                log.warning("the state of jobs cannot be read: %s", error)

    def _look(self, seen: dict[str, tuple[int, int]]) -> None:
        with self.database.read() as connection:
            found = jobs.news(connection, seen)
        for job_id, now in found.items():
            done, shown = seen[job_id]
            if now.state not in jobs.OPEN:
                self.hub.tell(job_id, "ended", job=self.get(job_id), files={})
                continue
            if now.done > done:
                self.hub.tell(job_id, "progress", done=now.done, total=now.total)
            partials = self._partials(job_id) if now.previews and now.state == jobs.RUNNING else []
            for news in partials[shown:]:
                self.hub.tell(job_id, news.kind, **news.data)
            seen[job_id] = now.done, max(shown, len(partials))

    def _so_far(self, job_id: str) -> list[News]:
        """What whoever begins to listen now has missed."""
        job = self.get(job_id)
        if job is None:
            raise errors.not_found("job")
        if not job.is_open:
            return [News("ended", {"job": job, "files": {}})]
        partials = self._partials(job_id) if job.previews else []
        return [*([News("progress", {"done": job.done, "total": job.total})] if job.done else []), *partials]

    def _partials(self, job_id: str) -> list[News]:
        rows = [row for row in self.store.of_job(job_id) if row.kind == "partial"]
        facts = [{"index": json.loads(row.record)["index"], "size": (row.width, row.height)} for row in rows]
        return [
            News("partial", {**fact, "file": self.store.load(row.digest)})
            for fact, row in zip(facts, rows, strict=True)
        ]
