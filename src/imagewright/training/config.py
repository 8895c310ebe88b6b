"""The dials of a training run.

A config is a frozen dataclass, saved as JSON in every checkpoint.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from imagewright.errors import OptionError

SCHEDULES = ("constant", "cosine", "wsd")
PRECISIONS = ("bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Raises OptionError on values that cannot work.

    `batch` is global: the processes share it out. `minutes` is a wall-clock budget over all resumes.
    `schedule`: after `warmup` steps, `constant`, `cosine` to 0 at `steps`, or `wsd` (constant, then linear to
    0 over the last `cooldown` share of the steps). `fit`: with `wsd` and `minutes`, the cooldown begins when its share
    of the minutes is left, if that is before its share of the steps is, and ends with them. `lr` is AdamW's; `muon_lr`
    that of the hidden matrices, if `muon`. `ema` is the decay per step, warmed up; 0 means none. `clip` is the largest
    gradient norm; 0: any.
    `checkpoint_minutes` 0 writes one every step; `sample_every` and `heldout_every` count steps, 0: never;
    `keep` is how many checkpoints stay.
    """

    seed: int = 0
    batch: int = 64
    steps: int = 10_000
    minutes: float | None = None
    lr: float = 3e-4
    warmup: int = 200
    schedule: str = "wsd"
    cooldown: float = 0.2
    fit: bool = False
    muon: bool = False
    muon_lr: float = 0.02
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    precision: str = "bf16"
    compile: bool = False
    checkpoint_minutes: float = 10.0
    sample_every: int = 1000
    heldout_every: int = 500
    keep: int = 3

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        for name in ("batch", "steps", "keep"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("warmup", "weight_decay", "clip", "checkpoint_minutes", "sample_every", "heldout_every"):
            _check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("lr", "muon_lr"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        _check(self.minutes is None or self.minutes > 0, "minutes", self.minutes, "a number above 0")
        _check(0 <= self.cooldown <= 1, "cooldown", self.cooldown, "0 to 1")
        _check(0 <= self.ema < 1, "ema", self.ema, "0 to less than 1")
        _check(self.schedule in SCHEDULES, "schedule", self.schedule, " or ".join(SCHEDULES))
        _check(not self.fit or self.schedule == "wsd", "fit", self.fit, "it with the schedule wsd")
        _check(self.precision in PRECISIONS, "precision", self.precision, " or ".join(PRECISIONS))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`; missing keys take their defaults, unknown ones raise OptionError."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise OptionError(f"Unknown training option {key!r}.", nearest(key, known))
        return cls(**values)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint: the known word closest to `word`, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(known) or 'none'}."


def _check(fine: bool, name: str, value: Any, allowed: str) -> None:
    if not fine:
        raise OptionError(f"The training option {name} is {value}.", f"Use {allowed}.")
