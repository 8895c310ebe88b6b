"""Where a run's batches come from, on the device that trains."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from imagewright.data.batch import Batch

HELDOUT_ROWS = 512  # at most
T = TypeVar("T")


class Source(Protocol):
    """Where batches come from. Its attributes `manifest_hash` (str) and `styles` (name to index), if any, go into every
    checkpoint; one that is `resident` gives batches that are on the device already."""

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        """Rows [start, stop) of the `total` of step `step`: a pure function of its arguments."""

    def heldout(self, start: int, stop: int, seed: int) -> Batch | None:
        """Held-out rows [start, stop), always the same; fewer at the end of the set, None beyond it."""


class Feed:
    """The batches of one process. For a GPU, a thread of its own fetches the next one while this one is used, unless
    the source is `resident` there: then there is nothing to fetch.

    `waited` is the seconds spent waiting for the latest batch.
    """

    def __init__(self, source: Source, seed: int, rows: tuple[int, int], total: int, device: torch.device) -> None:
        self.source, self.seed, self.rows, self.total, self.device = source, seed, rows, total, device
        self.waited = 0.0
        ahead = device.type != "cpu" and not getattr(source, "resident", False)
        self._pool = ThreadPoolExecutor(max_workers=1) if ahead else None
        self._ahead: tuple[int, Future[Batch]] | None = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def batch(self, step: int) -> Batch:
        """The rows of this process in step `step`."""
        began = time.perf_counter()
        if self._pool is None:
            batch = self._fetch(step)
        else:
            if self._ahead is None or self._ahead[0] != step:
                self._ahead = step, self._pool.submit(self._fetch, step)
            batch = self._ahead[1].result()
            self._ahead = step + 1, self._pool.submit(self._fetch, step + 1)
        self.waited = time.perf_counter() - began
        return batch

    def heldout(self) -> Iterator[Batch]:
        """The first HELDOUT_ROWS held-out rows, in batches."""
        for start in range(0, HELDOUT_ROWS, self.total):
            stop = min(start + self.total, HELDOUT_ROWS)
            batch = self._in_turn(lambda a=start, b=stop: self.source.heldout(a, b, 0))  # type: ignore[misc]
            if batch is None or len(batch) == 0:
                return
            yield to_device(batch, self.device)

    def _fetch(self, step: int) -> Batch:
        return to_device(self.source.batch(self.seed, step, *self.rows, self.total), self.device)

    def _in_turn(self, call: Callable[[], T]) -> T:
        """`call()`, in the thread that alone may touch the source."""
        return call() if self._pool is None else self._pool.submit(call).result()


def to_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` with its tensors on `device`; its draws stay where they are."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [f.name for f in dataclasses.fields(value)]
            return dataclasses.replace(value, **{name: move(getattr(value, name)) for name in fields})
        return value

    moved: Batch = move(batch)
    return moved
