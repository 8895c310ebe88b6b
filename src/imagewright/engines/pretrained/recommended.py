"""A short kept list of open weights by task, and how long each would take on this very machine.

The facts (licence, size, date) are in recommended.json, as their authors published them; the operations of a picture
were counted there once, so that the time needs only this machine's rates. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

BYTES = 2  # of a parameter in memory: bfloat16 or float16
WORKING = 1.5  # GB beside the weights, at the sizes given


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """One model: what it is for, under which licence, and what it costs to get and to run.

    `commercial` is yes, no or conditions; `date` (year-month) is when these facts were published; `step_gflop` and
    `rest_gflop` (decoding and reading the words) count operations by kind. `files`: those to get, where not all.
    """

    task: str
    id: str
    about: str
    licence: str
    commercial: str
    parameters_millions: int
    download_gb: float
    date: str
    size: int = 0
    steps: int = 0
    step_gflop: Mapping[str, float] = field(default_factory=dict)
    rest_gflop: Mapping[str, float] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def memory_gb(self) -> float:
        """What a picture takes with everything in memory; an add-on its weights alone."""
        return round(self.parameters_millions * BYTES / 1000 + (WORKING if self.steps else 0), 1)

    def seconds(self, rates: Mapping[str, float]) -> float | None:
        """A picture's time at `rates` (operations a second by kind); None for an add-on."""
        if not self.steps:
            return None
        return sum(
            1e9 * (self.steps * self.step_gflop[kind] + self.rest_gflop[kind]) / rate for kind, rate in rates.items()
        )


@cache
def recommended() -> tuple[Recommended, ...]:
    """The list, in the order of its tasks."""
    text = files("imagewright.engines.pretrained").joinpath("recommended.json").read_text("utf-8")
    entries: list[dict[str, Any]] = json.loads(text)["models"]
    return tuple(Recommended(**{**entry, "files": tuple(entry.get("files", ()))}) for entry in entries)


def rates() -> dict[str, float] | None:
    """This machine's rates by kind, measured on first use; None where the extra `pretrained` is not installed."""
    if any(find_spec(name) is None for name in ("torch", "diffusers")):
        return None
    from dataclasses import asdict

    from imagewright.engines.pretrained import machine
    from imagewright.engines.pretrained.estimate import calibrated

    device = machine.best_device()
    return asdict(calibrated(machine.number_format(device), device, device == "cpu" and machine.has_openvino()))
