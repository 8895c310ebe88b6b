"""What a GPU needs so as never to wait for the processor, or the processor for it. On a CPU all of it is nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

GRAPHS = 64  # shapes that one kind of block may be compiled for: a picture's levels, with gradients and without


def make_ready(device: torch.device) -> None:
    """Let float32 products run in TF32, and convolutions choose their fastest form."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def allow_many_graphs() -> None:
    """Let torch.compile keep a version of a block for each shape it meets, where it would give up after eight."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = GRAPHS


def fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16; a processor that only imitates it takes 3.7 times as long as in
    float32."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def later(values: Tensor) -> Callable[[], list[float]]:
    """What gives the numbers in `values`. They are copied when the device comes to it: only asking for them waits, and
    only for what was to be done before they were."""
    if values.device.type == "cpu":
        return values.tolist
    copied, done = values.to("cpu", non_blocking=True), torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def numbers() -> list[float]:
        done.synchronize()
        found: list[float] = copied.tolist()
        return found

    return numbers
