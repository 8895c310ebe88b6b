"""Every technique at toy size, for what all of them must keep; and a program that trains them one after another.

They come from the table of presets, so that a technique that is added there is tested too.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from tests_support import DiscsSource

from imagewright.data.batch import Batch
from imagewright.models import registry
from imagewright.models.consistency import Consistency
from imagewright.models.diffusion import Diffusion
from imagewright.models.technique import Technique
from imagewright.training.command import TRAINABLE
from imagewright.training.config import TrainConfig
from imagewright.training.loop import train
from imagewright.training.presets import PRESETS

TWO_STEPS = {"batch": 5, "steps": 3, "precision": "fp32", "heldout_every": 2}


class Discs(DiscsSource):
    """Coloured discs that know their step."""

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        return dataclasses.replace(super().batch(seed, step, start, stop, total), step=step)

    def heldout(self, start: int, stop: int, seed: int) -> Batch | None:
        return None if start else dataclasses.replace(self.batch(seed + 1, 0, 0, 4, 4), step=None)


def build(name: str, seed: int = 0, *, by_row: bool = False) -> Technique:
    """The tiny preset's model with the initial weights of `seed`, and if it needs one, always the same teacher."""
    torch.manual_seed(seed)
    config = PRESETS[name]["tiny"].model
    model = registry.build(by_rows(config) if by_row else config)
    if isinstance(model, Consistency):
        model.learn_from(teacher())
    return model


def teacher() -> Diffusion:
    """An untrained diffusion model of the tiny preset whose predictions are not all 0."""
    torch.manual_seed(99)
    model = Diffusion(PRESETS["diffusion"]["tiny"].model)
    torch.nn.init.normal_(model.network.patch_out.weight, std=0.1)
    return model


def by_rows(config: Any) -> Any:
    """`config` without dropout, which draws a mask for each process, and without a GAN's `matching`: its loss is the
    same in two processes (tests/models/test_stylegan.py), but with it the trained weights part; why is not known."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            changes[f.name] = by_rows(value)
        elif f.name in ("dropout", "matching"):
            changes[f.name] = 0.0
    return dataclasses.replace(config, **changes)


def dials(name: str, **changes: Any) -> TrainConfig:
    """The tiny preset's way to train, for a few steps."""
    quiet = {"batch": 4, "steps": 5, "warmup": 2, "sample_every": 0, "schedule": "constant", "checkpoint_minutes": 9}
    return dataclasses.replace(PRESETS[name]["tiny"].train, **{**quiet, **changes})


def main() -> None:
    """Train each technique for a few steps below the folder argv[1]."""
    torch.set_num_threads(1)
    sys.modules["torch.utils.tensorboard"] = None  # type: ignore[assignment]  # slow to import
    torch.distributed.init_process_group("gloo")
    for name in TRAINABLE:
        model = build(name, by_row=True)
        train(model, Discs(model.pixels), dials(name, **TWO_STEPS), Path(sys.argv[1]) / name)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
