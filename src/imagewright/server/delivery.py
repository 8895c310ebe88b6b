"""What becomes of a job's work: pictures into the store, then one transaction that enters them, settles the price and
ends the job; and on the way, news of it.

Where the database cannot be reached, an end is tried again until it can, for as long as the job is ours: finished work
is not thrown away because of a lock or a restart of Postgres. A full disk fails the job (507): drawing again would not
make room.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
from PIL import Image

from imagewright.database import Database
from imagewright.pictures import encode
from imagewright.provenance.record import to_json
from imagewright.provenance.seal import seal
from imagewright.request import ImageRequest, ImageResult
from imagewright.server import errors, jobs
from imagewright.server.gateway import Gateway
from imagewright.server.hub import Hub
from imagewright.server.jobs import Job
from imagewright.server.settings import DAY, Settings
from imagewright.server.turns import Made
from imagewright.server.usage import Bill
from imagewright.store import Row, Store, new_id
from imagewright.watch import Stop, Watch

log = logging.getLogger(__name__)
T = TypeVar("T")
TOLD = 1.0  # s between two notes of how far a job is
LONGEST = 5.0  # s between two tries to reach the database


class Delivery:
    """Ends jobs. `closed` is set when no more is tried again."""

    def __init__(self, database: Database, store: Store, gateway: Gateway, settings: Settings, hub: Hub) -> None:
        self.database, self.store, self.gateway, self.settings, self.hub = database, store, gateway, settings, hub
        self.closed = threading.Event()

    def watch(self, job: Job, stop: Stop) -> Watch:
        """Tells of a job on the way, and ends it when `stop` says so."""
        told = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal told
            self.hub.tell(job.id, "progress", done=done, total=total)
            if job.background and time.monotonic() - told > TOLD:
                told = time.monotonic()
                self._note(job, lambda connection: jobs.progress(connection, job, done, total))

        def preview(index: int, image: Image.Image) -> None:
            file = encode(image, job.order.get("output_format", "png"), job.order.get("output_compression", 100))
            self.hub.tell(job.id, "partial", index=index, file=file, size=image.size)
            if job.background or not self.hub.is_heard(job.id):  # others may want to see it
                self._note(
                    job, lambda connection: self.store.enter(connection, [self._partial(job, index, image, file)])
                )

        return Watch(progress=progress, stop=stop, preview=preview, previews=job.previews)

    def deliver(self, job: Job, request: ImageRequest, done: ImageResult | Exception) -> None:
        """End a job with what was made of it."""
        try:
            if isinstance(done, Exception):
                raise done
            relayed = job.plan is not None and job.plan["relay"]
            rows, files = self._passed_on(job, done) if relayed else self._keep(job, done)
            result = _result(done, rows)
            if isinstance(done, Made):
                result, rows, bill = result | done.told, [*rows, *done.rows], done.bill
            else:
                bill = self.gateway.bill(request, done)

            def end(connection: sa.Connection) -> bool:
                if not jobs.finish(connection, job, jobs.DONE, result=result, cost=bill.cost):
                    return False
                if not relayed:
                    self.store.enter(connection, rows)
                self.gateway.settle(connection, job, bill)
                return True

            if self.persist(end):
                ended = replace(job, state=jobs.DONE, result=result, cost=bill.cost, finished=time.time())
                self.hub.tell(job.id, "ended", job=ended, files=files)
        except Exception as error:
            self.failed(job, error)

    def failed(self, job: Job, error: Exception) -> None:
        """End a job for which there are no pictures."""
        told = errors.of(error)
        errors.note(log, f"job {job.id}", error)
        if self.persist(lambda connection: self.end(connection, job, told)):
            self.hub.tell(job.id, "ended", job=as_ended(job, told), files={})

    def end(self, connection: sa.Connection, job: Job, error: errors.ApiError) -> bool:
        """End a running job with an error, in the caller's transaction; False if it was not ours to end."""
        if not jobs.finish(connection, job, _state(error), error=error.to_json(), cost=0):
            return False
        self.gateway.settle(connection, job, Bill(status=error.status, error=error.code))
        return True

    def persist(self, act: Callable[[sa.Connection], T]) -> T:
        """`act` in a transaction, tried again for as long as the database cannot be reached."""
        pause = 0.1
        while True:
            try:
                return self.database.together(act)
            except errors.UNREACHABLE as error:
                if self.closed.wait(pause):
                    raise
                log.warning("the database cannot be reached (%s); trying again", error)
                pause = min(LONGEST, 2 * pause)

    def _note(self, job: Job, act: Callable[[sa.Connection], None]) -> None:
        """Keep something that is not worth failing for."""
        try:
            with self.database.write() as connection:
                act(connection)
        except Exception as error:
            log.warning("of job %s, something on the way could not be kept: %s", job.id, error)

    def _partial(self, job: Job, index: int, image: Image.Image, file: bytes) -> Row:
        """A preview for those who listen in other processes, or later."""
        return Row(
            id=new_id(),
            digest=self.store.save(file),
            media_type=_media_type(job.order.get("output_format", "png")),
            width=image.width,
            height=image.height,
            bytes=len(file),
            owner=job.owner,
            created=time.time(),
            expires=time.time() + self.settings.url_seconds,
            kind="partial",
            job=job.id,
            record=json.dumps({"index": index}),
        )

    def _keep(self, job: Job, result: ImageResult) -> tuple[list[Row], dict[str, bytes]]:
        rows, files = [], {}
        for index, (image, record) in enumerate(zip(result.images, result.records, strict=True)):
            turn = result if isinstance(result, Made) else None
            data = seal(image, record, parents=turn.sources[index] if turn else ()).data
            row = Row(
                id=turn.ids[index] if turn else new_id(),
                parents=turn.parents[index] if turn else (),
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

    def _passed_on(self, job: Job, result: ImageResult) -> tuple[list[Row], dict[str, bytes]]:
        """A hosted service's own files, for who waits here; they are not kept."""
        rows, files = [], {}
        for image in result.images:
            data, media_type = image.info["original"]
            width, height = image.size
            row = Row(
                id=new_id(),
                digest="",
                media_type=media_type,
                width=width,
                height=height,
                bytes=len(data),
                owner=job.owner,
                created=time.time(),
            )
            rows.append(row)
            files[row.id] = data
        return rows, files


def as_ended(job: Job, error: errors.ApiError) -> Job:
    """`job` as it is after it ended with an error."""
    return replace(job, state=_state(error), error=error.to_json(), cost=0, finished=time.time())


def _state(error: errors.ApiError) -> str:
    return jobs.CANCELLED if error.code == "cancelled" else jobs.FAILED


def _result(done: ImageResult, rows: list[Row]) -> dict[str, Any]:
    return {
        "pictures": [
            {
                "id": row.id,
                "digest": row.digest,
                "media_type": row.media_type,
                "size": [row.width, row.height],
                "transparent": _sees_through(image) if row.digest else image.has_transparency_data,
            }
            for row, image in zip(rows, done.images, strict=True)
        ],
        "records": [dict(record) for record in done.records],
        "adjustments": [asdict(one) for one in done.adjustments],
        "model": done.model,
        "engine": done.engine,
        "seconds": done.seconds,
    }


def _sees_through(image: Image.Image) -> bool:
    """Whether any pixel of a picture is transparent."""
    return image.has_transparency_data and bool(np.asarray(image.convert("RGBA"))[..., 3].min() < 255)


def _media_type(output_format: str) -> str:
    return "image/svg+xml" if output_format == "svg" else f"image/{output_format}"
