"""An exponential moving average of the trainable parameters, in fp32, with a warm-up of its decay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages `module`'s trainable parameters: ema <- decay * ema + (1 - decay) * parameter, once a step.

    The decay in step t (0 is the first) is min(decay, (1 + t) / (10 + t)), so the start is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._parameters: list[Tensor] = list(trainable.values())
        self.tensors: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in trainable.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), [p.float() for p in self._parameters], 1 - decay)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over saved averages, by name."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Inside, the module's parameters hold their averages; afterwards they are as before, bit for bit."""
        own = [p.detach().clone() for p in self._parameters]
        torch._foreach_copy_(self._parameters, list(self.tensors.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(self._parameters, own)
