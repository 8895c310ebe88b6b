"""Several things at once, each with its own end: what several requests share of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def at_once(calls: Sequence[Callable[[], T]], most: int) -> list[T | Exception]:
    """What each of `calls` returns, in order, or the error that it raises; `most` of them run at a time."""

    def ended(call: Callable[[], T]) -> T | Exception:
        try:
            return call()
        except Exception as error:
            return error

    if min(most, len(calls)) <= 1:
        return [ended(call) for call in calls]
    with ThreadPoolExecutor(min(most, len(calls)), thread_name_prefix="imagewright") as threads:
        return list(threads.map(ended, calls))
