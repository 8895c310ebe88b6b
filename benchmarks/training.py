"""Training speed of every technique: python benchmarks/training.py [--references]

For each technique's preset: pictures per second of a whole step (every phase's loss, backward pass, clipping,
optimiser, and the averages), its counted floating point operations, and their rate as a share of this machine's bf16
matrix product, measured in the same run. With `--references` also public code for the same kinds of model, beside ours
of equal batch and input, in fp32 and under bf16 autocast: a U-Net of equal widths, a decoder of equal width, depth and
length, and a VAE whose size is fixed by its authors (compare its share of the matrix product, not its pictures/s).

    pip install pythae denoising-diffusion-pytorch x-transformers

All data is random, of the real shapes. Measure on a quiet machine: another busy process costs more than half.
`--toy` shrinks batches and repeats, to see that everything runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from imagewright.data.batch import Batch, Draws, TextTokens
from imagewright.models import registry
from imagewright.models.gpt import GPTConfig
from imagewright.models.technique import Prompted, Technique
from imagewright.training.command import TRAINABLE
from imagewright.training.presets import PRESETS
from imagewright.training.state import TrainState

TOKENS = 12  # of a caption
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Speed:
    """What one step costs: `rows` pictures in `seconds`, `flops` operations, on `parameters` trained numbers."""

    rows: int
    seconds: float
    flops: float
    parameters: int

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return self.rows / self.seconds

    def line(self, gemm: float) -> str:
        """As columns of the table."""
        return (
            f"{self.rate:10.1f} {self.flops / self.rows / 1e9:10.3f} {self.parameters / 1e6:8.2f}"
            f" {self.flops / self.seconds / gemm:8.0%}"
        )


HEAD = f"{'':44} {'pictures/s':>10} {'GFLOP each':>10} {'M param':>8} {'of GEMM':>8}"


def seconds(call: Callable[[], object], times: int) -> float:
    """The median time of a call, after one that is not counted."""
    call()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[times // 2]


def product_rate(n: int) -> float:
    """FLOP/s of a bf16 matrix product."""
    a, b = torch.randn(2, n, n).bfloat16()
    return 2 * n**3 / seconds(lambda: a @ b, 9)


def measured(step: Callable[[], object], rows: int, parameters: int, times: int) -> Speed:
    """Count a step's operations, then time it."""
    with FlopCounterMode(display=False) as counter:
        step()
    return Speed(rows, seconds(step, times), counter.get_total_flops(), parameters)


def autocast(precision: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def random_batch(model: Technique, rows: int) -> Batch:
    """A batch of the shapes that the model trains on: latents or codes where it works on them, as in a run."""
    size = model.pixels
    pixels = torch.rand(rows, 4, size, size) * 2 - 1
    latents = None
    if hasattr(getattr(model.config, "encoder", None), "autoencoder"):
        with torch.no_grad():
            latents = model.encoder.encode(pixels)
    text = TextTokens(
        torch.randint(1000, (rows, TOKENS)),
        torch.zeros(rows, TOKENS, 8, dtype=torch.long),
        torch.ones(rows, TOKENS, dtype=torch.bool),
    )
    draws = Draws(0, 0, 0, rows, rows)
    return Batch(draws, pixels=pixels, latents=latents, text=text, style=torch.ones(rows).long(), step=0)


def whole_step(model: Technique, config: Any, rows: int, precision: str) -> tuple[Callable[[], None], int]:
    """A step of our loop, and how many parameters it trains."""
    state, batch = TrainState(model, config), random_batch(model, rows)
    model.train()

    def step() -> None:
        for phase in model.phases:
            if state.step % phase.interval:
                continue
            optimizers = state.optimizers[phase.name]
            with state.only(optimizers.parameters):
                with autocast(precision):
                    loss = model.loss(batch, phase.name)["loss"]
                loss.backward()
            torch.nn.utils.clip_grad_norm_(optimizers.parameters, config.clip or float("inf"))
            optimizers.step(1.0)
        state.ema.update(state.step)

    return step, sum(p.numel() for p in state.trainable)


def ours(technique: str, preset: str, gemm: float, options: argparse.Namespace) -> None:
    """Print a preset's speed and its largest costs."""
    row = PRESETS[technique][preset]
    rows = options.rows or row.train.batch
    step, parameters = whole_step(registry.build(row.model), row.train, rows, row.train.precision)
    speed = measured(step, rows, parameters, options.times)
    print(f"{f'{technique} {preset}, batch {rows}, {row.train.precision}':44} {speed.line(gemm)}")
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    print("    " + ", ".join(f"{e.key} {e.self_cpu_time_total / total:.0%}" for e in events[:3]))


def their_step(model: nn.Module, loss: Callable[[], Tensor], precision: str) -> Callable[[], None]:
    """A step of the usual loop: loss, backward pass, clipping, AdamW."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    model.train()

    def step() -> None:
        with autocast(precision):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def pythae_vae(rows: int) -> tuple[str, nn.Module, Callable[[], Tensor], Any]:
    """The convolutional VAE of pythae for 64 px, and ours of as many latents."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.nn.benchmarks.celeba import Decoder_Conv_AE_CELEBA, Encoder_Conv_VAE_CELEBA

    own = PRESETS["vae"]["conv"]
    config = VAEConfig(input_dim=(3, 64, 64), latent_dim=own.model.latent)
    model = VAE(config, encoder=Encoder_Conv_VAE_CELEBA(config), decoder=Decoder_Conv_AE_CELEBA(config))
    data = {"data": torch.rand(rows, 3, 64, 64)}
    return "pythae VAE (celeba conv)", model, lambda: model(data).loss, own


def lucidrains_unet(rows: int) -> tuple[str, nn.Module, Callable[[], Tensor], Any]:
    """The U-Net of denoising-diffusion-pytorch, and ours, at equal widths on the same folded pixels."""
    with without_torchvision():
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    own = PRESETS["diffusion"]["unet"]
    network, size = own.model.network, own.model.encoder.size
    channels, side = 4 * network.patch**2, size // network.patch
    multiples = tuple(width // network.widths[0] for width in network.widths)
    unet = Unet(dim=network.widths[0], dim_mults=multiples, channels=channels)
    model = GaussianDiffusion(unet, image_size=side, objective="pred_v")
    x = torch.rand(rows, channels, side, side)
    return "denoising-diffusion-pytorch Unet", model, lambda: model(x), own


def x_transformers_decoder(rows: int) -> tuple[str, nn.Module, Callable[[], Tensor], Any]:
    """The decoder of x-transformers, and our GPT, at equal width, depth, heads, vocabulary and length."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    own = PRESETS["autoregressive"]["cpu"]
    config: GPTConfig = own.model
    codes, length = config.encoder.autoencoder.codes, config.encoder.autoencoder.positions
    layers = Decoder(
        dim=config.width, depth=config.depth, heads=config.heads, attn_dim_head=config.width // config.heads,
        rotary_pos_emb=True, attn_dropout=config.dropout, ff_dropout=config.dropout,
    )  # fmt: skip
    wrapped = TransformerWrapper(num_tokens=codes, max_seq_len=length, attn_layers=layers)
    model = AutoregressiveWrapper(wrapped)
    x = torch.randint(codes, (rows, length + 1))
    return "x-transformers Decoder", model, lambda: model(x), own


REFERENCES = (pythae_vae, lucidrains_unet, x_transformers_decoder)


@contextmanager
def without_torchvision() -> Iterator[None]:
    """denoising-diffusion-pytorch imports torchvision for its data loader only; where it is missing or built for
    another torch, an empty one stands in."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        empty = ModuleType("torchvision")
        empty.transforms, empty.utils = ModuleType("transforms"), ModuleType("utils")  # type: ignore[attr-defined]
        sys.modules["torchvision"] = empty
    yield


def beside(reference: Callable[[int], Any], gemm: float, options: argparse.Namespace) -> None:
    """Print a public model beside ours, in both precisions, and how many times as fast ours is."""
    rows = options.rows or options.reference_rows
    try:
        name, model, loss, own = reference(rows)
    except ImportError as error:
        print(f"{reference.__name__}: not measured, {error.name} is missing; see the top of this file")
        return
    technique = registry.build(own.model)
    with_words = " with words" if isinstance(technique, Prompted) else ""
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for precision in PRECISIONS:
        theirs = measured(their_step(model, loss, precision), rows, parameters, options.times)
        print(f"{f'{name}, batch {rows}, {precision}':44} {theirs.line(gemm)}")
        step, count = whole_step(registry.build(own.model), replace(own.train, muon=False), rows, precision)
        mine = measured(step, rows, count, options.times)
        print(
            f"{f'  ours{with_words}, {precision}':44} {mine.line(gemm)}   {mine.rate / theirs.rate:.2f} times as fast"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--only", nargs="*", default=TRAINABLE, choices=TRAINABLE, help="techniques")
    parser.add_argument("--rows", type=int, default=0, help="the batch; default: the preset's")
    parser.add_argument("--reference-rows", type=int, default=64, help="the batch beside public code")
    parser.add_argument("--references", action="store_true", help="measure public code too")
    parser.add_argument("--toy", action="store_true", help="tiny presets, small batches, once")
    options = parser.parse_args()
    if options.toy:
        options.preset, options.rows, options.times = "tiny", 2, 1
    torch.set_num_threads(options.threads)
    gemm = product_rate(256 if options.toy else 2048)
    print(f"bf16 matrix product: {gemm / 1e9:.0f} GFLOP/s on {options.threads} threads\n{HEAD}")
    for technique in options.only:
        ours(technique, options.preset, gemm, options)
    for reference in REFERENCES if options.references else ():
        beside(reference, gemm, options)


if __name__ == "__main__":
    main()
