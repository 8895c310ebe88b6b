"""One database for all that the server keeps: SQLite in a file, or Postgres by its URL. Each module names its own
tables on `metadata`; times are seconds since 1970, money is a whole number of millionths of a dollar.

SQLite runs in write-ahead mode with a sync at every commit, so that what was accepted survives a crash, and a writing
transaction takes the lock at its start, so that two can never both read and then both write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import Context, copy_context
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from imagewright.errors import ImagewrightError

_T = TypeVar("_T")
metadata = sa.MetaData()
VERSION = 1
BUSY = 30_000  # ms that a writer waits for another
_schema = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))


class DatabaseError(ImagewrightError):
    """The database cannot be opened, or is of another version."""


class Database:
    """A database by its URL: `sqlite:///file.db` or `postgresql://user:password@host/name`."""

    def __init__(self, url: str, connections: int = 8) -> None:
        self.url = _url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        self.engine = sa.create_engine(self.url, pool_size=connections, max_overflow=connections, pool_pre_ping=False)
        # SQLite has one writer, and lets the others sleep and look again; this process' threads queue up instead.
        self._acts: deque[_Act] = deque()
        self._turn: AbstractContextManager[Any] = RLock() if self.is_sqlite else nullcontext()
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare)
            sa.event.listen(self.engine, "begin", _begin)

    def create(self) -> None:
        """Make the tables that are not there. Raises DatabaseError."""
        try:
            with self.write() as connection:
                if not self.is_sqlite:  # two processes that start together
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7236945)"))
                metadata.create_all(connection)
                found = connection.execute(sa.select(_schema.c.version)).scalar()
                if found is None:
                    connection.execute(_schema.insert().values(version=VERSION))
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseError(
                f"The database cannot be opened: {getattr(error, 'orig', error)}.", "Check --database."
            ) from error
        if found not in (None, VERSION):
            raise DatabaseError(f"The database has version {found}.", f"This version of imagewright reads {VERSION}.")

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that may write; committed at the end of the block, rolled back by any exception."""
        with self._turn, self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def together(self, act: Callable[[sa.Connection], _T]) -> _T:
        """What `act` returns in a transaction that it may share with those of other threads: on SQLite, whatever has
        come up while the last one was written to the disk is done in one. When this returns, it is on the disk.

        An error of `act` undoes what that one did, and no more; one of the database itself undoes all.
        """
        if not self.is_sqlite:  # which does that itself
            with self.write() as connection:
                return act(connection)
        mine = _Act(act, copy_context())
        self._acts.append(mine)
        with self._turn:
            if not mine.ended:
                self._carry_out()
        if mine.error is not None:
            raise mine.error
        found: _T = mine.result
        return found

    def _carry_out(self) -> None:
        acts = [self._acts.popleft() for _ in range(len(self._acts))]
        try:
            with self.write() as connection:
                for one in acts:
                    one.carry_out(connection, alone=len(acts) == 1)
        except Exception as error:
            for one in acts:
                one.error = one.error or error
        for one in acts:
            one.ended = True

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent view for reading."""
        with self.engine.connect() as connection:
            yield connection

    def insert(self, table: sa.Table) -> Any:
        """An INSERT that knows `on_conflict_do_nothing` and `on_conflict_do_update`, which both databases have."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


@dataclass(eq=False)
class _Act:
    """One part of a shared transaction, with the context of the thread that waits for it."""

    act: Callable[[sa.Connection], Any]
    context: Context
    ended: bool = False
    result: Any = None
    error: Exception | None = None

    def carry_out(self, connection: sa.Connection, alone: bool) -> None:
        try:
            with nullcontext() if alone else connection.begin_nested():
                self.result = self.context.run(self.act, connection)
        except Exception as error:
            self.error = error
            if alone or isinstance(error, sa.exc.OperationalError):  # a full disk: SQLite itself has undone all
                raise


def _url(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError as error:  # whose text may hold the password
        raise DatabaseError("The database's URL cannot be read.", "Use sqlite:///FILE or postgresql://...") from error
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise DatabaseError(f"No support for {backend!r}.", "Use sqlite:///FILE or postgresql://...")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _prepare(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where _begin says, not where the driver guesses
    for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY}", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
