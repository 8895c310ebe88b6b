"""The one training contract that the four techniques keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from imagewright.data.batch import Batch


@dataclass(frozen=True)
class Phase:
    """A part of a training step with its own optimiser: `name`, and every how many steps it runs."""

    name: str = "main"
    interval: int = 1


@dataclass(frozen=True)
class Cond:
    """What to make, one row a picture: `prompts` and `negative` (texts), `style` (indices into STYLES)."""

    prompts: Sequence[str]
    style: Sequence[int]
    negative: Sequence[str] | None = None


class Technique(nn.Module, ABC):
    """A trainable image model. `config` is a frozen dataclass whose *type* names the class (models/registry.py)."""

    phases: ClassVar[tuple[Phase, ...]] = (Phase(),)
    config: Any

    @abstractmethod
    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """Scalars to log; `loss` is the one to minimise in this phase (mean over the rows of the batch)."""

    def param_groups(self, phase: str = "main") -> dict[str, list[nn.Parameter]]:
        """Parameters of the phase: `hidden` (2-D matrices inside blocks, fit for Muon), `decay` and `no_decay`
        (for AdamW). The default sorts all trainable parameters by shape and name."""
        return sort_parameters(self)

    @abstractmethod
    def sample(self, cond: Cond, seeds: Sequence[int], **options: Any) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1], premultiplied RGBA, one a seed; the same for a seed at any batch size."""


def sort_parameters(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters as `hidden` (weight matrices inside blocks), `decay` (other weights of two or more
    dimensions) and `no_decay` (the rest: biases, gains, positions, embeddings)."""
    groups: dict[str, list[nn.Parameter]] = {"hidden": [], "decay": [], "no_decay": []}
    tables = {m.weight for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or not name.endswith("weight") or parameter in tables:
            groups["no_decay"].append(parameter)
        elif parameter.ndim == 2 and "blocks." in name:
            groups["hidden"].append(parameter)
        else:
            groups["decay"].append(parameter)
    return groups
