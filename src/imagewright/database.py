"""One database for all that the server keeps: SQLite in a file, or Postgres by its URL. Each module names its own
tables on `metadata`; times are seconds since 1970, money is a whole number of millionths of a dollar.

SQLite runs in write-ahead mode with a sync at every commit, so that what was accepted survives a crash, and a writing
transaction takes the lock at its start, so that two can never both read and then both write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from imagewright.errors import ImagewrightError

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
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

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
