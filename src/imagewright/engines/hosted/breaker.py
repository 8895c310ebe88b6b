"""A circuit breaker: a service that fails again and again is left alone for a while, then tried with one call.

Its state is that of the process. Only what says that the service is down counts as a failure: no connection, no answer
in time, a 5xx. A refusal is an answer; 429 says neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

LIMIT = 5  # failures in a row that open it
PAUSE = 30.0  # seconds that it stays open before one call may try


class Breaker:
    """Counts the failures of one service. Used by several threads at once."""

    def __init__(self, limit: int = LIMIT, pause: float = PAUSE, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._pause, self._clock = limit, pause, clock
        self._lock = Lock()
        self._failures, self._until, self._probing = 0, 0.0, False

    def enter(self) -> float:
        """0 where a call may go out now, and then one of the three below must follow; else the seconds to wait."""
        with self._lock:
            if self._failures < self._limit:
                return 0.0
            wait = self._until - self._clock()
            if wait > 0 or self._probing:
                return max(wait, 1.0)
            self._probing = True
            return 0.0

    def answered(self) -> None:
        """The service is up."""
        with self._lock:
            self._failures, self._probing = 0, False

    def failed(self) -> None:
        """The service did not do its part."""
        with self._lock:
            self._failures += 1
            self._until, self._probing = self._clock() + self._pause, False

    def unknown(self) -> None:
        """The call ended without telling (it was stopped, or there were too many)."""
        with self._lock:
            self._probing = False


_breakers: dict[str, Breaker] = {}
_lock = Lock()


def breaker(service: str) -> Breaker:
    """The one of a service in this process; `service` is its name and address."""
    with _lock:
        return _breakers.setdefault(service, Breaker())


def forget() -> None:
    """Closes all of them: for tests."""
    with _lock:
        _breakers.clear()
