"""Pictures by their URL, and the caller's own pictures: searched, fetched, deleted.

Only what this server encoded itself is served, as PNG, JPEG or WebP, with headers under which no browser takes it for
anything else. An SVG is never served: it comes as base64 in the answer that made it.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from imagewright.server import errors
from imagewright.server.documents import failures
from imagewright.server.errors import ApiError
from imagewright.server.links import Links
from imagewright.server.security import Maker, Public
from imagewright.store import NotFoundError, Row, Store

SERVED = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {"content": {media_type: {} for media_type in SERVED}},
    304: {"description": "As it was"},
}
CURSOR = r"^[0-9]{1,12}(\.[0-9]{1,9})?_[A-Za-z0-9_-]{1,64}$"
router = APIRouter(prefix="/v1", tags=["pictures"])


class Shown(BaseModel):
    """A picture that was made here. `url` works for an hour."""

    id: str
    object: Literal["picture"] = "picture"
    created_at: int
    expires_at: int | None
    model: str
    prompt: str
    seed: int | None
    score: float | None
    width: int
    height: int
    bytes: int
    media_type: str
    job: str | None
    url: str | None
    record: dict[str, Any]


class Page(BaseModel):
    """Pictures, the newest first; `next` is the cursor of the page behind, null on the last one."""

    object: Literal["list"] = "list"
    data: list[Shown]
    next: str | None
    has_more: bool


class Gone(BaseModel):
    """That a picture is gone."""

    id: str
    object: Literal["picture"] = "picture"
    deleted: bool = True


@router.get("/images/files/{name}", dependencies=[Public], response_class=Response, responses=CONTENT | failures(404))
def by_url(name: str, http: Request) -> Response:
    """A picture by the URL that an answer gave, for as long as that works; no key is needed."""
    links: Links = http.app.state.links
    found = links.read(name)
    if found is None:
        raise errors.not_found("picture, or its URL works no more")
    picture, until = found
    return file_response(http, _row(http, picture, None), until)


router.add_api_route(
    "/images/files/{name}", by_url, methods=["HEAD"], dependencies=[Public], include_in_schema=False
)  # fmt: skip


@router.get("/pictures", responses=failures())
def search(
    http: Request,
    caller: Maker,
    prompt: Annotated[str | None, Query(max_length=1000, description="Each word begins a word of the prompt")] = None,
    model: str | None = None,
    seed: Annotated[int | None, Query(ge=0, lt=2**32)] = None,
    since: Annotated[float | None, Query(description="Made then or later, in seconds since 1970")] = None,
    until: Annotated[float | None, Query(description="Made before")] = None,
    min_score: Annotated[float | None, Query(ge=0, le=1)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(pattern=CURSOR, description="`next` of the page before")] = None,
) -> Page:
    """The caller's pictures, the newest first."""
    rows, cursor = _store(http).search(
        caller.key_id,
        prompt=prompt,
        model=model,
        seed=seed,
        since=since,
        until=until,
        min_score=min_score,
        limit=limit,
        after=after,
    )
    return Page(data=[_shown(http, row) for row in rows], next=cursor, has_more=cursor is not None)


@router.get("/pictures/{picture_id}", responses=failures(404))
def shown(picture_id: str, http: Request, caller: Maker) -> Shown:
    """What is known of a picture of the caller."""
    return _shown(http, _row(http, picture_id, caller.key_id))


@router.get("/pictures/{picture_id}/content", response_class=Response, responses=CONTENT | failures(404))
def content(picture_id: str, http: Request, caller: Maker) -> Response:
    """The file of a picture of the caller."""
    return file_response(http, _row(http, picture_id, caller.key_id))


@router.delete("/pictures/{picture_id}", responses=failures(404))
def delete(picture_id: str, http: Request, caller: Maker) -> Gone:
    """Forget a picture of the caller; its URLs end with it."""
    _row(http, picture_id, caller.key_id)
    _store(http).forget(picture_id, caller.key_id)
    return Gone(id=picture_id)


def file_response(http: Request, row: Row, until: int | None = None) -> Response:
    """The file of a row of the store. `until`: when its URL ends, in seconds since 1970."""
    if row.media_type not in SERVED:
        raise ApiError(404, "Only PNG, JPEG and WebP are served.", "An SVG comes in the answer that made it.")
    kept = "no-cache" if until is None else f"max-age={max(0, until - int(time.time()))}"
    headers = {
        "etag": f'"{row.digest}"',
        "cache-control": f"private, {kept}",
        "content-disposition": f'inline; filename="{row.id}.{SERVED[row.media_type]}"',
        "content-security-policy": "sandbox; default-src 'none'",
        "cross-origin-resource-policy": "cross-origin",
    }
    if http.headers.get("if-none-match") in (headers["etag"], "*"):
        return Response(status_code=304, headers=headers)
    if http.method == "HEAD":
        return Response(headers=headers | {"content-length": str(row.bytes)}, media_type=row.media_type)
    return Response(_store(http).load(row.digest), headers=headers, media_type=row.media_type)


def _row(http: Request, picture: str, owner: str | None) -> Row:
    try:
        row = _store(http).get(picture, owner)
    except NotFoundError:
        raise errors.not_found("picture") from None
    if row.kind != "output":
        raise errors.not_found("picture")
    return row


def _shown(http: Request, row: Row) -> Shown:
    links: Links = http.app.state.links
    return Shown(
        **{name: getattr(row, name) for name in ("id", "prompt", "seed", "score", "width", "height", "bytes")},
        created_at=int(row.created),
        expires_at=None if row.expires is None else int(row.expires),
        model=f"{row.engine}/{row.model}",
        media_type=row.media_type,
        job=row.job,
        url=links.url(http, row.id) if row.media_type in SERVED else None,
        record=json.loads(row.record),
    )


def _store(http: Request) -> Store:
    store: Store = http.app.state.store
    return store
