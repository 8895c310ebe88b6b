"""Jobs over HTTP: give an order and look later, follow it, list, cancel. A client sees its own, an operator all.

`GET /v1/jobs/{id}/events` sends what happens as it comes (text/event-stream): `job.progress` (done, total),
`job.partial_image`, and at the end `job.completed`, `job.failed` or `job.cancelled` with the whole job. Who joins late
gets what there is so far; who comes again with Last-Event-ID gets no step and no picture twice.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from imagewright.server import answers, brought, errors, images, jobs, wire
from imagewright.server.desk import Desk
from imagewright.server.documents import failures
from imagewright.server.errors import ApiError
from imagewright.server.jobs import Job
from imagewright.server.security import Caller, Maker
from imagewright.server.streaming import Event, EventStream
from imagewright.server.wire import Generation, JsonEdit

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
MAX_LIMIT = 100
MAX_PRIORITY = 10
_ID = re.compile(r"job_[A-Za-z0-9_-]{1,64}")
_SEEN = re.compile(r"(\d{1,9})\.(\d{1,3})")
Json = dict[str, Any]


class NewJob(BaseModel):
    """An order to be done in the background: `request` is the body that the route of its type takes, as JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["image.generation", "image.edit"]
    request: dict[str, Any]
    priority: int = Field(
        default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="The highest come first; above 0: operators only."
    )


class Page(BaseModel):
    """Which jobs: behind the one with the id `after`, the newest first."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"] | None = None
    limit: int = Field(default=20, ge=1, le=MAX_LIMIT)
    after: str | None = None


@router.post("", status_code=202, responses=failures(404, 409), response_class=Response)
async def submit(body: NewJob, http: Request, caller: Maker) -> Response:
    """Accept an order and answer at once with its job; it is done even if this server dies."""
    if body.priority > 0 and not caller.is_admin:
        raise ApiError(
            403, "Only an operator's key may put a job before others.", "Use a priority of 0 or less.",
            param="priority", code="insufficient_scope",
        )  # fmt: skip
    try:
        if body.type == "image.edit":
            given = await brought.json_edit(http, caller, wire.read(JsonEdit, body.request))
            return await images.edited(http, caller, given, background=True, priority=body.priority)
        wanted = wire.read(Generation, body.request)
        return await images.generated(http, caller, wanted, background=True, priority=body.priority)
    except RequestValidationError as error:
        raise RequestValidationError(
            [{**one, "loc": ("body", "request", *one["loc"][1:])} for one in error.errors()]
        ) from error
    except ApiError as error:
        raise _inside(error) from error


@router.get("", responses=failures(404))
async def listed(http: Request, caller: Maker, page: Annotated[Page, Query()]) -> Json:
    """Jobs, the newest first."""
    after = None if page.after is None else await _job(http, caller, page.after)
    states = [state for state, status in answers.STATUSES.items() if status == page.status]
    found = await run_in_threadpool(_listed, http, caller, states, page.limit + 1, after)
    shown = [answers.job_object(job) for job in found[: page.limit]]
    ends = {"first_id": shown[0]["id"], "last_id": shown[-1]["id"]} if shown else {"first_id": None, "last_id": None}
    return {"object": "list", "data": shown, **ends, "has_more": len(found) > page.limit}


@router.get("/{job_id}", responses=failures(404), response_class=Response)
async def one(job_id: str, http: Request, caller: Maker) -> Response:
    """A job as it stands; when it is completed, `result` is what the Images API answers."""
    job = await _job(http, caller, job_id)
    return await run_in_threadpool(answers.whole_job, http, job)


@router.post("/{job_id}/cancel", responses=failures(404), response_class=Response)
async def cancel(job_id: str, http: Request, caller: Maker) -> Response:
    """End a job as soon as can be. One that has ended stays as it is."""
    job = await _job(http, caller, job_id)
    await run_in_threadpool(_desk(http).cancel, job.id)
    return await run_in_threadpool(answers.whole_job, http, await _job(http, caller, job_id))


@router.get(
    "/{job_id}/events",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {}}}, **failures(404)},
)
async def events(job_id: str, http: Request, caller: Maker) -> Response:
    """What happens to a job, as it happens."""
    job = await _job(http, caller, job_id)
    seen = _SEEN.fullmatch(http.headers.get("last-event-id", ""))
    return EventStream(_events(http, job, *map(int, seen.groups() if seen else (0, 0))))


async def _events(http: Request, job: Job, done: int, shown: int) -> AsyncGenerator[Event]:
    async with aclosing(_desk(http).news(job)) as coming:
        async for news in coming:
            data = news.data
            if news.kind == "progress" and data["done"] > done:
                done = data["done"]
                yield _event("job.progress", {"id": job.id, "done": done, "total": data["total"]}, done, shown)
            elif news.kind == "partial" and data["index"] >= shown:
                shown = data["index"] + 1
                yield _event("job.partial_image", {"id": job.id, **answers.partial(job, data)}, done, shown)
            elif news.kind == "ended":
                whole = await run_in_threadpool(answers.job_object, data["job"], http)
                yield _event(f"job.{whole['status']}", {"job": whole}, done, shown)
            elif news.kind == "closing":  # the client will come again
                return


def _event(name: str, data: Json, done: int, shown: int) -> Event:
    return name, {"type": name, **data}, f"{done}.{shown}"


async def _job(http: Request, caller: Caller, job_id: str) -> Job:
    owner = None if caller.is_admin else caller.key_id
    job = await run_in_threadpool(_desk(http).get, job_id, owner) if _ID.fullmatch(job_id) else None
    if job is None:
        raise errors.not_found("job")
    return job


def _listed(http: Request, caller: Caller, states: list[str], limit: int, after: Job | None) -> list[Job]:
    owner = None if caller.is_admin else caller.key_id
    with http.app.state.database.read() as connection:
        return jobs.listed(connection, owner, states=states, limit=limit, after=after)


def _desk(http: Request) -> Desk:
    desk: Desk = http.app.state.desk
    return desk


def _inside(error: ApiError) -> ApiError:
    """An error of the request inside the body: its parameter's name says where it is."""
    if error.status == 400 and error.param is not None:
        error.param = f"request.{error.param}"
    return error
