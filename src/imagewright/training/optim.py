"""Optimisers and the learning-rate schedule.

Muon (K. Jordan, 2024, kellerjordan.github.io/posts/muon; arXiv:2502.16982 at scale) for matrices inside
blocks, AdamW (arXiv:1711.05101) for the rest. Deviation: matrices of equal shape are orthogonalised as one
stack, so that a CPU does a few large products instead of many small ones.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from imagewright.models.technique import Phase, Technique
from imagewright.training.accelerator import fast_bfloat16
from imagewright.training.config import TrainConfig

BETAS = (0.9, 0.95)
NEWTON_SCHULZ = (
    3.4445,
    -4.7750,
    2.0315,
)  # a quintic with a steep slope at 0: singular values end in about 0.7-1.2


def lr_scale(step: int, config: TrainConfig) -> float:
    """What the learning rates are multiplied by in step `step` (0 is the first), in [0, 1]."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    left = max(0, config.steps - step)  # of the steps, this one included
    if config.schedule == "wsd":
        return min(1.0, left / max(1.0, config.cooldown * config.steps))
    return 0.5 - 0.5 * math.cos(math.pi * left / max(1, config.steps - config.warmup))


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Roughly the nearest semi-orthogonal matrix to each of `g` (..., rows, cols), in bfloat16 where that is fast."""
    a, b, c = NEWTON_SCHULZ
    x: Tensor = g.bfloat16() if fast_bfloat16(g.device) else g.float()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # the largest singular value is now at most 1
    for _ in range(steps):
        gram = x @ x.mT  # (..., r, r), r the shorter side
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update is orthogonalised; for matrices, and for convolutions (out, in * h * w)."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, same in shapes.items():
                wanted = torch.stack(self._nesterov(same, group["momentum"])).flatten(2)  # (n, rows, cols)
                update = orthogonalise(wanted).to(same[0].dtype).view(-1, *shape)
                torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
                scale = group["lr"] * math.sqrt(max(1, wanted.size(1) / wanted.size(2)))
                torch._foreach_add_(same, list(update.unbind()), alpha=-scale)

    def _nesterov(self, params: list[Tensor], momentum: float) -> list[Tensor]:
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return list(torch._foreach_lerp(grads, buffers, momentum))


class Optimizers:
    """The optimisers of one phase, stepped together. `parameters`: those of the phase, in a fixed order."""

    def __init__(self, groups: dict[str, list[nn.Parameter]], config: TrainConfig, phase: Phase = Phase()) -> None:
        hidden, decay, no_decay = (groups.get(name, []) for name in ("hidden", "decay", "no_decay"))
        self.parameters = [*hidden, *decay, *no_decay]
        self.members: list[torch.optim.Optimizer] = []
        if config.muon and hidden:
            self.members.append(Muon(hidden, lr=config.muon_lr, weight_decay=config.weight_decay))
        else:
            decay = [*hidden, *decay]
        adamw = [
            {"params": decay, "weight_decay": config.weight_decay},
            {"params": no_decay, "weight_decay": 0.0},
        ]
        if decay or no_decay:
            used = [g for g in adamw if g["params"]]
            self.members.append(torch.optim.AdamW(used, lr=config.lr, betas=phase.betas or BETAS, eps=1e-8, fused=True))
        for group in self._groups():
            group["full_lr"] = group["lr"] * phase.lr  # type: ignore[operator]

    def _groups(self) -> list[dict[str, object]]:
        return [group for member in self.members for group in member.param_groups]

    def step(self, scale: float) -> None:
        """One update at `scale` times the configured learning rates."""
        for group in self._groups():
            group["lr"] = group["full_lr"] * scale  # type: ignore[operator]
        for member in self.members:
            member.step()
            member.zero_grad(set_to_none=True)

    def state_tensors(self, names: dict[Tensor, str]) -> dict[str, Tensor]:
        """The state as {"parameter name|key": tensor}."""
        return {
            f"{names[p]}|{key}": value
            for member in self.members
            for p, state in member.state.items()
            for key, value in state.items()
        }

    def load_tensor(self, name: str, key: str, value: Tensor, names: dict[Tensor, str]) -> None:
        """Put one of `state_tensors` back; if it is shaped like its parameter, it takes its memory layout."""
        for member in self.members:
            for p in (p for group in member.param_groups for p in group["params"] if names[p] == name):
                like = p.detach() if value.shape == p.shape else value
                member.state[p][key] = torch.empty_like(like, device=p.device).copy_(value)


def build_optimizers(technique: Technique, phase: Phase, config: TrainConfig) -> Optimizers:
    """The optimisers of `phase`: Muon for the hidden matrices if `config.muon`, AdamW for the rest."""
    return Optimizers(technique.param_groups(phase.name), config, phase)
