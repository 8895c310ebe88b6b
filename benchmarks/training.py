"""Training speed of the CPU presets as a share of this machine's matrix product rate: python benchmarks/training.py

Everything is measured in one run, on random data of the real shapes: the bf16 rate of a 2048 x 2048 x 2048 product,
pictures per second of a whole step (loss, backward, clipping, optimiser), its counted floating point operations, and
the three operations that take the most time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from imagewright.data.batch import Batch, Draws, TextTokens
from imagewright.models import registry
from imagewright.models.diffusion import DiffusionConfig
from imagewright.models.technique import Technique
from imagewright.training.optim import build_optimizers
from imagewright.training.presets import PRESETS


def seconds(call: Callable[[], object], times: int) -> float:
    """The median time of a call, after one that is not counted."""
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[times // 2]


def product_rate(n: int = 2048) -> float:
    """FLOP/s of a bf16 matrix product."""
    a, b = torch.randn(2, n, n).bfloat16()
    return 2 * n**3 / seconds(lambda: a @ b, 9)


def random_batch(model: Technique, rows: int, tokens: int = 12) -> Batch:
    """A batch of the shapes that the model trains on."""
    draws, config = Draws(0, 0, 0, rows, rows), model.config
    if not isinstance(config, DiffusionConfig):
        return Batch(draws, pixels=torch.rand(rows, config.channels, config.size, config.size) * 2 - 1)
    ids = torch.randint(config.text.vocab, (rows, tokens))
    text = TextTokens(ids, torch.zeros(rows, tokens, 8, dtype=torch.long), torch.ones(rows, tokens, dtype=torch.bool))
    return Batch(draws, latents=torch.randn(rows, *model.encoder.shape), text=text, style=torch.ones(rows).long())


def measure(technique: str, rows: int, times: int) -> None:
    """Print a preset's speed and its largest costs."""
    preset = PRESETS[technique]["cpu"]
    model = registry.build(preset.model)
    optimizers = build_optimizers(model, "main", preset.train)
    batch = random_batch(model, rows)

    def forward_backward() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(batch)["loss"]
        loss.backward()

    def step() -> None:
        forward_backward()
        torch.nn.utils.clip_grad_norm_(optimizers.parameters, preset.train.clip)
        optimizers.step(1.0)

    with FlopCounterMode(display=False) as counter:
        forward_backward()
    rate, taken = product_rate(), seconds(step, times)
    share = counter.get_total_flops() / taken / rate
    print(
        f"{technique}: {rows / taken:.0f} pictures/s, {counter.get_total_flops() / rows / 1e9:.2f} GFLOP each,"
        f" {share:.0%} of the {rate / 1e9:.0f} GFLOP/s of a bf16 product"
    )
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    for event in events[:3]:
        print(f"  {event.self_cpu_time_total / total:4.0%}  {event.key}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measure("autoencoder", 32, arguments.times)
    measure("diffusion", 128, arguments.times)
