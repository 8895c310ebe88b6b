"""How fast the shipped model makes a picture, beside torch and diffusers: python benchmarks/embedded.py

One run measures: `imagewright generate` as a whole cold process (time, peak memory); the same model warm in ONNX
Runtime; the same network in torch, eager (fp32, bf16) and compiled; and, where diffusers is installed, its DiTPipeline
with a transformer of the same width, depth and patch. All at guidance (two rows a step), decoder included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from imagewright.engines.embedded import ExportedModel
from imagewright.request import ImageRequest


def milliseconds(call: Callable[[], object], times: int) -> str:
    """Median and range of a call's time, after one that is not counted."""
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    return f"{statistics.median(taken):7.0f} ms  ({min(taken):.0f} to {max(taken):.0f})"


def cold(times: int) -> str:
    """The whole command in a process of its own."""
    taken, memory = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "imagewright", "generate", "a red fox", "--seed", "1", "-o"]
        for i in range(times + 1):
            start = time.perf_counter()
            process = subprocess.Popen([*command, str(Path(folder) / f"{i}.png")], stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            taken.append(time.perf_counter() - start)
            memory = max(memory, usage.ru_maxrss / 1024)
            assert status == 0
    return f"{1000 * statistics.median(taken[1:]):7.0f} ms  (largest {memory:.0f} MiB)"


def embedded(folder: Path, steps: int, times: int) -> str:
    """The exported model, warm."""
    model = ExportedModel(folder)
    request = ImageRequest(prompt="a red fox", seed=1, num_inference_steps=steps)
    return milliseconds(lambda: model.generate(request), times)


def torch_paths(steps: int, times: int, compiled: bool) -> None:
    """The network that the cpu preset builds, with random weights: speed does not depend on them."""
    import torch

    from imagewright.models import registry
    from imagewright.models.technique import Cond
    from imagewright.training.presets import PRESETS

    model = registry.build(PRESETS["diffusion"]["cpu"].model).eval()
    once = lambda: model.sample(Cond(["a red fox"], [0]), [1], steps=steps)  # noqa: E731
    print(f"torch eager fp32      {milliseconds(once, times)}")
    with torch.autocast("cpu", torch.bfloat16):
        print(f"torch eager bf16      {milliseconds(once, times)}")
    if compiled:
        model.compile_()
        print(f"torch compiled fp32   {milliseconds(once, times)}")


def diffusers_path(steps: int, times: int) -> None:
    """diffusers' DiTPipeline: same width, depth and patch, latents of the same shape; its own small autoencoder."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    from imagewright.training.presets import PRESETS

    config = PRESETS["diffusion"]["cpu"].model
    network, autoencoder = config.network, config.encoder.autoencoder
    channels, side, _ = autoencoder.latent_shape
    transformer = DiTTransformer2DModel(
        num_attention_heads=network.heads,
        attention_head_dim=network.width // network.heads,
        in_channels=channels,
        out_channels=channels,
        num_layers=network.depth,
        sample_size=side,
        patch_size=network.patch,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, *autoencoder.widths),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=channels,
        norm_num_groups=8,
    )
    pipeline = DiTPipeline(transformer, vae, DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    call = lambda: pipeline([1], num_inference_steps=steps, guidance_scale=3.0, output_type="np")  # noqa: E731
    print(f"diffusers DiTPipeline {milliseconds(call, times)}")


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path(str(files("imagewright"))) / "assets" / "stickers-diffusion")
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also torch.compile (takes a minute or more)")
    arguments = parser.parse_args()
    times, model = arguments.times, ExportedModel(arguments.model)
    own = model.description["sampling"]["steps"]
    print(f"{len(os.sched_getaffinity(0))} cores, {model.description['name']}, numpy {np.__version__}")
    print(f"cold command          {cold(times)}")
    for steps in sorted({4, own}):
        print(f"-- {steps} steps")
        print(f"embedded, warm        {embedded(arguments.model, steps, times)}")
        torch_paths(steps, times, arguments.compile and steps == own)
        if find_spec("diffusers"):
            diffusers_path(steps, times)
        else:
            print("diffusers is not installed: pip install diffusers")


if __name__ == "__main__":
    main()
