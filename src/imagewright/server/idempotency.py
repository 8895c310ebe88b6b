"""Idempotency-Key: a request that is sent again within 24 hours makes nothing twice and gets the same answer.

A route that accepts orders takes three steps:

    once = await idempotency.of(request)                        # None without the header
    job = await desk.submit(caller, asked, ..., once=once)      # the new job, or the one of the first request
    outcome = await desk.outcome(job)                           # as ever: a job that is over is there at once

and builds its answer from the job and its outcome alone (`created` from `job.created`, nothing random), so that the
answer of a repeated request has the same bytes, also after a restart, and also where the first answer never reached the
client. While the first request is at work a second one gets 409 with Retry-After (one that asks for a job in the
background gets the job), and the same key with another body gets 422. Keys are the caller's own: callers never meet.

The row is entered in the transaction that accepts the job: of any number of requests at the same time, in any number of
processes, one gets a job. Bodies are compared by what they hold: the values of JSON, the fields and files of a form.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from fastapi import Request
from starlette.datastructures import UploadFile

from imagewright.database import metadata
from imagewright.server import jobs
from imagewright.server.errors import ApiError
from imagewright.server.jobs import Job

HEADER = "idempotency-key"
KEPT = 24 * 3600.0  # seconds
MAX_LENGTH = 255

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(MAX_LENGTH), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),  # of the body
    sa.Column("job", sa.String(64), nullable=False),
    sa.Column("created", sa.Double, nullable=False, index=True),
)


@dataclass(frozen=True)
class Once:
    """The client's own name for a request, and a hash of what it asks for."""

    name: str
    digest: str


async def of(request: Request) -> Once | None:
    """What the header says, if it is there; after the body was read. Raises ApiError (400)."""
    name = request.headers.get(HEADER)
    if name is None:
        return None
    if not 1 <= len(name) <= MAX_LENGTH or not name.isascii() or not name.isprintable():
        raise ApiError(400, f"An Idempotency-Key has 1 to {MAX_LENGTH} plain characters.", "Use a UUID.")
    found = hashlib.sha256(f"{request.method} {request.url.path}\n".encode())
    if request.headers.get("content-type", "").startswith(("multipart/", "application/x-www-form-urlencoded")):
        await _add_form(found, request)
    else:
        found.update(_canonical(await request.body()))
    return Once(name, found.hexdigest())


def earlier(connection: sa.Connection, insert: Any, once: Once, job: Job, now: float | None = None) -> Job | None:
    """Note that `job` is what `once` stands for, in the transaction that enters it: None. Or the job that it already
    stands for: enter nothing then. Raises ApiError (409 while that one is at work, 422 for another body).

    `insert` is `database.insert`.
    """
    now = time.time() if now is None else now
    connection.execute(idempotency.delete().where(idempotency.c.created < now - KEPT))
    row = {"owner": job.owner, "name": once.name, "digest": once.digest, "job": job.id, "created": now}
    entered = insert(idempotency).values(row).on_conflict_do_nothing().returning(idempotency.c.job)
    if connection.execute(entered).first() is not None:
        return None
    known = idempotency.c.owner == job.owner, idempotency.c.name == once.name
    found = connection.execute(sa.select(idempotency).where(*known)).one()
    if found.digest != once.digest:
        raise ApiError(
            422, "This Idempotency-Key was sent with another body.", "Use a new key.",
            code="idempotency_key_reused", retry=False,
        )  # fmt: skip
    first = jobs.get(connection, found.job)
    if first is None:
        raise ApiError(409, "The first request's job was removed.", "Use a new key.", code="gone", retry=False)
    if first.is_open and not first.background:
        raise ApiError(
            409, "The first request with this Idempotency-Key is still at work.", "Try again in a second.",
            code="idempotency_key_in_use", retry_after=1,
        )  # fmt: skip
    return first


def _canonical(body: bytes) -> bytes:
    try:
        return json.dumps(json.loads(body), sort_keys=True, separators=(",", ":")).encode()
    except ValueError:
        return body


async def _add_form(found: Any, request: Request) -> None:
    form = await request.form()
    for name, value in sorted(form.multi_items(), key=lambda item: item[0]):
        found.update(f"\n{len(name)} {name} ".encode())
        if isinstance(value, UploadFile):
            await value.seek(0)
            data = await value.read()
            await value.seek(0)
        else:
            data = value.encode()
        found.update(f"{len(data)}\n".encode())
        found.update(data)
