"""News of jobs inside one process: from the worker's threads to whoever listens in the event loop."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any


@dataclass(frozen=True)
class News:
    """What happened to a job: `progress` (done, total), `partial` (index, picture), `ended`."""

    kind: str
    data: dict[str, Any]


class Hub:
    """Passes news on; what nobody listens to is dropped."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._listeners: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Queue[News]]]] = defaultdict(list)

    def tell(self, job_id: str, kind: str, **data: Any) -> None:
        """From any thread: pass on what happened."""
        with self._lock:
            listeners = list(self._listeners.get(job_id, ()))
        for loop, queue in listeners:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, News(kind, data))

    def is_heard(self, job_id: str) -> bool:
        """Whether anybody listens."""
        return job_id in self._listeners

    @contextmanager
    def listening(self, job_id: str) -> Iterator[asyncio.Queue[News]]:
        """In the event loop: a queue that gets the news of a job from now on."""
        queue: asyncio.Queue[News] = asyncio.Queue()
        entry = (asyncio.get_running_loop(), queue)
        with self._lock:
            self._listeners[job_id].append(entry)
        try:
            yield queue
        finally:
            with self._lock:
                self._listeners[job_id].remove(entry)
                if not self._listeners[job_id]:
                    del self._listeners[job_id]
