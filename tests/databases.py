"""Databases for tests: SQLite in a file, and a Postgres of the test run's own, where Postgres is installed.

from databases import database, postgres  # fixtures; `database` runs the test once with each
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa

from imagewright.database import Database

_PLACES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/local/bin"), Path("/usr/bin")]


def start_postgres(folder: Path) -> str | None:
    """A new Postgres in `folder`, on a socket there; its URL, or None where it is not installed."""
    programs = next((place for place in _PLACES if (place / "initdb").exists()), None)
    if programs is None:
        return None
    folder.chmod(0o755)
    data = folder / "data"
    data.mkdir(mode=0o700)
    if os.getuid() == 0:  # which Postgres refuses
        for path in (folder, data):
            shutil.chown(path, "postgres")
    _run([programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"], folder)
    options = f"-c listen_addresses='' -c fsync=off -c max_connections=200 -k {folder}"
    _run([programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options, "start"], folder)
    return f"postgresql://postgres@/postgres?host={folder}"


def restart_postgres(folder: Path) -> None:
    """End the Postgres in `folder` without any warning, and start it again."""
    programs = next(place for place in _PLACES if (place / "initdb").exists())
    options = ["-D", folder / "data", "-l", folder / "log", "-w", "-m", "immediate"]
    _run([programs / "pg_ctl", *options, "restart"], folder)


def stop_postgres(folder: Path) -> None:
    """End the Postgres in `folder` and take its files away."""
    programs = next(place for place in _PLACES if (place / "initdb").exists())
    _run([programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop"], folder)
    shutil.rmtree(folder)


def _run(command: Sequence[str | Path], folder: Path) -> None:
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    with (folder / "commands").open("ab") as log:  # no pipe: the server would keep it open
        subprocess.run([*user, *map(str, command)], check=True, cwd=folder, stdout=log, stderr=log)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a Postgres; skips where it is not installed."""
    folder = Path(tempfile.mkdtemp(prefix="iw-pg-"))  # a short path: it holds a socket
    url = start_postgres(folder)
    if url is None:
        shutil.rmtree(folder)
        pytest.skip("Postgres is not installed")
    yield url
    stop_postgres(folder)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database without tables: once SQLite, once Postgres."""
    if request.param == "sqlite":
        found = Database(f"sqlite:///{tmp_path}/test.db")
    else:
        found = Database(request.getfixturevalue("postgres"))
        with found.write() as connection:
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))
    yield found
    found.close()
