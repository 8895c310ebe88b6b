"""Takes jobs from the queue and does them: in the server's process, or in as many others as wanted.

A pool for work on this machine's cores, one for work that hosted services do. A job's pictures are written to the
store first; then one transaction enters them, settles the price and ends the job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from imagewright.database import Database
from imagewright.pictures import encode
from imagewright.provenance.record import to_json
from imagewright.provenance.seal import seal
from imagewright.request import ImageRequest, ImageResult
from imagewright.server import errors, jobs, orders
from imagewright.server.gateway import Gateway
from imagewright.server.hub import Hub
from imagewright.server.jobs import Job
from imagewright.server.settings import DAY, Settings
from imagewright.server.usage import Bill
from imagewright.store import Row, Store, new_id
from imagewright.watch import Stop, Watch

log = logging.getLogger(__name__)
POLL = 0.25  # seconds between two looks for work that another process accepted
HOSTED = 32  # calls to hosted services at once
TOGETHER = 8  # jobs of one lane that are drawn together, at most


@dataclass
class _Pool:
    name: str
    slots: int
    together: int
    free: threading.Semaphore = field(init=False)
    work: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.free = threading.Semaphore(self.slots)


class Worker:
    """Does jobs in threads of its own until it is stopped."""

    def __init__(self, database: Database, store: Store, gateway: Gateway, settings: Settings, hub: Hub) -> None:
        self.database, self.store, self.gateway, self.settings, self.hub = database, store, gateway, settings, hub
        self.id = jobs.worker_id()
        self._pools = [
            _Pool("local", 1, TOGETHER if settings.coalesce else 1),
            _Pool("hosted", HOSTED, 1),
        ]
        self._stops: dict[str, Stop] = {}
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._hands = ThreadPoolExecutor(sum(pool.slots for pool in self._pools), thread_name_prefix="work")

    def start(self) -> None:
        """Begin to take jobs."""
        self._threads = [threading.Thread(target=self._beat, daemon=True)]
        self._threads += [threading.Thread(target=self._dispatch, args=(pool,), daemon=True) for pool in self._pools]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """There is new work."""
        for pool in self._pools:
            pool.work.set()

    def cancel(self, job_id: str) -> None:
        """Stop a job, if it is being done here."""
        if stop := self._stops.get(job_id):
            stop.set()

    def stop(self, seconds: float) -> bool:
        """Take no more jobs and wait for those begun; what is not done after `seconds` is stopped and put back.

        Whether all was done.
        """
        self._ending.set()
        self.wake()
        until = time.monotonic() + seconds
        while self._stops and time.monotonic() < until:
            time.sleep(0.02)
        left = list(self._stops)
        with self.database.write() as connection:
            jobs.put_back(connection, self.id)
        for job_id in left:
            self.cancel(job_id)
        self._hands.shutdown(wait=not left, cancel_futures=True)
        for thread in self._threads:
            thread.join(timeout=2)
        return not left

    def _dispatch(self, pool: _Pool) -> None:
        while not self._ending.is_set():
            pool.free.acquire()
            try:
                batch = self._claim(pool)
            except Exception:
                log.exception("the queue cannot be read")
                batch = []
            if batch:
                self._hands.submit(self._do, pool, batch)
                continue
            pool.free.release()
            pool.work.wait(POLL)
            pool.work.clear()

    def _claim(self, pool: _Pool) -> list[Job]:
        if self._ending.is_set():
            return []
        batch = jobs.claim(self.database, self.id, pool.name, self.settings.lease, together=pool.together)
        for job in batch:
            self._stops[job.id] = Stop()
        return batch

    def _beat(self) -> None:
        while not self._ending.wait(self.settings.lease / 3):
            try:
                for job_id in jobs.beat(self.database, self.id, self.settings.lease):
                    self.cancel(job_id)
                self.reclaim()
            except Exception:
                log.exception("the leases cannot be renewed")

    def reclaim(self) -> None:
        """Put back what workers that died had begun."""
        with self.database.write() as connection:
            again, given_up = jobs.reclaim(connection)
            for job in given_up:
                error = errors.ApiError(500, "The work was begun several times and never ended.", type="server_error")
                if jobs.finish(connection, job, jobs.FAILED, error=error.to_json(), cost=0):
                    self.gateway.settle(connection, job, Bill(status=error.status, error=error.code))
        if again:
            self.wake()

    def _do(self, pool: _Pool, batch: Sequence[Job]) -> None:
        try:
            work = []
            for job in batch:
                try:
                    work.append((job, orders.from_json(job.order, self.store.load), self._watch(job)))
                except Exception as error:
                    self._failed(job, error)
            for (job, request, _), done in zip(work, self.gateway.make(work), strict=True):
                self._deliver(job, request, done)
        except Exception:
            log.exception("a job could not be ended")
        finally:
            for job in batch:
                self._stops.pop(job.id, None)
            pool.free.release()
            pool.work.set()

    def _watch(self, job: Job) -> Watch:
        told = 0.0

        def progress(done: int, total: int) -> None:
            nonlocal told
            self.hub.tell(job.id, "progress", done=done, total=total)
            if job.background and time.monotonic() - told > 1:
                told = time.monotonic()
                with self.database.write() as connection:
                    jobs.progress(connection, job, done, total)

        def preview(index: int, image: Image.Image) -> None:
            self.hub.tell(job.id, "partial", index=index, file=_preview(image, job.order))

        return Watch(progress=progress, stop=self._stops[job.id], preview=preview, previews=job.previews)

    def _deliver(self, job: Job, request: ImageRequest, done: ImageResult | Exception) -> None:
        try:
            if isinstance(done, Exception):
                raise done
            rows, files = self._keep(job, done)
            result = {
                "pictures": [
                    {
                        "id": row.id,
                        "digest": row.digest,
                        "media_type": row.media_type,
                        "size": [row.width, row.height],
                        "transparent": _sees_through(image),
                    }
                    for row, image in zip(rows, done.images, strict=True)
                ],
                "records": [dict(record) for record in done.records],
                "adjustments": [asdict(one) for one in done.adjustments],
                "model": done.model,
                "engine": done.engine,
                "seconds": done.seconds,
            }
            bill = self.gateway.bill(request, done)
            with self.database.write() as connection:
                if not jobs.finish(connection, job, jobs.DONE, result=result, cost=bill.cost):
                    return
                self.store.enter(connection, rows)
                self.gateway.settle(connection, job, bill)
            self.hub.tell(job.id, "ended", files=files)
        except Exception as error:
            self._failed(job, error)

    def _keep(self, job: Job, result: ImageResult) -> tuple[list[Row], dict[str, bytes]]:
        rows, files = [], {}
        for image, record in zip(result.images, result.records, strict=True):
            data = seal(image, record).data
            row = Row(
                id=new_id(),
                created=time.time(),
                digest=self.store.save(data),
                media_type=_media_type(record["output_format"]),
                width=image.width,
                height=image.height,
                bytes=len(data),
                owner=job.owner,
                model=result.model,
                engine=result.engine,
                prompt=record["prompt"],
                seed=record["seed"],
                expires=time.time() + self.settings.keep_days * DAY,
                job=job.id,
                record=to_json(record),
            )
            rows.append(row)
            files[row.id] = data
        return rows, files

    def _failed(self, job: Job, error: Exception) -> None:
        told = errors.of(error)
        if told.status >= 500:
            log.error("job %s failed", job.id, exc_info=error)
        state = jobs.CANCELLED if told.code == "cancelled" else jobs.FAILED
        with self.database.write() as connection:
            if jobs.finish(connection, job, state, error=told.to_json(), cost=0):
                self.gateway.settle(connection, job, Bill(status=told.status, error=told.code))
        self.hub.tell(job.id, "ended", files={})


def _preview(image: Image.Image, order: Mapping[str, Any]) -> bytes:
    """A picture on the way, in the format that its order asks for."""
    return encode(image, order.get("output_format", "png"), order.get("output_compression", 100))


def _sees_through(image: Image.Image) -> bool:
    """Whether any pixel of a picture is transparent."""
    return image.has_transparency_data and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)


def _media_type(output_format: str) -> str:
    return "image/svg+xml" if output_format == "svg" else f"image/{output_format}"
