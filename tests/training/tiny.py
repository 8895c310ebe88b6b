"""A tiny technique and source for the tests of training, and a program that trains them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagewright.data.batch import Batch, Draws
from imagewright.models.technique import Cond, Phase, Technique
from imagewright.training.config import TrainConfig
from imagewright.training.loop import train

SIDE = 8
VALUES = 4 * SIDE * SIDE


@dataclass(frozen=True)
class TinyConfig:
    """An MLP denoiser of 8x8 pictures."""

    width: int = 32
    depth: int = 2
    dropout: float = 0.1


class TinyDenoiser(Technique):
    """Predicts x0 from x_t with a residual MLP."""

    pixels = 0

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.inward = nn.Linear(VALUES + 1, config.width)
        self.blocks = nn.ModuleList(nn.Linear(config.width, config.width) for _ in range(config.depth))
        self.dropout = nn.Dropout(config.dropout)
        self.outward = nn.Linear(config.width, VALUES)
        self.smooth = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("spare", torch.zeros(3))

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        x = self.inward(torch.cat([x_t.flatten(1), t], dim=1))
        for block in self.blocks:
            x = x + self.dropout(torch.relu(block(x)))
        return self.smooth(self.outward(x).view(-1, 4, SIDE, SIDE))

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        assert batch.pixels is not None
        if self.training:
            self.calls += 1
        x = batch.pixels
        t = batch.draws.rand(1).to(x.device)
        noise = batch.draws.randn(4, SIDE, SIDE).to(x.device)
        level = t[:, :, None, None]
        error = self.denoise((1 - level) * x + level * noise, t) - x
        return {"loss": error.square().mean(), "largest": error.detach().abs().max()}

    def sample(self, cond: Cond, seeds: Sequence[int], **options: Any) -> Tensor:
        noise = torch.stack([Draws(s, 0, 0, 1, 1).randn(4, SIDE, SIDE)[0] for s in seeds])
        with torch.no_grad():
            return self.denoise(noise, torch.ones(len(seeds), 1)).clamp(-1, 1)


class TinyPair(Technique):
    """A generator and a discriminator, the latter every second step."""

    pixels = 0

    phases = (Phase("discriminator", interval=2), Phase("generator"))

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.G = nn.Linear(8, VALUES)
        self.D = nn.Linear(VALUES, 1)

    def param_groups(self, phase: str = "main") -> dict[str, list[nn.Parameter]]:
        net = self.D if phase == "discriminator" else self.G
        return {"hidden": [], "decay": [net.weight], "no_decay": [net.bias]}

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        assert batch.pixels is not None
        fake = self.D(self.G(batch.draws.randn(8)))
        real = self.D(batch.pixels.flatten(1))
        sign = 1 if phase == "discriminator" else -1
        return {"loss": nn.functional.softplus(sign * (fake - real)).mean()}

    def sample(self, cond: Cond, seeds: Sequence[int], **options: Any) -> Tensor:
        z = torch.stack([Draws(s, 0, 0, 1, 1).randn(8)[0] for s in seeds])
        return self.G(z).view(-1, 4, SIDE, SIDE).clamp(-1, 1)


@dataclass
class TinySource:
    """Pictures of one random grey each; step `poison` holds a NaN; `pause` is in seconds a batch."""

    poison: int | None = None
    pause: float = 0.0
    rows: int = 12
    manifest_hash: str = "0" * 64
    asked: list[int] = field(default_factory=list)

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        time.sleep(self.pause)
        self.asked.append(step)
        draws = Draws(seed, step, start, stop, total)
        pixels = (2 * draws.rand(1, 1, 1) - 1).expand(-1, 4, SIDE, SIDE).clone()
        if step == self.poison:
            pixels[0, 0, 0, 0] = float("nan")
        return Batch(draws, pixels=pixels)

    def heldout(self, start: int, stop: int, seed: int) -> Batch | None:
        stop = min(stop, self.rows)
        return self.batch(2**31, 10**6 + start, 0, stop - start, stop - start) if start < stop else None


def build(config: dict[str, Any]) -> TinyDenoiser:
    """What the registry does, for TinyConfig."""
    assert config.pop("type") == "TinyConfig"
    return TinyDenoiser(TinyConfig(**config))


def tiny(seed: int = 0, **config: Any) -> TinyDenoiser:
    """A TinyDenoiser with the initial weights of `seed`."""
    torch.manual_seed(seed)
    return TinyDenoiser(TinyConfig(**config))


def dials(**changes: Any) -> TrainConfig:
    """A config for runs of a second."""
    quiet = {"sample_every": 0, "heldout_every": 0, "warmup": 2, "batch": 8, "steps": 12, "ema": 0.9}
    return TrainConfig.from_dict({**quiet, **changes})


def main() -> None:
    """Train: argv is the run folder, then the dials and the fields of the source and the model as JSON."""
    out, config, source, model = sys.argv[1:5]
    torch.set_num_threads(1)
    sys.modules["torch.utils.tensorboard"] = None  # slow to import
    report = train(tiny(**json.loads(model)), TinySource(**json.loads(source)), dials(**json.loads(config)), Path(out))
    print(json.dumps({"step": report.step, "reason": report.reason}))


if __name__ == "__main__":
    main()
