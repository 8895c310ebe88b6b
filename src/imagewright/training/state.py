"""What changes while a run goes on, and how it gets into a checkpoint and back."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagewright import __version__
from imagewright.errors import CheckpointError, TrainingError
from imagewright.models.technique import Technique
from imagewright.training.checkpoint import Snapshot, load_snapshot
from imagewright.training.config import TrainConfig
from imagewright.training.ema import Ema
from imagewright.training.optim import Optimizers, build_optimizers


class TrainState:
    """The weights, their averages, the optimisers of each phase, and the number of steps done.

    Raises TrainingError if a trainable parameter belongs to no phase.
    """

    def __init__(self, technique: Technique, config: TrainConfig) -> None:
        self.technique = technique
        self.ema = Ema(technique, config.ema)
        self.optimizers: dict[str, Optimizers] = {
            phase.name: build_optimizers(technique, phase, config) for phase in technique.phases
        }
        self.trainable: list[Tensor] = [p for p in technique.parameters() if p.requires_grad]
        self.names: dict[Tensor, str] = {p: name for name, p in technique.named_parameters()}
        self.step = 0
        covered = {p for optimizers in self.optimizers.values() for p in optimizers.parameters}
        if idle := [self.names[p] for p in self.trainable if p not in covered]:
            raise TrainingError(f"No phase trains {', '.join(idle)}.", "Add them to param_groups or freeze them.")

    @contextmanager
    def only(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Inside, no trainable parameter but `parameters` asks for a gradient."""
        others = set(self.trainable) - set(parameters)
        for p in others:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in others:
                p.requires_grad_(True)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimisers' state as {"phase|parameter name|key": tensor}."""
        return {
            f"{phase}|{name}": tensor
            for phase, optimizers in self.optimizers.items()
            for name, tensor in optimizers.state_tensors(self.names).items()
        }

    def tensors(self) -> list[Tensor]:
        """All that a checkpoint holds."""
        weights = self.technique.state_dict().values()
        return [*weights, *self.ema.tensors.values(), *self.optimizer_tensors().values()]

    def snapshot(self, config: Mapping[str, Any], extra: Mapping[str, Any]) -> Snapshot:
        """This state, ready to be saved with `config` and the JSON values `extra`."""
        return Snapshot(self.step, config, self.technique, self.ema.tensors, self.optimizer_tensors(), extra)

    def restore(self, path: Path) -> dict[str, Any]:
        """Take over checkpoint `path`; return the `extra` saved with it. Raises CheckpointError."""
        ema, optimizer, extra = load_snapshot(path, self.technique)
        self.ema.load(ema)
        for key, tensor in optimizer.items():
            phase, name, entry = key.split("|")
            self.optimizers[phase].load_tensor(name, entry, tensor, self.names)
        self.step = extra["step"]
        return extra


def describe(technique: Technique, config: TrainConfig, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` holds, as plain JSON values. `facts`: where the data and the first stage come from."""
    from imagewright.models import registry

    found = {
        "format": 1,
        "model": registry.to_dict(technique.config),
        "train": config.to_dict(),
        **facts,
        "software": {
            "imagewright": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], out: Path) -> list[str]:
    """The dials and the data that changed since `saved`, which a run may go on with, as `key: old -> new`.

    Raises CheckpointError if the model, its first stage, its teacher or its kind of optimiser is another.
    """
    from imagewright.models import registry

    older = json.loads(json.dumps(registry.completed(saved["model"])))
    model = differences(older, now["model"], "model.")
    dials = differences(saved["train"], now["train"], "train.")
    sources = ("first_stage", "teacher")
    parts = [d for key in sources for d in differences(_known(saved, key, now), _known(now, key, saved))]
    wrong = [*model, *parts, *(d for d in dials if d.startswith("train.muon:"))]
    if wrong:
        raise CheckpointError(
            f"{out} holds another run: {'; '.join(wrong)}.", "Use the same options or another folder."
        )
    data = ("manifest_hash", "condition")
    return [*dials, *(d for key in data for d in differences(_known(saved, key, now), _known(now, key, saved)))]


def _known(values: Mapping[str, Any], key: str, other: Mapping[str, Any]) -> dict[str, Any]:
    """The value of `key` where both have one: older runs do not say all of it."""
    return {key: values[key]} if key in values and key in other else {}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for each key whose values differ."""
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return [f"{prefix}{k}: {old.get(k)} -> {new.get(k)}" for k in keys]
