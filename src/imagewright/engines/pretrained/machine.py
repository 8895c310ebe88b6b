"""How a pretrained pipeline runs on this machine: number format, device, what to keep off the GPU, when to retry.

The plan is made before anything is loaded, from the shapes in the files' headers and the memory that is free; so no
first picture runs out of memory. Where the sum was wrong all the same, `retrying` asks for less and says so.
"""

from __future__ import annotations

import gc
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch

from imagewright.engines.pretrained import fast
from imagewright.engines.pretrained.estimate import NOTE_FROM, Estimate, estimate
from imagewright.engines.pretrained.sources import WEIGHTS, shapes
from imagewright.errors import ModelError
from imagewright.request import Adjustment, ImageRequest
from imagewright.watch import Say

__all__ = ["Estimate", "Plan", "announce", "estimate", "parameters", "plan", "prepare", "refit", "retrying"]

T = TypeVar("T")

DENOISERS = ("unet", "transformer")
DECODING = {2: 3000, 4: 4000}  # bytes a pixel that a decoder like Stable Diffusion's takes, by bytes a number; measured
DENOISING = 1000  # bytes a pixel and row: less than decoding, but all rows at once; measured
ROOM = 0.9  # of the memory that is free may be planned with
TILE = 512  # pixels: the side of a tile when the autoencoder works in tiles
LEAST = 128  # pixels: no retry goes below this side
_FULL = ("out of memory", "not enough memory", "can't allocate memory", "DefaultCPUAllocator")


@dataclass(frozen=True)
class Plan:
    """How to run. `offload`: "" (all on the device), "model" (one network at a time) or "sequential" (one layer).

    `fast`: the denoiser and the autoencoder go through OpenVINO. `reason` says why it was chosen, for the record.
    """

    dtype: torch.dtype
    device: str
    channels_last: bool = False
    offload: str = ""
    tiling: bool = False
    fast: bool = False
    reason: str = ""


def plan(path: Path, width: int, height: int, images: int = 1, device: str | None = None) -> Plan:
    """The plan for a pipeline's folder or file. Reads headers only. Raises ModelError where memory cannot do."""
    counts = parameters(path)
    device = device or best_device()
    rows = 2 * images  # with and without the words
    if device == "cpu":
        return _on_cpu(counts, width * height, rows)
    free = torch.cuda.mem_get_info(torch.device(device))[0] if device.startswith("cuda") else available()
    return _on_gpu(counts, width * height, rows, device, free)


def parameters(path: Path) -> dict[str, int]:
    """How many numbers each component has, by its folder's name ("" for a single file), the largest variant of each."""
    if path.is_file():
        return {"": sum(prod(shape) for name, shape in shapes(path).items() if not name.startswith("model_ema."))}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for file in path.glob(f"*/*{WEIGHTS}"):
        if file.parent.name != "safety_checker":  # never loaded
            variant = re.sub(r"-\d{5}-of-\d{5}", "", file.name)
            counts[file.parent.name][variant] += sum(prod(shape) for shape in shapes(file).values())
    return {name: max(variants.values()) for name, variants in counts.items()}


def best_device() -> str:
    """The accelerator that torch can use here, or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bf16() -> bool:
    """Whether this CPU multiplies in bfloat16 natively (AVX512-BF16, AMX, or ARM's BF16)."""
    known = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.10
    if known is None:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return any(known().get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def has_openvino() -> bool:
    """Whether the extra `openvino` is installed."""
    return find_spec("openvino") is not None


def available() -> int:
    """Bytes of memory that can be had: the system's, or less where a control group sets a limit."""
    import psutil  # comes with accelerate

    found = int(psutil.virtual_memory().available)
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    return found if limit is None or used is None else max(0, min(found, limit - used))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None


def _on_cpu(counts: dict[str, int], pixels: int, rows: int) -> Plan:
    import psutil

    total, free = sum(counts.values()), available()
    dtype = number_format("cpu")
    room = ROOM * free
    if total * dtype.itemsize + _tile_memory(dtype) > room and dtype == torch.float32:
        dtype = torch.bfloat16  # slower without the instructions for it, but it may fit
    weights = total * dtype.itemsize
    whole, least = weights + _activations(pixels, rows, dtype), weights + _tile_memory(dtype)
    if least > free + psutil.swap_memory().free:
        raise ModelError(
            f"This model needs {_gigabytes(least)} of memory, and {_gigabytes(free)} is free.",
            "Choose a smaller one (imagewright models --recommended), or close other programs.",
        )
    heavy = sum(count for name, count in counts.items() if name in (*DENOISERS, "vae", ""))
    with_openvino = has_openvino() and whole + 2 * heavy * dtype.itemsize <= room
    reason = f"{_name(dtype)} on the CPU, {_gigabytes(whole)} of {_gigabytes(free)}"
    return Plan(
        dtype,
        "cpu",
        channels_last=True,
        tiling=whole > room,
        fast=with_openvino,
        reason=reason + (", the autoencoder in tiles" if whole > room else ""),
    )


def _on_gpu(counts: dict[str, int], pixels: int, rows: int, device: str, free: int) -> Plan:
    room, dtype = ROOM * free, number_format(device)
    weights, largest = (dtype.itemsize * count for count in (sum(counts.values()), max(counts.values(), default=0)))
    whole, tiled = _activations(pixels, rows, dtype), _tile_memory(dtype)
    for offload, resident in (("", weights), ("model", largest)):
        for tiling, work in ((False, whole), (True, tiled)):
            if resident + work <= room:
                said = f"{_name(dtype)} on {device}, {_gigabytes(resident + work)} of {_gigabytes(free)}"
                said += {"": "", "model": ", one network at a time"}[offload] + (", in tiles" if tiling else "")
                return Plan(dtype, device, True, offload, tiling, reason=said)
    said = f"{_name(dtype)} on {device}, layer by layer: {_gigabytes(weights)} do not fit into {_gigabytes(free)}"
    return Plan(dtype, device, True, "sequential", True, reason=said)


def number_format(device: str) -> torch.dtype:
    """The fastest format that is safe on `device`."""
    if device == "cpu":
        return torch.bfloat16 if has_bf16() else torch.float32
    if not device.startswith("cuda"):
        return torch.float16
    if torch.cuda.get_device_capability(device)[0] >= 8:
        return torch.bfloat16
    if "GTX 16" in torch.cuda.get_device_name(device):
        return torch.float32  # these cards give NaN in half precision, hence black pictures
    return torch.float16


def _activations(pixels: int, rows: int, dtype: torch.dtype) -> int:
    return pixels * max(DECODING[dtype.itemsize], DENOISING * rows)


def _tile_memory(dtype: torch.dtype) -> int:
    return _activations(TILE * TILE, 1, dtype)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def prepare(pipe: Any, plan: Plan, say: Say = lambda text: None) -> Any:
    """The pipeline, loaded in `plan.dtype`, made ready as planned. `say` is told of conversions as they come."""
    if plan.channels_last:
        for name in (*DENOISERS, "vae"):
            module = getattr(pipe, name, None)
            if module is not None:
                module.to(memory_format=torch.channels_last)
    if plan.tiling:
        tile(pipe)
    if plan.offload == "model":
        pipe.enable_model_cpu_offload(device=plan.device)
    elif plan.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=plan.device)
    else:
        pipe.to(plan.device)
    if plan.fast:
        fast.attach(pipe, say)
    return pipe


def announce(pipe: Any, request: ImageRequest, width: int, height: int, say: Say) -> None:
    """Says how long a request's pictures will take, where that is long; the first run on a machine measures it."""
    steps = request.num_inference_steps or 1
    if request.image is not None and request.strength is not None and not request.instruction:
        steps = max(1, round(steps * request.strength))
    guidance = request.guidance_scale if request.guidance_scale is not None else 1.0
    each = estimate(pipe, width, height, steps, guidance)
    if each is not None and each.seconds * request.n > NOTE_FROM:
        say(f"{each}" if request.n == 1 else f"{request.n} pictures, each {each}")


def refit(pipe: Any, plan: Plan, width: int, height: int) -> None:
    """Has the autoencoder of a loaded pipeline work in tiles where a size larger than planned needs it."""
    free = available() if plan.device == "cpu" else torch.cuda.mem_get_info(torch.device(plan.device))[0]
    if not plan.tiling and _activations(width * height, 2, plan.dtype) > ROOM * free:
        tile(pipe)


def tile(pipe: Any) -> bool:
    """Has the autoencoder work in tiles; False where it did already, or cannot."""
    vae = getattr(pipe, "vae", None)
    if vae is None or not hasattr(vae, "enable_tiling") or getattr(vae, "use_tiling", False):
        return False
    vae.enable_tiling()
    return True


def retrying(pipe: Any, call: Callable[[int, int], T], width: int, height: int) -> tuple[T, list[Adjustment]]:
    """`call(width, height)`; where memory runs out, again with the autoencoder in tiles, then at half the size.

    Raises ModelError where even the smallest size does not fit.
    """
    made: list[Adjustment] = []
    size = (width, height)
    while True:
        try:
            return call(*size), made
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not is_full(error):
                raise
            why = str(error).partition("\n")[0][:200]
        _clean()
        if tile(pipe):
            made.append(Adjustment("tiling", False, True, "memory ran out"))
            continue
        smaller = tuple(max(64, side // 2 // 64 * 64) for side in size)
        if min(size) // 2 < LEAST:
            raise ModelError(
                f"Memory ran out even at {size[0]}x{size[1]}: {why}",
                "Choose a smaller model (imagewright models --recommended), or close other programs.",
            )
        made = [a for a in made if a.field != "size"]
        size = (smaller[0], smaller[1])
        made.append(Adjustment("size", (width, height), size, "memory ran out"))


def is_full(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in _FULL)


def _clean() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
