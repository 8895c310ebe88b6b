"""News of jobs inside one process: from the worker's threads to whoever listens in the event loop."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any


@dataclass(frozen=True)
class News:
    """What happened to a job: `progress` (done, total), `partial` (index, file), `ended` (job, files: those of its
    pictures that are at hand, by their ids), `closing`: this server stops, ask another or later."""

    kind: str
    data: dict[str, Any]


@dataclass(eq=False)
class Ear:
    """A queue that gets the news of a job; `late`: the job may have ended before. `whole`: not only its end."""

    loop: asyncio.AbstractEventLoop
    late: bool
    whole: bool = True
    queue: asyncio.Queue[News] = field(default_factory=asyncio.Queue)


class Hub:
    """Passes news on; what nobody listens to is dropped."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._ears: dict[str, list[Ear]] = defaultdict(list)
        self._expected: dict[str, Ear] = {}

    def tell(self, job_id: str, kind: str, **data: Any) -> None:
        """From any thread: pass on what happened."""
        with self._lock:
            ears = [ear for ear in self._ears.get(job_id, ()) if ear.whole or kind == "ended"]
        for ear in ears:
            if not ear.loop.is_closed():
                ear.loop.call_soon_threadsafe(ear.queue.put_nowait, News(kind, data))

    def heard(self) -> list[str]:
        """The jobs that somebody listens to."""
        with self._lock:
            return list(self._ears)

    def is_heard(self, job_id: str) -> bool:
        """Whether anybody listens to a job."""
        return job_id in self._ears

    def expect(self, job_id: str) -> None:
        """In the event loop, before a job is entered: keep its news for the first who will listen."""
        ear = Ear(asyncio.get_running_loop(), late=False)
        with self._lock:
            self._expected[job_id] = ear
            self._ears[job_id].append(ear)

    def forget(self, job_id: str) -> None:
        """Nobody will listen to what was expected."""
        if (ear := self._expected.pop(job_id, None)) is not None:
            self._remove(job_id, ear)

    @contextmanager
    def listening(self, job_id: str, whole: bool = True) -> Iterator[Ear]:
        """In the event loop: an ear for a job, from now on or from when it was expected."""
        ear = self._expected.pop(job_id, None)
        if ear is None:
            ear = Ear(asyncio.get_running_loop(), late=True)
            with self._lock:
                self._ears[job_id].append(ear)
        ear.whole = whole
        try:
            yield ear
        finally:
            self._remove(job_id, ear)

    def _remove(self, job_id: str, ear: Ear) -> None:
        with self._lock:
            self._ears[job_id].remove(ear)
            if not self._ears[job_id]:
                del self._ears[job_id]
