"""The server's pictures: their bytes by content hash in a folder (or at an fsspec URL), their rows in the database.

The order keeps a row from ever being without its file, whatever is killed when: `save` writes the bytes first, `enter`
adds the row inside the caller's own transaction, and `sweep` takes rows before files. A file without a row is kept for
an hour, so that a picture between the two is safe; `enter` looks for the file all the same, under a lock that `sweep`
takes too. What shall outlive the hour (also the pictures that a waiting job brings along) needs a row.

A search finds pictures whose prompt has words beginning with each of the given words, newest first, through FTS5 on
SQLite and a GIN index on Postgres; both index the words that `_words` finds, so that both answer alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from datetime import UTC
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from imagewright.database import Database, metadata
from imagewright.errors import ImagewrightError, MissingExtraError, OutputError, RequestError
from imagewright.pictures import save_atomic, sync_folder

GRACE = 3600.0  # s that a file without a row is kept
MAX_LIMIT = 1000  # rows of one search
MAX_WORDS = 64  # of one search
Kind = Literal["output", "input", "partial"]

_RENAMED = ("sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs", "file")  # where a file shows while it is written; an
# object store shows it whole or not at all, and its "move" would only be a second copy
_LOCK = 7236946  # of Postgres, shared by those who enter, alone for who sweeps
_BATCH = 200  # files that are swept under one lock
_MAX_WORD = 64  # characters
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CJK = "\u3040-\u30ff\u3400-\u9fff"  # written without blanks: each character is a word
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")

pictures = sa.Table(
    "pictures",
    metadata,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("digest", sa.String(64), nullable=False, index=True),
    sa.Column("media_type", sa.String(32), nullable=False),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("engine", sa.Text, nullable=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, index=True),
    sa.Column("score", sa.Double),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("parents", sa.Text, nullable=False),
    sa.Column("job", sa.String(64), index=True),
    sa.Column("record", sa.Text, nullable=False),
    sa.Column("words", sa.Text, nullable=False),
    sa.Index("pictures_by_owner", "owner", "created", "id"),
    sa.Index("pictures_by_time", "created", "id"),
)
_ends = pictures.c.expires.is_not(None)
sa.Index("pictures_by_end", pictures.c.expires, sqlite_where=_ends, postgresql_where=_ends)
_lexemes = sa.func.array_to_tsvector(sa.func.string_to_array(pictures.c.words, sa.literal_column("' '")))
sa.Index("pictures_by_word", _lexemes, postgresql_using="gin").ddl_if(dialect="postgresql")
for _statement in (
    """CREATE VIRTUAL TABLE picture_words USING fts5(
        words, content=pictures, content_rowid=number, tokenize=ascii, detail=none)""",
    """CREATE TRIGGER picture_words_in AFTER INSERT ON pictures BEGIN
        INSERT INTO picture_words(rowid, words) VALUES (new.number, new.words); END""",
    """CREATE TRIGGER picture_words_out AFTER DELETE ON pictures BEGIN
        INSERT INTO picture_words(picture_words, rowid, words) VALUES ('delete', old.number, old.words); END""",
):
    sa.event.listen(pictures, "after_create", sa.DDL(_statement).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]


class NotFoundError(RequestError):
    """No such picture, or not for this owner: the two are not told apart."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one picture.

    `id` is opaque (`new_id`), `digest` the sha256 of its file, `owner` the id of a key, `created` and `expires` seconds
    since 1970 (None: kept), `score` 0-1 where a judge gave one, `parents` the ids of the pictures that it was made
    from, `job` the id of the job that made it, `record` its provenance as JSON text.
    """

    id: str
    digest: str
    media_type: str
    width: int
    height: int
    bytes: int
    owner: str
    created: float
    model: str = ""
    engine: str = ""
    prompt: str = ""
    seed: int | None = None
    score: float | None = None
    expires: float | None = None
    kind: Kind = "output"
    parents: tuple[str, ...] = ()
    job: str | None = None
    record: str = "{}"

    @property
    def cursor(self) -> str:
        """What `Store.search` takes as `after` to go on behind this row."""
        return f"{self.created!r}_{self.id}"


_COLUMNS = [pictures.c[field.name] for field in fields(Row)]


def new_id() -> str:
    """A picture's id that nobody can guess: 120 random bits."""
    return f"img_{secrets.token_urlsafe(15)}"


class Store:
    """Pictures at `folder`: a path, or an fsspec URL such as s3://bucket/pictures. Raises OutputError."""

    def __init__(self, database: Database, folder: str, clock: Callable[[], float] = time.time) -> None:
        self.database, self._clock = database, clock
        local = folder.removeprefix("file://")
        self._files: _Files = _Remote.at(folder) if "://" in local or "::" in local else _Folder(Path(local))

    def save(self, data: bytes) -> str:
        """Keep the bytes of a picture; returns their sha256. Before the transaction that enters its row.

        What is there already is not written again. Raises OutputError, and leaves no part of a file.
        """
        digest = hashlib.sha256(data).hexdigest()
        self._files.write(digest, data)
        return digest

    def load(self, digest: str) -> bytes:
        """The bytes of a picture. Raises NotFoundError, or OutputError where they are not what was saved."""
        if not _DIGEST.fullmatch(digest):
            raise _not_found(digest)
        data = self._files.read(digest)
        if hashlib.sha256(data).hexdigest() != digest:
            raise OutputError(f"The file of picture {digest[:12]} is damaged.", "Restore the folder from a backup.")
        return data

    def enter(self, connection: sa.Connection, rows: Sequence[Row]) -> None:
        """Add the rows of saved pictures, inside the caller's transaction (of `Database.write`).

        Raises OutputError where a file is not there: it was saved more than an hour ago and swept; save it again.
        """
        if not rows:
            return
        self._lock(connection, shared=True)
        for digest in {row.digest for row in rows}:
            if not self._files.exists(digest):
                raise OutputError(f"Picture {digest[:12]} has no file any more.", "Save it again.")
        connection.execute(pictures.insert(), [_to_columns(row) for row in rows])

    def get(self, id: str, owner: str | None) -> Row:
        """The row of a picture of `owner` (None: of anybody). Raises NotFoundError, also where it has expired."""
        with self.database.read() as connection:
            found = connection.execute(sa.select(*_COLUMNS).where(*self._visible(owner), pictures.c.id == id)).first()
        if found is None:
            raise _not_found(id)
        return _to_row(found)

    def of_job(self, job: str, connection: sa.Connection | None = None) -> list[Row]:
        """All that a job has entered, in that order."""
        query = sa.select(*_COLUMNS).where(*self._visible(None), pictures.c.job == job).order_by(pictures.c.number)
        with self._reading(connection) as reader:
            return [_to_row(found) for found in reader.execute(query)]

    def forget(self, id: str, owner: str | None) -> None:
        """Take a picture's row away; its file goes with a later `sweep`. Raises NotFoundError."""
        with self.database.write() as connection:
            query = pictures.delete().where(*self._visible(owner), pictures.c.id == id)
            if not connection.execute(query).rowcount:
                raise _not_found(id)

    def search(
        self,
        owner: str | None,
        *,
        prompt: str | None = None,
        model: str | None = None,
        seed: int | None = None,
        since: float | None = None,
        until: float | None = None,
        min_score: float | None = None,
        kinds: Sequence[Kind] = ("output",),
        limit: int = 20,
        after: str | None = None,
        connection: sa.Connection | None = None,
    ) -> tuple[list[Row], str | None]:
        """Pictures of `owner` (None: of everybody), newest first, and the cursor of the next page (None: no more).

        `prompt`: each of its words begins a word of the picture's; `since` <= created < `until`. Raises RequestError.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise RequestError(f"The limit is {limit}.", f"Use 1 to {MAX_LIMIT}.")
        columns = pictures.c
        conditions = [*self._visible(owner), columns.kind.in_(kinds)]
        conditions += [] if prompt is None else [self._with_words(prompt)]
        conditions += [] if model is None else [columns.model == model]
        conditions += [] if seed is None else [columns.seed == seed]
        conditions += [] if since is None else [columns.created >= since]
        conditions += [] if until is None else [columns.created < until]
        conditions += [] if min_score is None else [columns.score >= min_score]
        conditions += [] if after is None else [sa.tuple_(columns.created, columns.id) < _place(after)]
        newest = (columns.created.desc(), columns.id.desc())
        query = sa.select(*_COLUMNS).where(*conditions).order_by(*newest).limit(limit + 1)
        with self._reading(connection) as reader:
            rows = [_to_row(found) for found in reader.execute(query)]
        return rows[:limit], rows[limit - 1].cursor if len(rows) > limit else None

    def sweep(self) -> tuple[int, int]:
        """Take away expired rows, and files that have had no row for an hour; returns how many of each."""
        with self.database.write() as connection:
            expired = connection.execute(pictures.delete().where(pictures.c.expires <= self._clock())).rowcount
        before = self._clock() - GRACE
        files = self._files.older(before)
        removed = 0
        while batch := list(islice(files, _BATCH)):
            with self.database.read() as connection:
                unused = _unused(connection, batch)
            if unused:
                removed += self._remove(unused, before)
        return expired, removed

    def _remove(self, digests: Sequence[str], before: float) -> int:
        with self.database.write() as connection:
            self._lock(connection, shared=False)  # nobody enters a row between the second look and the removal
            return sum(self._files.remove(digest, before) for digest in _unused(connection, digests))

    def _lock(self, connection: sa.Connection, shared: bool) -> None:
        if not self.database.is_sqlite:  # whose writers are alone anyway
            lock = sa.func.pg_advisory_xact_lock_shared if shared else sa.func.pg_advisory_xact_lock
            connection.execute(sa.select(lock(_LOCK)))

    def _visible(self, owner: str | None) -> list[sa.ColumnElement[bool]]:
        alive = pictures.c.expires.is_(None) | (pictures.c.expires > self._clock())
        return [alive] if owner is None else [alive, pictures.c.owner == owner]

    def _with_words(self, prompt: str) -> sa.ColumnElement[bool]:
        words = _words(prompt)
        if len(words) > MAX_WORDS:
            raise RequestError(f"The search has {len(words)} words.", f"Search for at most {MAX_WORDS}.")
        if not words:
            return sa.false()
        if self.database.is_sqlite:
            matching = sa.text("SELECT rowid FROM picture_words WHERE picture_words MATCH :words")
            query = matching.bindparams(words=" ".join(f'"{word}"*' for word in words))
            return pictures.c.number.in_(query.columns(sa.column("rowid")).scalar_subquery())
        return _lexemes.op("@@")(sa.cast(" & ".join(f"'{word}':*" for word in words), postgresql.TSQUERY))

    def _reading(self, connection: sa.Connection | None) -> AbstractContextManager[sa.Connection]:
        return self.database.read() if connection is None else nullcontext(connection)


def _unused(connection: sa.Connection, digests: Sequence[str]) -> list[str]:
    query = sa.select(pictures.c.digest).where(pictures.c.digest.in_(digests))
    used = set(connection.execute(query).scalars())
    return [digest for digest in digests if digest not in used]


def _words(text: str) -> list[str]:
    """The different words of a text, as they are indexed and searched."""
    found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return list(dict.fromkeys(word[:_MAX_WORD] for word in found))


def _to_columns(row: Row) -> dict[str, Any]:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    prompt = _storable(row.prompt)
    return {**values, "prompt": prompt, "parents": json.dumps(row.parents), "words": " ".join(_words(prompt))}


def _storable(text: str) -> str:
    """`text` without what a database refuses: halves of surrogate pairs and, in Postgres, the character 0."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _to_row(found: sa.Row[Any]) -> Row:
    values = dict(found._mapping)
    return Row(**{**values, "parents": tuple(json.loads(values["parents"]))})


def _place(cursor: str) -> tuple[float, str]:
    created, _, id = cursor.partition("_")
    try:
        return float(created), _storable(id)
    except ValueError as error:
        raise RequestError("The cursor of the page cannot be read.", "Use the one that came with the page.") from error


def _not_found(name: str) -> NotFoundError:
    return NotFoundError(f"No picture {name[:80]!r}.", "It may have expired, or belong to another key.")


class _Files(Protocol):
    """Where the bytes are, by digest. All raise OutputError, and `read` NotFoundError."""

    def write(self, digest: str, data: bytes) -> None: ...
    def read(self, digest: str) -> bytes: ...
    def exists(self, digest: str) -> bool: ...
    def older(self, before: float) -> Iterator[str]: ...
    def remove(self, digest: str, before: float) -> bool: ...


class _Folder:
    """A folder of this machine, or one that several have mounted: ab/ab12... for each picture."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with _reaching(str(root)):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, digest: str, data: bytes) -> None:
        path = self._path(digest)
        if _still_whole(path, len(data)):
            return
        with _reaching(str(path)):
            if not path.parent.exists():
                path.parent.mkdir(mode=0o700, exist_ok=True)
                sync_folder(self._root)
        save_atomic(data, path, mode=0o600)

    def read(self, digest: str) -> bytes:
        path = self._path(digest)
        with _reaching(str(path)):
            try:
                return path.read_bytes()
            except FileNotFoundError as error:
                raise _not_found(digest) from error

    def exists(self, digest: str) -> bool:
        return self._path(digest).is_file()

    def older(self, before: float) -> Iterator[str]:
        for path in self._root.glob("[0-9a-f][0-9a-f]/*"):
            if _modified(path) >= before:
                continue
            if _DIGEST.fullmatch(path.name):
                yield path.name
            elif path.suffix == ".part":  # of a process that was killed while it wrote
                path.unlink(missing_ok=True)

    def remove(self, digest: str, before: float) -> bool:
        path = self._path(digest)
        if _modified(path) >= before:  # it was saved again
            return False
        with _reaching(str(path)):
            path.unlink(missing_ok=True)
        return True

    def _path(self, digest: str) -> Path:
        return self._root / digest[:2] / digest


def _still_whole(path: Path, size: int) -> bool:
    """Whether the file is there already; its hour begins again."""
    try:
        if path.stat().st_size != size:
            return False
        os.utime(path)
    except OSError:
        return False
    return True


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")


class _Remote:
    """Any file system that fsspec knows. What is there is written again, so that its hour begins again."""

    def __init__(self, system: Any, root: str) -> None:
        self._system, self._root = system, root.rstrip("/")
        protocol = system.protocol if isinstance(system.protocol, str) else system.protocol[0]
        self._renames = protocol in _RENAMED

    @classmethod
    def at(cls, url: str) -> _Remote:
        """Raises OutputError, or MissingExtraError."""
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtraError("A store at a URL", "serve") from error
        with _reaching(url.partition("://")[0]):  # not the whole: it may hold a password
            system, root = fsspec.core.url_to_fs(url)
            system.makedirs(root, exist_ok=True)
            return cls(system, root)

    def write(self, digest: str, data: bytes) -> None:
        path = self._path(digest)
        with _reaching(digest):
            self._system.makedirs(f"{self._root}/{digest[:2]}", exist_ok=True)
            if not self._renames:
                self._system.pipe_file(path, data)
                return
            temporary = f"{self._root}/{digest[:2]}/{secrets.token_hex(6)}.part"
            try:
                self._system.pipe_file(temporary, data)
                self._system.mv(temporary, path)
            except BaseException:
                self._discard(temporary)
                raise

    def read(self, digest: str) -> bytes:
        with _reaching(digest):
            try:
                data: bytes = self._system.cat_file(self._path(digest))
            except FileNotFoundError as error:
                raise _not_found(digest) from error
            return data

    def exists(self, digest: str) -> bool:
        with _reaching(digest):
            return bool(self._system.isfile(self._path(digest)))

    def older(self, before: float) -> Iterator[str]:
        with _reaching(self._root):
            self._system.invalidate_cache()
            paths: Iterable[str] = self._system.find(self._root)
        for path in paths:
            name = path.rpartition("/")[2]
            if (_DIGEST.fullmatch(name) or name.endswith(".part")) and self._modified(path) < before:
                if name.endswith(".part"):
                    self._discard(path)
                else:
                    yield name

    def remove(self, digest: str, before: float) -> bool:
        path = self._path(digest)
        if self._modified(path) >= before:
            return False
        with _reaching(digest):
            self._system.rm_file(path)
        return True

    def _modified(self, path: str) -> float:
        try:
            found = self._system.modified(path)
        except (OSError, NotImplementedError):  # gone, or of unknown age: not swept
            return float("inf")
        return float(found.replace(tzinfo=found.tzinfo or UTC).timestamp())

    def _discard(self, path: str) -> None:
        with suppress(Exception):  # what is left goes with the next sweep
            self._system.rm_file(path)

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"


@contextmanager
def _reaching(what: str) -> Iterator[None]:
    try:
        yield
    except ImagewrightError:
        raise
    except Exception as error:  # a remote file system has errors of its own
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise OutputError(
            f"The store cannot reach {what!r}: {reason}.", "Check the store's folder and disk."
        ) from error
