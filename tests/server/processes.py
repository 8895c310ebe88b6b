"""Servers and workers as processes of their own, to be killed; what they left; what the slow engine wrote down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import sqlalchemy as sa

from imagewright.database import Database
from imagewright.server import jobs
from imagewright.store import Store, pictures

SLOW = "slow/steps"
READY = {"serve": "serving at ", "worker": "working for "}


class Process:
    """`imagewright serve` or `worker`; what it says is in `log`."""

    def __init__(self, log: Path, command: str, *options: str) -> None:
        self.log, before = log, log.read_text() if log.exists() else ""
        with log.open("a") as errors:
            arguments = [sys.executable, "-m", "imagewright", command, *options]
            self.process = subprocess.Popen(arguments, stderr=errors, stdout=errors)
        until = time.monotonic() + 60
        while READY[command] not in (said := log.read_text()[len(before) :]):
            assert self.process.poll() is None and time.monotonic() < until, said
            time.sleep(0.02)
        self.url = said.partition(READY[command])[2].split()[0].removesuffix("/v1")

    def kill(self) -> None:
        """End it without any warning."""
        self.process.kill()
        self.process.wait()

    def tell(self, sign: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to stop."""
        self.process.send_signal(sign)

    def ended(self, seconds: float = 60) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    @property
    def said(self) -> str:
        """All that it wrote."""
        return self.log.read_text()


@contextmanager
def running(log: Path, command: str, *options: str) -> Iterator[Process]:
    """A process, killed at the end if it still runs."""
    process = Process(log, command, *options)
    try:
        yield process
    finally:
        process.kill()


def serve(folder: Path, *options: str) -> Process:
    """A server on a free port, with its data in `folder` and the slow engine."""
    return Process(folder / "log", "serve", "--port", "0", "--folder", str(folder), "-m", SLOW, *options)


def client(process: Process) -> httpx.Client:
    """A client of a server."""
    return httpx.Client(base_url=process.url, timeout=60)


def until(found: Callable[[], object], seconds: float = 30) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it never was so"
        time.sleep(0.01)


def states(database: Database) -> list[str]:
    """The states of all jobs."""
    with database.read() as connection:
        return list(connection.execute(sa.select(jobs.jobs.c.state)).scalars())


@dataclass(frozen=True)
class Step:
    """A line of the slow engine's log."""

    what: str
    seed: int
    time: float
    process: int


def steps(log: Path) -> list[Step]:
    """What the slow engine did, in order."""
    if not log.exists():
        return []
    rows = [line.split() for line in log.read_text().splitlines()]
    return [Step(what, int(seed), float(when), int(process)) for what, seed, when, process in rows]


def check_pictures(database: Database, store: Store) -> None:
    """No row without its whole file, no picture of a job twice, none of a job that is not done; the database whole."""
    with database.read() as connection:
        rows = connection.execute(
            sa.select(pictures.c.digest, pictures.c.job, pictures.c.bytes).where(pictures.c.kind == "output")
        ).all()
        done = connection.execute(sa.select(jobs.jobs).where(jobs.jobs.c.state == jobs.DONE)).all()
        if database.is_sqlite:
            assert connection.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
    for row in rows:
        assert len(store.load(row.digest)) == row.bytes  # and load compares the hash
    found = [jobs._job(row) for row in done]
    entered = sorted(picture["digest"] for job in found if job.result for picture in job.result["pictures"])
    assert entered == sorted(row.digest for row in rows)
    assert len(rows) == sum(int(job.order.get("n", 1)) for job in found)


def no_parts(folder: Path) -> list[Path]:
    """Files in a store's folder that are not pictures under their hashes."""
    return [path for path in folder.rglob("*") if path.is_file() and len(path.name) != 64]


def open_files() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))
