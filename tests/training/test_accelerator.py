"""A step on a GPU, without one: on the device `meta` it shows what is on another device, and what waits for numbers."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from training.techniques import build, dials, teacher

from imagewright.data.batch import Batch, Draws, TextTokens
from imagewright.models.consistency import Consistency
from imagewright.models.encoders import Codes
from imagewright.models.technique import Technique
from imagewright.training.presets import PRESETS
from imagewright.training.state import TrainState

AWAY = torch.device("meta")
WITHOUT_CACHE = ("upscaler",)  # their batches come from a source of their own
TRAINED = [name for name, rows in PRESETS.items() if {"gpu", "tiny"} <= rows.keys() and name not in WITHOUT_CACHE]


class DrawsAway(Draws):
    """Draws on the device, which has no generator."""

    def __init__(self, total: int) -> None:
        self.start, self.stop, self.total = 0, total, total

    def rand(self, *shape: int) -> torch.Tensor:
        return torch.empty(self.total, *shape, device=AWAY)

    randn = rand


def batch_of(technique: Technique, rows: int = 4) -> Batch:
    """What a ResidentSource gives."""
    encoder, side = getattr(technique, "encoder", None), technique.pixels
    shown: dict[str, Any] = {"pixels": torch.empty(rows, 4, side, side, device=AWAY)}
    if hasattr(encoder, "shape"):
        kind = torch.long if isinstance(encoder, Codes) else torch.float32
        x = torch.empty(rows, *encoder.shape, dtype=kind, device=AWAY)  # type: ignore[union-attr]
        shown = {"latents": x, "before": x, "edited": torch.empty(rows, dtype=torch.bool, device=AWAY)}
    ids = torch.empty(rows, 24, dtype=torch.long, device=AWAY)
    text = TextTokens(ids, ids[..., None].expand(-1, -1, 8), ids == 0)
    return Batch(DrawsAway(rows), text=text, style=ids[:, 0], step=3, **shown)


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_stays_on_the_device_and_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *a, fused, **more: adamw(*a, **more))
    monkeypatch.setattr(torch, "autocast", lambda *a, **more: nullcontext())
    technique = build(name).to(AWAY).train()
    if isinstance(technique, Consistency):
        technique.learn_from(teacher())
    state, batch = TrainState(technique, dials(name, muon=True)), batch_of(technique)
    for phase in technique.phases:
        optimizers = state.optimizers[phase.name]
        with state.only(optimizers.parameters):
            losses = technique.loss(batch, phase.name)
        torch.autograd.backward(losses["loss"])
        torch.nn.utils.clip_grad_norm_(optimizers.parameters, 1.0)
        optimizers.step(0.5)
    state.ema.update(3)
    assert all(value.device == AWAY for value in losses.values())
