"""Stops a run that has gone wrong before it wastes hours or spoils a checkpoint.

divergence     a number is not finite, or a loss runs away                   stops
collapse       pictures of different seeds are alike, the KL is zero, codes
               are no longer used                                            stops, where the family is prone to it
overfitting    the held-out loss rises while the training loss falls         stops autoregressive models
memorisation   pictures of held-out captions are copies of training ones     warns
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagewright.errors import DivergedError, TrainingError

WINDOW = 500  # steps that the running median looks back on
FACTOR = 10.0  # a loss this many times the median is out of order,
PATIENCE = 50  # and this many in a row are a divergence
OVERFIT = 3  # this many held-out losses in a row above the best, while the training loss falls, are worth a warning
STOP_OVERFIT = 5  # and this many end the run of a family that overfits first
STOPS_OVERFITTING = ("autoregressive",)
DOUBT, STOP = 2, 5  # looks in a row with the same sign of illness: to warn, to stop
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


@dataclass(frozen=True)
class Sign:
    """A sign of illness: a finding below `low` (with `relative`, times the highest so far) or above `high`, what it
    means, and in which families it ends the run."""

    means: str
    low: float = -math.inf
    high: float = math.inf
    relative: bool = False
    fatal: tuple[str, ...] = ()


SIGNS = {
    "spread": Sign("pictures of different seeds hardly differ", low=0.05, fatal=("gan", "vae")),
    "kl": Sign("the KL is zero, so the decoder ignores its latents", low=1e-4, fatal=("vae",)),
    "perplexity": Sign("most codes are no longer used", low=0.1, relative=True, fatal=("",)),
    "copies": Sign(
        "pictures of held-out captions are as near to training pictures as copies are (memorisation)", high=0.5
    ),
}


@dataclass
class Track:
    """The course of one loss."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    first: float | None = None
    high: int = 0

    def observe(self, loss: float, adversarial: bool) -> bool:
        """Take in a loss; whether it has run away. One that can be negative, or that an opponent drives, is measured
        by where it began: its median may be near 0 for good reasons."""
        self.first = abs(loss) if self.first is None else self.first
        usual = statistics.median(self.losses) if self.losses else loss
        floor = self.first * (3.0 if adversarial else 1.0 if min(self.losses, default=loss) < 0 else 1e-3)
        scale = max(abs(usual), floor)
        self.high = self.high + 1 if 0 < (FACTOR - 1) * scale < loss - usual else 0
        if not self.high:
            self.losses.append(loss)
        return self.high >= PATIENCE

    def recent(self) -> float:
        """The mean of the last 50."""
        last = list(self.losses)[-50:]
        return statistics.fmean(last) if last else math.inf

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return {"losses": list(self.losses), "first": self.first, "high": self.high}


class Watchdog:
    """Looks at a run's numbers. `last_good` and `best` are the paths of checkpoints that messages name, or None."""

    def __init__(self, last_good: str | None = None, family: str = "") -> None:
        self.last_good, self.family = last_good, family
        self.best: str | None = None
        self.tracks: dict[str, Track] = {}
        self.heldout: list[tuple[float, float]] = []  # (held-out loss, training loss)
        self.highest: dict[str, float] = {}  # of each relative finding
        self.ill: dict[str, int] = {}  # looks in a row with a sign

    @property
    def well(self) -> bool:
        """Whether the latest looks found no sign that could end the run."""
        return not any(count for name, count in self.ill.items() if self.family in SIGNS[name].fatal)

    def observe(self, step: int, values: Mapping[str, float]) -> None:
        """Take in the numbers of a step; those named `loss` or `PHASE/loss` are watched for running away.

        Raises DivergedError.
        """
        for name, value in values.items():
            if not math.isfinite(value):
                raise self._stopped("diverged", f"{name} is {value} in step {step}")
        for name, value in values.items():
            if name.rpartition("/")[2] != "loss":
                continue
            track = self.tracks.setdefault(name, Track())
            if track.observe(value, adversarial="/" in name):
                told = "the loss" if name == "loss" else f"the {name.removesuffix('/loss')}'s loss"
                raise self._stopped(
                    "diverged", f"{told} has been above {FACTOR:g} times its median for {PATIENCE} steps ({step=})"
                )

    def check_tensors(self, step: int, tensors: Iterable[Tensor]) -> None:
        """Raises DivergedError if any of `tensors` holds a NaN or an infinity."""
        floats = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
        if not all(bool(norm.isfinite()) for norm in torch._foreach_norm(floats, math.inf)):
            raise self._stopped(
                "diverged", f"a weight, its average or its optimiser state is not finite after step {step}"
            )

    def improves(self, heldout: float) -> bool:
        """Take in a held-out loss; whether it is the best so far."""
        best = min((loss for loss, _ in self.heldout), default=math.inf)
        track = self.tracks.get("loss")
        self.heldout.append((heldout, track.recent() if track else math.inf))
        return heldout < best

    @property
    def overfitting(self) -> int:
        """How many held-out losses in a row have been above the best while the training loss fell below its then."""
        if not self.heldout:
            return 0
        best = min(range(len(self.heldout)), key=lambda i: self.heldout[i][0])
        return len(self.heldout) - 1 - best if self.heldout[-1][1] < self.heldout[best][1] else 0

    @property
    def overfit(self) -> str:
        """Why an overfitting run ends, or nothing."""
        if self.family not in STOPS_OVERFITTING or self.overfitting < STOP_OVERFIT:
            return ""
        return f"overfitting: the held-out loss has risen {self.overfitting} times while the training loss fell"

    def examine(self, step: int, findings: Mapping[str, float]) -> list[str]:
        """Take in what a look at the pictures found, by the names of SIGNS; return what to warn of.

        Raises DivergedError when a sign that ends runs of this family was there STOP times in a row.
        """
        warnings = []
        for name, value in findings.items():
            sign = SIGNS[name]
            top = self.highest[name] = max(value, self.highest.get(name, value)) if sign.relative else 1.0
            bad = value < sign.low * top or value > sign.high
            self.ill[name] = self.ill.get(name, 0) + 1 if bad else 0
            said = f"{sign.means} ({name} {value:.3g} in step {step})"
            if self.ill[name] >= STOP and self.family in sign.fatal:
                raise self._stopped("collapsed", said)
            if self.ill[name] == DOUBT:
                warnings.append(said)
        return warnings

    def state(self) -> dict[str, Any]:
        """What `load` needs, as JSON values."""
        return {
            "tracks": {name: track.state() for name, track in self.tracks.items()},
            "heldout": [list(pair) for pair in self.heldout],
            "highest": self.highest,
            "ill": self.ill,
            "last_good": self.last_good and Path(self.last_good).name,
        }

    def load(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from `state`, with the checkpoints in `folder`. (Older states know less.)"""
        for name, track in state.get("tracks", {}).items():
            self.tracks[name] = Track(deque(track["losses"], maxlen=WINDOW), track["first"], track["high"])
        self.heldout = [(a, b) for a, b in state["heldout"]]
        self.highest, self.ill = dict(state.get("highest", {})), dict(state.get("ill", {}))
        name = state.get("last_good")
        self.last_good = str(folder / name) if name and (folder / name).is_dir() else None

    def places(self) -> str:
        """Where the last good and the best checkpoint are, in a sentence or two."""
        told = [
            f"The {which} checkpoint is {path}."
            for which, path in (("last good", self.last_good), ("best held-out", self.best))
            if path is not None
        ]
        return " ".join(told)

    def _stopped(self, how: str, what: str) -> DivergedError:
        message = " ".join(filter(None, [f"Training {how}: {what}.", self.places()]))
        if self.last_good is None:
            return DivergedError(message, "There is no good checkpoint yet. Lower lr and start again.")
        return DivergedError(message, "Give the command again with a lower lr to go on from the newest.")


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
