"""Several processes as one: under `torchrun`, each takes its rows of the global batch.

Plain torch.distributed, gloo on CPU and nccl on GPU; rank and world size come from the environment, which
`accelerate launch --multi_gpu` sets alike. Gradients are averaged in one flat bucket, weighted by rows, so
any world size computes the same step up to rounding. All processes must see the same run folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imagewright.errors import TrainingError


def local_device() -> torch.device:
    """Where this process should put its model: its own GPU if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process (`rank`) among `size`. With one process every method is free."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def rows(self, total: int) -> tuple[int, int]:
        """This process's rows [start, stop) of `total`."""
        return total * self.rank // self.size, total * (self.rank + 1) // self.size

    def mean(self, values: Tensor, share: float) -> Tensor:
        """`values` averaged over the processes, each weighted by its `share` of the rows."""
        if self.size == 1:
            return values
        weighted = values * share
        dist.all_reduce(weighted)
        return weighted

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        """Replace the gradients with their weighted mean; a missing one counts as zero, at any world size."""
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        if self.size > 1:
            grads = [p.grad for p in parameters if p.grad is not None]
            flat = self.mean(torch.cat([g.reshape(-1) for g in grads]), share)
            for grad, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.size == 1:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared)
        return bool(shared.item())

    def first(self, number: int) -> int:
        """The `number` of rank 0."""
        if self.size == 1:
            return number
        shared = torch.tensor(number, device=self.device)
        dist.broadcast(shared, src=0)
        return int(shared.item())

    @torch.no_grad()
    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite `tensors` with those of rank 0."""
        if self.size > 1:
            for tensor in tensors:
                shared = tensor.contiguous()
                dist.broadcast(shared, src=0)
                tensor.copy_(shared)

    def check_same(self, step: int) -> None:
        """Wait for all processes. Raises TrainingError unless all go on from the same step."""
        if self.size > 1:
            first = torch.tensor(step, device=self.device)
            dist.broadcast(first, src=0)
            if self.any(first.item() != step):
                raise TrainingError(
                    "The processes do not see the same checkpoints.",
                    "Use a run folder that all machines share.",
                )


@contextmanager
def join(device: torch.device) -> Iterator[World]:
    """The world that the environment describes; a lone process where it describes none."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device)
        return
    started = not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device, dist.get_rank(), dist.get_world_size())
    finally:
        if started:
            dist.destroy_process_group()
