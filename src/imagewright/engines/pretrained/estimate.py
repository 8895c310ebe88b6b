"""How long a picture will take, told before it starts: operations counted, and a second's calibration.

The operations of one denoising step and of the decoder are counted on meta tensors (shapes without numbers), apart
for convolutions, matrix products and attention, since machines run these at rates of their own. The rates are
measured once for each machine, number format and backend, on layers like Stable Diffusion's, and kept.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from imagewright.engines.pretrained import fast

NOTE_FROM = 20.0  # seconds: a run longer than this is announced
_LEAST = 0.25  # seconds that each calibration takes
_CLIP_TOKENS, _T5_TOKENS = 77, 256
_KINDS = {"convolution": "convolution", "bmm": "attention"}  # of an operation; the rest are matrix products
_FURTHER_INPUTS = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds")  # networks with these are others


@dataclass(frozen=True)
class Work:
    """Floating-point operations by kind."""

    convolution: float = 0.0
    product: float = 0.0
    attention: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.convolution + self.product + self.attention

    def seconds(self, rates: Rates) -> float:
        """How long this takes at `rates`."""
        return float(sum(amount / rate for amount, rate in zip(astuple(self), astuple(rates), strict=True)))


@dataclass(frozen=True)
class Rates:
    """Operations a second, by kind."""

    convolution: float
    product: float
    attention: float


@dataclass(frozen=True)
class Estimate:
    """What a run will take: seconds in all, of a step and of decoding, and the operations (FLOP) in all."""

    seconds: float
    step_seconds: float
    decode_seconds: float
    flops: float
    steps: int

    def __str__(self) -> str:
        return f"about {_span(self.seconds)}: {self.steps} steps of {_span(self.step_seconds)}"


def _span(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(pipe: Any, width: int, height: int, steps: int, guidance: float, images: int = 1) -> Estimate | None:
    """What `steps` steps of a loaded pipeline will take at `width` x `height` pixels, reading and decoding included.

    None where its networks are of a kind that is not counted here.
    """
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if denoiser is None:
        return None
    rows = images * (2 if guidance > 1 and _takes_guidance(denoiser) else 1)
    side = getattr(pipe, "vae_scale_factor", 8)
    step = denoising(denoiser, height // side, width // side, rows)
    if step is None:
        return None
    decode = decoding(getattr(pipe, "vae", None), height // side, width // side, images)
    text = reading([m for name, m in pipe.components.items() if name.startswith("text_encoder") and m], rows)
    device = str(getattr(pipe, "_execution_device", "cpu"))
    rates = calibrated(denoiser.dtype, device, fast.active(pipe))
    own = calibrated(denoiser.dtype, device, False)  # text encoders stay with torch
    step_seconds, decode_seconds = step.seconds(rates), decode.seconds(rates)
    return Estimate(
        steps * step_seconds + decode_seconds + text.seconds(own),
        step_seconds,
        decode_seconds,
        steps * step.total + decode.total + text.total,
        steps,
    )


def _takes_guidance(denoiser: nn.Module) -> bool:
    """Whether guidance is a second row beside the first, and not distilled into the network."""
    config: Mapping[str, Any] = denoiser.config  # type: ignore[assignment]
    return config.get("time_cond_proj_dim") is None and not type(denoiser).__name__.startswith("Flux")


def denoising(module: nn.Module, height: int, width: int, rows: int) -> Work | None:
    """The work of one step of a diffusers denoiser on latents of (rows, channels, height, width).

    Of a transformer that is not known here its attention is left out; of another network there is None.
    """
    config: Mapping[str, Any] = module.config  # type: ignore[assignment]
    network: Any = type(module)
    kind = network.__name__
    usual = config.get("addition_embed_type") in (None, "text_time")
    if kind in _INPUTS and usual and not any(config.get(name) for name in _FURTHER_INPUTS):
        return _counted(network, _as_text(config), height, width, rows)
    if kind in _INPUTS or "Transformer" not in kind:
        return None
    tokens = height * width / (config.get("patch_size") or 2) ** 2
    return Work(product=2.0 * tokens * rows * sum(p.numel() for p in module.parameters()))


def decoding(vae: nn.Module | None, height: int, width: int, images: int) -> Work:
    """The work of an autoencoder's decoder; none where it is not of pictures."""
    if vae is None or type(vae).__name__ not in ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"):
        return Work()
    config: Mapping[str, Any] = vae.config  # type: ignore[assignment]
    network: Any = type(vae)
    return _counted(network, _as_text(config), height, width, images)


def reading(encoders: list[nn.Module], rows: int) -> Work:
    """The work of text encoders: each number once for each token."""
    work = 0.0
    for encoder in encoders:
        tokens = _CLIP_TOKENS if "CLIP" in type(encoder).__name__ else _T5_TOKENS
        work += 2.0 * tokens * rows * sum(p.numel() for p in encoder.parameters())
    return Work(product=work)


def _as_text(config: Mapping[str, Any]) -> str:
    public = {name: value for name, value in config.items() if not name.startswith("_")}
    return json.dumps(public, sort_keys=True)


@cache
def _counted(kind: type[Any], config_text: str, height: int, width: int, rows: int) -> Work:
    config = json.loads(config_text)
    with torch.device("meta"):
        module = kind.from_config(config)
        if kind.__name__ in _INPUTS:
            inputs = _INPUTS[kind.__name__](config, height, width, rows)
        else:
            module, z = module.decoder, torch.empty(rows, config["latent_channels"], height, width)
            inputs = {next(iter(signature(module.forward).parameters)): z}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(**inputs)
    found = {"convolution": 0.0, "product": 0.0, "attention": 0.0}
    for operation, amount in counter.get_flop_counts()["Global"].items():
        name = str(operation).removeprefix("aten.")
        found[_KINDS.get(name, "attention" if "attention" in name else "product")] += amount
    return Work(**found)


def _unet(config: Mapping[str, Any], height: int, width: int, rows: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "sample": torch.empty(rows, config["in_channels"], height, width),
        "timestep": torch.empty(rows),
        "encoder_hidden_states": torch.empty(rows, _CLIP_TOKENS, config["cross_attention_dim"]),
    }
    if config.get("addition_embed_type") == "text_time":  # SDXL
        numbers = 6
        text = config["projection_class_embeddings_input_dim"] - numbers * config["addition_time_embed_dim"]
        pooled = {"text_embeds": torch.empty(rows, text), "time_ids": torch.empty(rows, numbers)}
        inputs["added_cond_kwargs"] = pooled
    return inputs


def _sd3(config: Mapping[str, Any], height: int, width: int, rows: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.empty(rows, config["in_channels"], height, width),
        "encoder_hidden_states": torch.empty(rows, _CLIP_TOKENS + _T5_TOKENS, config["joint_attention_dim"]),
        "pooled_projections": torch.empty(rows, config["pooled_projection_dim"]),
        "timestep": torch.empty(rows),
    }


def _flux(config: Mapping[str, Any], height: int, width: int, rows: int) -> dict[str, Any]:
    tokens, words = (height // 2) * (width // 2), 2 * _T5_TOKENS
    inputs = {
        "hidden_states": torch.empty(rows, tokens, config["in_channels"]),
        "encoder_hidden_states": torch.empty(rows, words, config["joint_attention_dim"]),
        "pooled_projections": torch.empty(rows, config["pooled_projection_dim"]),
        "timestep": torch.empty(rows),
        "img_ids": torch.empty(tokens, 3),
        "txt_ids": torch.empty(words, 3),
    }
    return {**inputs, "guidance": torch.empty(rows)} if config.get("guidance_embeds") else inputs


_INPUTS = {"UNet2DConditionModel": _unet, "SD3Transformer2DModel": _sd3, "FluxTransformer2DModel": _flux}


class _Convolution(nn.Module):
    """A residual block's half."""

    inputs = ((2, 320, 48, 48),)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(32, 320), nn.Conv2d(320, 320, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(F.silu(self.norm(x + 1)))  # type: ignore[no-any-return]


class _Product(nn.Module):
    """A gated feed-forward layer."""

    inputs = ((1, 2048, 640),)

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(640), nn.Linear(640, 5120), nn.Linear(2560, 640)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return x + self.down(value * F.gelu(gate))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Self-attention's middle."""

    inputs = ((1, 2048, 8, 64),) * 3

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        heads = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return heads.transpose(1, 2).flatten(2)  # (1, 2048, 512)


@cache
def calibrated(dtype: torch.dtype, device: str, openvino: bool) -> Rates:
    """This machine's rates; measured on the first call (a second or two), then read from the cache folder."""
    file = user_cache_path("imagewright") / "speed.json"
    key = "|".join((_processor(device), str(torch.get_num_threads()), str(dtype), "openvino" if openvino else "torch"))
    known = _read(file)
    if key not in known:
        known[key] = asdict(
            Rates(*(_rate(kind(), dtype, device, openvino) for kind in (_Convolution, _Product, _Attention)))
        )
        _write(file, known)
    return Rates(**known[key])


def _processor(device: str) -> str:
    if device.startswith("cuda"):
        return str(torch.cuda.get_device_name(device))
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return f"{platform.machine()} {known.get('cpu_name', platform.processor())} {device}"


@torch.no_grad()
def _rate(module: nn.Module, dtype: torch.dtype, device: str, openvino: bool) -> float:
    shapes = module.inputs
    with FlopCounterMode(display=False) as counter:
        module.to("meta")(*(torch.empty(shape, device="meta") for shape in shapes))  # type: ignore[union-attr]
    module = module.to_empty(device=device)
    for parameter in module.parameters():
        parameter.normal_(std=0.02)
    inputs = [torch.randn(shape, device=device) for shape in shapes]  # type: ignore[union-attr]
    if openvino:
        call = fast.compiled(module, inputs)
    else:
        module = module.to(dtype)
        ready = [value.to(dtype) for value in inputs]
        if isinstance(module, _Convolution):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            ready = [value.to(memory_format=torch.channels_last) for value in ready]
        call = lambda: module(*ready)  # noqa: E731
    return float(counter.get_total_flops()) / _shortest(call, device)


def _shortest(call: Callable[[], Any], device: str) -> float:
    taken: list[float] = []
    call()
    while sum(taken) < _LEAST or len(taken) < 3:
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, known: Mapping[str, Any]) -> None:
    """Keeps the rates; where the folder cannot be written to, the next process measures again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as made:
            json.dump(known, made, indent=1)
        os.replace(made.name, file)
    except OSError:
        return
