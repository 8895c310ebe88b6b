"""Several pictures at once on the cores of this machine.

A small picture gains little from a second core: its sums are short. So several are drawn side by side, each on a core
of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Semaphore
from typing import TypeVar

from imagewright.watch import Watch

T = TypeVar("T")
WAIT = 0.1  # seconds between two looks at whether the work is still wanted


class Seats:
    """Room for `count` at a time; others wait."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = Semaphore(count)

    @contextmanager
    def one(self, watch: Watch) -> Iterator[None]:
        """Waits for a seat and keeps it. Raises StoppedError where nobody wants the work before there is one."""
        while not self._free.acquire(timeout=WAIT):
            watch.check()
        try:
            yield
        finally:
            self._free.release()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_once(calls: Sequence[Callable[[], T]], most: int) -> list[T | Exception]:
    """What each of `calls` returns, in order, or the error that it raises; `most` of them run at a time."""

    def ended(call: Callable[[], T]) -> T | Exception:
        try:
            return call()
        except Exception as error:
            return error

    if min(most, len(calls)) <= 1:
        return [ended(call) for call in calls]
    threads = ThreadPoolExecutor(min(most, len(calls)), thread_name_prefix="imagewright")
    try:
        return list(threads.map(ended, calls))
    finally:
        threads.shutdown(cancel_futures=True)  # where Ctrl-C came, those that wait are not begun


def all_of(ended: Sequence[T | Exception]) -> list[T]:
    """What `at_once` gave, if all went well. Raises the first error."""
    for one in ended:
        if isinstance(one, Exception):
            raise one
    return [one for one in ended if not isinstance(one, Exception)]
