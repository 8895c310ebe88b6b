"""A step on a GPU, without one: on the device `meta` it shows what is on another device, and what waits for numbers."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from training.techniques import Discs, build, dials, teacher

from imagewright.data.batch import Batch, Draws, TextTokens
from imagewright.models.consistency import Consistency
from imagewright.models.encoders import Codes
from imagewright.models.technique import Cond, Technique
from imagewright.training.loop import train
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


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at tensors that are no leaves
def test_equal_blocks_are_compiled_once_and_pictures_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    graphs: list[Any] = []
    plain = torch.nn.Module.compile

    def counted(module: torch.fx.GraphModule, example: Any) -> Any:
        graphs.append(module)
        return module.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **more: plain(self, backend=counted, **more))
    config = dials("diffusion", compile=True, steps=3, heldout_every=2, sample_every=2)
    drawn: list[int] = []

    def preview(technique: Technique, step: int, path: Path) -> None:
        technique.sample(Cond(["a disc"], [0]), [0], steps=2)
        drawn.append(step)

    train(build("diffusion"), Discs(32), config, tmp_path, preview=preview)
    assert drawn == [2] and len(graphs) == 2, "a block of the network and a layer of the text encoder"
