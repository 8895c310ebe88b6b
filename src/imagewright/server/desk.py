"""The front desk: accepts an order durably, hands it to the workers, and waits for what becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.concurrency import run_in_threadpool

from imagewright.database import Database
from imagewright.request import ImageRequest
from imagewright.server import errors, idempotency, jobs, orders
from imagewright.server.allowance import dollars
from imagewright.server.gateway import Gateway
from imagewright.server.hub import Hub, News
from imagewright.server.idempotency import Once
from imagewright.server.jobs import Job
from imagewright.server.security import Caller, tell
from imagewright.server.settings import DAY, Settings
from imagewright.server.usage import CANCELLED
from imagewright.server.worker import Worker
from imagewright.store import Row, Store, new_id

LOOK = 0.25  # seconds between two looks at a job that another process does


@dataclass(frozen=True)
class Outcome:
    """A job that is done: its `result` (see worker.py) and the bytes of its pictures, by their ids."""

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
        self.closing = False

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
        request_id: str | None = None,
        once: Once | None = None,
        relay: bool = False,
    ) -> Job:
        """Accept an order: when this returns, it survives a crash. Raises ApiError.

        With `once` it may be the job of an earlier request (idempotency.py). `relay`: a hosted service's own files will
        do, and nobody asks for them later.
        """
        if self.closing:
            raise errors.ApiError(503, "The server is stopping.", "Try again.", type="server_error", retry_after=5)
        job = await run_in_threadpool(
            self._accept, caller, request, kind=kind, asked=asked, background=background, priority=priority,
            previews=previews, request_id=request_id, once=once, relay=relay and not background and once is None,
        )  # fmt: skip
        if self.worker is not None:
            self.worker.wake()
        return job

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
            id=jobs.new_id(),
            owner=caller.key_id,
            asked=asked,
            model=choice.model,
            pool=choice.pool,
            lane=choice.lane,
            order=order,
            plan=choice.plan,
            reserved=choice.estimate or 0,
            **facts,
        )
        with self.database.write() as connection:
            if once is not None and (first := idempotency.earlier(connection, self.database.insert, once, job)):
                return first
            jobs.add(connection, job, self.settings.queue)
            self.gateway.reserve(connection, caller, job)
            self.store.enter(connection, [replace(row, job=job.id) for row in brought.values()])
        return job

    async def news(self, job: Job) -> AsyncGenerator[News]:
        """Progress and partial pictures of a job as they come; ends when the job does."""
        with self.hub.listening(job.id) as queue:
            seen = (0, 0)
            while True:
                now = await run_in_threadpool(self.get, job.id)
                if now is None or not now.is_open:
                    return
                if (now.done, now.total) > seen:
                    seen = (now.done, now.total)
                    yield News("progress", {"done": now.done, "total": now.total})
                deadline = asyncio.get_running_loop().time() + LOOK
                while (left := deadline - asyncio.get_running_loop().time()) > 0:
                    try:
                        news = await asyncio.wait_for(queue.get(), left)
                    except TimeoutError:
                        break
                    yield news
                    if news.kind == "ended":
                        return

    async def outcome(self, job: Job) -> Outcome:
        """Wait for a job. Raises ApiError where it failed or was cancelled.

        When the waiting itself is cancelled, because the client went away, so is the job.
        """
        files: Mapping[str, bytes] = {}
        try:
            async for news in self.news(job):
                if news.kind == "ended":
                    files = news.data["files"]
        except asyncio.CancelledError:
            await asyncio.shield(run_in_threadpool(self.cancel, job.id))
            raise
        return await run_in_threadpool(self.finished, job.id, files)

    def finished(self, job_id: str, files: Mapping[str, bytes]) -> Outcome:
        """The outcome of a job that is over; what is not in `files` is read from the store. Raises ApiError."""
        job = self.get(job_id)
        if job is None:
            raise errors.not_found("job")
        if job.state == jobs.CANCELLED:
            raise errors.ApiError(499, "The request was cancelled.", code="cancelled")
        if job.error is not None:
            raise errors.ApiError.from_json(job.error)
        assert job.result is not None
        if job.cost is not None:
            tell(**{"x-imagewright-cost": dollars(job.cost)})
        found = {p["id"]: files.get(p["id"]) or self.store.load(p["digest"]) for p in job.result["pictures"]}
        return Outcome(job, found)

    def get(self, job_id: str, owner: str | None = None) -> Job | None:
        """A job as it stands."""
        with self.database.read() as connection:
            return jobs.get(connection, job_id, owner)

    def cancel(self, job_id: str) -> None:
        """End a job as soon as can be."""
        with self.database.write() as connection:
            job = jobs.get(connection, job_id)
            if job is not None and jobs.cancel_waiting(connection, job_id):
                self.gateway.settle(connection, job, CANCELLED)
        if self.worker is not None:
            self.worker.cancel(job_id)
        self.hub.tell(job_id, "cancelled")
