"""OpenAI's Files API, for pictures that edits and conversations refer to by id: /v1/files.

A file is kept as its pixels, a PNG without metadata, until `expires_at`: what comes back from a server of pictures is
never a stranger's bytes. Everybody sees their own files only.
"""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from imagewright.database import Database, metadata
from imagewright.errors import PictureError
from imagewright.pictures import encode
from imagewright.server import errors
from imagewright.server.documents import failures
from imagewright.server.errors import ApiError
from imagewright.server.pictures import CONTENT, file_response
from imagewright.server.security import Caller, Maker
from imagewright.server.settings import DAY, Settings
from imagewright.store import NotFoundError, Row, Store

MAX_NAME = 200  # characters of a file's name
router = APIRouter(prefix="/v1/files", tags=["files"])

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # also of its row among the pictures
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Index("files_of_owner", "owner", "created", "id"),
)


class FileObject(BaseModel):
    """A file as OpenAI's API shows it."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """That something is gone."""

    id: str
    object: str = "file"
    deleted: bool = True


@router.post("", responses=failures(415, 507))
async def upload(
    http: Request,
    caller: Maker,
    file: Annotated[UploadFile, File(description="A PNG, JPEG or WebP picture")],
    purpose: Annotated[Literal["vision", "user_data"], Form()],
) -> FileObject:
    """Keep a picture, to be named by its id."""
    try:
        decoded = await http.app.state.decoder.adecode(await file.read())
    except PictureError as error:
        raise ApiError(400, error.message, error.fix, param="file", code="invalid_image") from error
    return await run_in_threadpool(_keep, http, caller, decoded.image, file.filename or "file", purpose)


def _keep(http: Request, caller: Caller, image: Any, name: str, purpose: str) -> FileObject:
    store: Store = http.app.state.store
    settings: Settings = http.app.state.settings
    data, now = encode(image, "png"), time.time()
    row = Row(
        id=f"file-{secrets.token_urlsafe(15)}",
        digest=store.save(data),
        media_type="image/png",
        width=image.width,
        height=image.height,
        bytes=len(data),
        owner=caller.key_id,
        created=now,
        expires=now + settings.keep_days * DAY,
        kind="input",
    )
    kept = {name: getattr(row, name) for name in ("id", "owner", "created", "expires", "bytes")}
    kept |= {"filename": _plain(name), "purpose": purpose}
    with _database(http).write() as connection:
        store.enter(connection, [row])
        connection.execute(files.insert().values(kept))
    return _shown(kept)


@router.get("", responses=failures(404))
def listed(
    http: Request,
    caller: Maker,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    purpose: str | None = None,
) -> FileList:
    """The caller's files, a page of them behind `after`."""
    query = _own(sa.select(files), caller)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    place = (files.c.created, files.c.id)
    with _database(http).read() as connection:
        if after is not None:
            last = connection.execute(_own(sa.select(*place), caller).where(files.c.id == after)).first()
            if last is None:
                raise errors.not_found("file")
            behind = sa.tuple_(*place) > tuple(last) if order == "asc" else sa.tuple_(*place) < tuple(last)
            query = query.where(behind)
        query = query.order_by(*(column.asc() if order == "asc" else column.desc() for column in place))
        rows = connection.execute(query.limit(limit + 1)).all()
    data = [_shown(row._mapping) for row in rows[:limit]]
    first, last_id = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, first_id=first, last_id=last_id, has_more=len(rows) > limit)


@router.get("/{file_id}", responses=failures(404))
def shown(file_id: str, http: Request, caller: Maker) -> FileObject:
    """What is known of a file."""
    with _database(http).read() as connection:
        return _shown(_row(connection, file_id, caller))


@router.get("/{file_id}/content", response_class=Response, responses=CONTENT | failures(404))
def content(file_id: str, http: Request, caller: Maker) -> Response:
    """The picture, as PNG."""
    with _database(http).read() as connection:
        _row(connection, file_id, caller)
    return file_response(http, _store(http).get(file_id, caller.key_id))


@router.delete("/{file_id}", responses=failures(404))
def delete(file_id: str, http: Request, caller: Maker) -> Deleted:
    """Forget a file."""
    with _database(http).write() as connection:
        _row(connection, file_id, caller)
        connection.execute(files.delete().where(files.c.id == file_id))
    _store(http).forget(file_id, caller.key_id)
    return Deleted(id=file_id)


def content_of(http: Request, file_id: str, caller: Caller, param: str) -> bytes:
    """The bytes of a file, or of a picture made here, of the caller. Raises ApiError."""
    store = _store(http)
    try:
        return store.load(store.get(file_id, caller.key_id).digest)
    except NotFoundError:
        raise ApiError(404, f"There is no file {file_id[:80]!r}.", param=param, code="not_found") from None


def _own(query: Any, caller: Caller) -> Any:
    return query.where(files.c.owner == caller.key_id, files.c.expires > time.time())


def _row(connection: sa.Connection, file_id: str, caller: Caller) -> Any:
    row = connection.execute(_own(sa.select(files), caller).where(files.c.id == file_id)).first()
    if row is None:
        raise errors.not_found("file")
    return row._mapping


def _shown(row: Any) -> FileObject:
    told = {name: row[name] for name in ("id", "bytes", "filename", "purpose")}
    return FileObject(created_at=int(row["created"]), expires_at=int(row["expires"]), **told)


def _plain(name: str) -> str:
    """The last part of a file's name, as databases take it."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(one if one.isprintable() else "_" for one in last)[:MAX_NAME] or "file"


def _database(http: Request) -> Database:
    database: Database = http.app.state.database
    return database


def _store(http: Request) -> Store:
    store: Store = http.app.state.store
    return store
