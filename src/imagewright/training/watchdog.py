"""Stops a run that has gone wrong before it wastes hours or spoils a checkpoint."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from imagewright.errors import DivergedError, TrainingError

WINDOW = 500  # steps that the running median looks back on
FACTOR = 10.0  # a loss this many times the median is out of order,
PATIENCE = 50  # and this many in a row are a divergence
OVERFIT = 3  # this many held-out losses in a row above the best, while the training loss falls, are worth a warning
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


class Watchdog:
    """Looks at every step's numbers. `last_good` is the path that an error names, or None."""

    def __init__(self, last_good: str | None = None) -> None:
        self.last_good = last_good
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.first = math.nan
        self.high = 0
        self.heldout: list[tuple[float, float]] = []  # (held-out loss, training loss)

    def observe(self, step: int, values: Mapping[str, float]) -> None:
        """Take in the numbers of a step; a key `loss` is watched for running away. Raises DivergedError."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} is {value} in step {step}")
        loss = values.get("loss")
        if loss is None:
            return
        if math.isnan(self.first):
            self.first = loss
        usual = max(statistics.median(self.losses), 1e-3 * self.first) if self.losses else loss
        self.high = self.high + 1 if 0 < FACTOR * usual < loss else 0
        if self.high >= PATIENCE:
            raise self._diverged(f"the loss has been above {FACTOR:g} times its median for {PATIENCE} steps ({step=})")
        if not self.high:
            self.losses.append(loss)

    def check_tensors(self, step: int, tensors: Iterable[Tensor]) -> None:
        """Raises DivergedError if any of `tensors` holds a NaN or an infinity."""
        floats = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
        if not all(bool(norm.isfinite()) for norm in torch._foreach_norm(floats, math.inf)):
            raise self._diverged(f"a weight, its average or its optimiser state is not finite after step {step}")

    def overfitting(self, heldout: float) -> bool:
        """Whether the held-out loss rises while the training loss falls. Call once for each held-out loss."""
        recent = list(self.losses)[-50:]
        self.heldout.append((heldout, statistics.fmean(recent) if recent else math.inf))
        best = min(range(len(self.heldout)), key=lambda i: self.heldout[i][0])
        since = len(self.heldout) - 1 - best
        return since > 0 and since % OVERFIT == 0 and self.heldout[-1][1] < self.heldout[best][1]

    def state(self) -> dict[str, Any]:
        """What `load` needs, as JSON values."""
        return {
            "losses": list(self.losses),
            "first": None if math.isnan(self.first) else self.first,
            "high": self.high,
            "heldout": [list(pair) for pair in self.heldout],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.losses.extend(state["losses"])
        self.first = math.nan if state["first"] is None else state["first"]
        self.high = state["high"]
        self.heldout = [(a, b) for a, b in state["heldout"]]

    def _diverged(self, what: str) -> DivergedError:
        if self.last_good is None:
            return DivergedError(
                f"Training diverged: {what}.", "There is no good checkpoint yet. Lower lr and start again."
            )
        return DivergedError(
            f"Training diverged: {what}. The last good checkpoint is {self.last_good}.",
            "Give the command again with a lower lr to go on from there.",
        )


@contextmanager
def memory_errors(batch: int) -> Iterator[None]:
    """Turn an out-of-memory failure inside into a TrainingError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _OUT_OF_MEMORY):
            raise TrainingError(
                f"Out of memory with a batch of {batch}.",
                f"Halve the batch to {max(1, batch // 2)} and go on.",
            ) from error
        raise
