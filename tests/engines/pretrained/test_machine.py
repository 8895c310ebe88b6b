"""The plan for a machine, what is done when memory runs out, and the estimate of time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from imagewright.engines.pretrained import estimate as estimates
from imagewright.engines.pretrained import fast, machine
from imagewright.engines.pretrained.estimate import Estimate, Rates
from imagewright.errors import ModelError
from imagewright.request import ImageRequest

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers
GB = 10**9
RATES = Rates(convolution=1e9, product=2e9, attention=4e9)


@pytest.fixture
def sd(tiny: Callable[[str], Path]) -> Path:
    return tiny("sd")


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder), dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_weights_are_counted_once_whatever_their_variants(sd: Path, tmp_path: Path) -> None:
    pipe = opened(sd)
    real = {name: sum(p.numel() for p in part.state_dict().values()) for name, part in pipe.components.items()
            if isinstance(part, torch.nn.Module)}  # fmt: skip
    assert machine.parameters(sd) == real

    folder = tmp_path / "sd"
    shutil.copytree(sd, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    tensors = load_file(weights)
    weights.unlink()
    names = sorted(tensors)
    for number, some in enumerate((names[::2], names[1::2]), start=1):
        shard = weights.with_name(f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
        save_file({name: tensors[name] for name in some}, shard)
    (folder / "safety_checker").mkdir()
    shutil.copy(sd / "vae" / weights.name, folder / "safety_checker" / "model.safetensors")
    assert machine.parameters(folder) == real


def test_a_single_file_is_counted_without_its_averaged_copy(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 4), "model_ema.a": torch.zeros(3, 4)}, tmp_path / "one.safetensors")
    assert machine.parameters(tmp_path / "one.safetensors") == {"": 12}


def test_this_processor_is_read_right() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or "flags" not in flags.read_text():
        pytest.skip("no x86 flags to compare with")
    words = set(flags.read_text().split())
    assert machine.has_bf16() == bool(words & {"avx512_bf16", "amx_bf16"})


def plan_with(monkeypatch: pytest.MonkeyPatch, folder: Path, free: int, side: int = 512) -> machine.Plan:
    monkeypatch.setattr(machine, "available", lambda: free)
    monkeypatch.setattr(machine, "parameters", lambda path: SD15)
    monkeypatch.setattr("psutil.swap_memory", lambda: SimpleNamespace(free=0))
    return machine.plan(folder, side, side, device="cpu")


SD15 = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


def test_the_plan_follows_the_memory(monkeypatch: pytest.MonkeyPatch, sd: Path) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: True)
    roomy = plan_with(monkeypatch, sd, 16 * GB)
    assert (roomy.dtype, roomy.tiling, roomy.channels_last) == (torch.bfloat16, False, True)
    assert roomy.fast == machine.has_openvino()
    assert "16.0 GB" in roomy.reason
    tight = plan_with(monkeypatch, sd, int(3.3 * GB))
    assert not tight.fast  # a second copy of the weights would not fit
    assert not tight.tiling
    assert plan_with(monkeypatch, sd, int(3.3 * GB), side=1024).tiling
    with pytest.raises(ModelError, match=r"needs 2\.9 GB of memory, and 1\.0 GB is free"):
        plan_with(monkeypatch, sd, 1 * GB)


def test_a_processor_without_bfloat16_uses_it_only_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch, sd: Path
) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: False)
    assert plan_with(monkeypatch, sd, 16 * GB).dtype == torch.float32
    assert plan_with(monkeypatch, sd, 4 * GB).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("free", "offload", "tiling"),
    [(24, "", False), (5, "", False), (3.9, "", True), (3.4, "model", False), (2, "sequential", True)],
)
def test_a_gpu_keeps_what_fits(
    monkeypatch: pytest.MonkeyPatch, sd: Path, free: float, offload: str, tiling: bool
) -> None:
    monkeypatch.setattr(machine, "number_format", lambda device: torch.float16)
    monkeypatch.setattr(machine, "parameters", lambda path: {**SD15, "text_encoder": 400_000_000})
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (int(free * GB), 24 * GB))
    made = machine.plan(sd, 640, 512, device="cuda")
    assert (made.offload, made.tiling, made.dtype) == (offload, tiling, torch.float16)


def test_prepare_does_what_was_planned(sd: Path) -> None:
    pipe = machine.prepare(opened(sd), machine.Plan(torch.float32, "cpu", channels_last=True, tiling=True))
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert pipe.vae.use_tiling
    assert not fast.attached(pipe)
    machine.prepare(pipe, machine.Plan(torch.float32, "cpu", fast=True))
    assert fast.attached(pipe)


def test_a_larger_picture_than_planned_is_decoded_in_tiles(monkeypatch: pytest.MonkeyPatch, sd: Path) -> None:
    plan, pipe = machine.Plan(torch.float32, "cpu"), opened(sd)
    monkeypatch.setattr(machine, "available", lambda: 2 * GB)
    machine.refit(pipe, plan, 512, 512)
    assert not pipe.vae.use_tiling
    machine.refit(pipe, plan, 1024, 1024)
    assert pipe.vae.use_tiling


FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("MPS backend out of memory"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: f"{type(error).__name__} {error}"[:30])
def test_where_memory_runs_out_less_is_asked_for(sd: Path, error: Exception) -> None:
    pipe, tried = opened(sd), []

    def call(width: int, height: int) -> str:
        tried.append((width, height, pipe.vae.use_tiling))
        if width > 300:
            raise error
        return "drawn"

    drawn, told = machine.retrying(pipe, call, 1024, 768)
    assert drawn == "drawn"
    assert tried == [(1024, 768, False), (1024, 768, True), (512, 384, True), (256, 192, True)]
    assert [(a.field, a.requested, a.used) for a in told] == [
        ("tiling", False, True),
        ("size", (1024, 768), (256, 192)),
    ]


def test_other_errors_pass_and_the_last_size_is_told(sd: Path) -> None:
    def broken(width: int, height: int) -> None:
        raise RuntimeError("shapes do not match")

    def full(width: int, height: int) -> None:
        raise MemoryError("out of memory")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        machine.retrying(opened(sd), broken, 512, 512)
    with pytest.raises(ModelError, match="even at 128x128"):
        machine.retrying(opened(sd), full, 512, 512)


@pytest.fixture
def known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "calibrated", lambda *args: RATES)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_the_count_is_that_of_a_real_run(tiny: Callable[[str], Path], known_rates: None, name: str) -> None:
    pipe = opened(tiny(name))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # so that attention is counted
        pipe("a fox", num_inference_steps=2, guidance_scale=5.0, height=64, width=64, output_type="pt")
    counted = estimates.estimate(pipe, 64, 64, 2, 5.0)
    assert counted is not None
    assert counted.flops == pytest.approx(counter.get_total_flops(), rel=0.2)  # the texts' lengths differ


def test_a_step_is_counted_exactly(sd: Path) -> None:
    unet = opened(sd).unet
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        unet(torch.zeros(2, 4, 32, 32), 5, torch.zeros(2, 77, 64))
    work = estimates.denoising(unet, 32, 32, 2)
    assert work is not None
    assert work.total == counter.get_total_flops()


def of(pipe: Any, *arguments: Any) -> Estimate:
    made = estimates.estimate(pipe, *arguments)
    assert made is not None
    return made


def test_the_estimate_scales_with_steps_size_and_guidance(sd: Path, known_rates: None) -> None:
    pipe = opened(sd)
    base = of(pipe, 64, 64, 10, 5.0)
    assert base.seconds > 10 * base.step_seconds > 0
    assert base.decode_seconds > 0
    more = of(pipe, 64, 64, 20, 5.0)
    assert more.seconds - base.seconds == pytest.approx(10 * base.step_seconds)
    assert 3.9 < of(pipe, 128, 128, 10, 5.0).step_seconds / base.step_seconds < 16
    assert of(pipe, 64, 64, 10, 1.0).step_seconds == pytest.approx(base.step_seconds / 2)
    assert of(pipe, 64, 64, 10, 5.0, 3).step_seconds == pytest.approx(base.step_seconds * 3)


def test_a_network_of_another_kind_has_no_estimate(known_rates: None) -> None:
    odd = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        num_class_embeds=4,
    )
    assert estimates.denoising(odd, 8, 8, 2) is None


def test_long_runs_are_announced(sd: Path, known_rates: None) -> None:
    said: list[str] = []
    pipe = opened(sd)
    request = ImageRequest(prompt="a fox", num_inference_steps=2, guidance_scale=5.0)
    machine.announce(pipe, request, 64, 64, said.append)
    assert said == []
    machine.announce(pipe, ImageRequest(prompt="a fox", num_inference_steps=900, n=2), 64, 64, said.append)
    (line,) = said
    assert line.startswith("2 pictures, each about ")
    assert ": 900 steps of " in line


def test_spans_read_well() -> None:
    assert str(Estimate(165, 6.2, 10, 1e12, 25)) == "about 3 min: 25 steps of 6 s"
    assert str(Estimate(40, 0.38, 1, 1e12, 100)) == "about 40 s: 100 steps of 0.38 s"
    assert str(Estimate(7300, 240, 10, 1e12, 30)) == "about 2.0 h: 30 steps of 4 min"


@pytest.mark.parametrize("openvino", [False, True])
def test_rates_are_measured_once(monkeypatch: pytest.MonkeyPatch, openvino: bool) -> None:
    if openvino:
        pytest.importorskip("openvino")
    monkeypatch.setattr(estimates, "_LEAST", 0.0)
    measured = estimates.calibrated.__wrapped__(torch.float32, "cpu", openvino)
    assert 1e8 < measured.convolution < 1e14
    assert 1e8 < measured.product < 1e14
    assert 1e8 < measured.attention < 1e14
    monkeypatch.setattr(estimates, "_rate", None)
    assert estimates.calibrated.__wrapped__(torch.float32, "cpu", openvino) == measured


def test_rates_that_cannot_be_kept_are_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(estimates, "user_cache_path", lambda name: tmp_path / "file")
    monkeypatch.setattr(estimates, "_rate", lambda *args: 5.0)
    assert estimates.calibrated.__wrapped__(torch.float32, "cpu", False) == Rates(5.0, 5.0, 5.0)
