"""The fast path equals torch, keeps its conversions, and steps aside where it cannot follow."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("openvino")

import diffusers
import tiny_pipelines
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig

from imagewright.engines.pretrained import conversions, fast
from imagewright.engines.pretrained.fast import psnr

CLOSE = 35.0  # dB; bfloat16 against float32 gives 45 and more on these


class Pipe:
    """As much of a pipeline as the fast path looks at."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet = tiny_pipelines.unet()
        self.said: list[str] = []

    def attach(self) -> None:
        fast.attach(self, self.said.append)

    def draw(self, side: int = 8, rows: int = 2, **more: Any) -> torch.Tensor:
        noise = torch.Generator().manual_seed(3)
        x = torch.randn(rows, 4, side, side, generator=noise)
        words = torch.randn(rows, 77, 64, generator=noise)
        with torch.no_grad():
            out: torch.Tensor = self.unet(x, torch.tensor(500), words, return_dict=False, **more)[0]
        return out

    def by_torch(self, **more: Any) -> torch.Tensor:
        fast.detach(self)
        out = self.draw(**more)
        self.attach()
        return out

    @property
    def conversions(self) -> int:
        return sum(text.startswith("converting") for text in self.said)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conversions")


@pytest.fixture(autouse=True)
def shared_cache(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "folder", lambda: kept)


@pytest.fixture
def pipe() -> Pipe:
    made = Pipe()
    made.attach()
    return made


def test_it_equals_torch_and_converts_once(pipe: Pipe) -> None:
    expected = pipe.by_torch()
    assert psnr(pipe.draw(), expected) > CLOSE
    assert fast.told(pipe) == []
    assert fast.attached(pipe)

    again = Pipe()
    again.attach()
    assert psnr(again.draw(), expected) > CLOSE
    assert again.said == []  # neither converted nor compared a second time


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the thread's signal stack")
def test_signals_can_still_be_delivered(pipe: Pipe) -> None:
    def stack() -> bytes:
        found = ctypes.create_string_buffer(24)  # struct sigaltstack
        assert ctypes.CDLL(None).sigaltstack(None, found) == 0
        return found.raw

    before = stack()
    pipe.draw(side=12)
    assert stack() == before  # one that is freed later would turn Ctrl-C into a crash
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_another_size_needs_no_other_conversion(pipe: Pipe) -> None:
    pipe.draw()
    before = pipe.conversions
    for shape in ({"side": 16}, {"rows": 1}, {"side": 8}):
        assert psnr(pipe.draw(**shape), pipe.by_torch(**shape)) > CLOSE
    assert pipe.conversions == before
    assert fast.told(pipe) == []


@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_broken_conversion_is_made_again(pipe: Pipe, kept: Path, damage: str) -> None:
    expected = pipe.by_torch()
    pipe.draw()
    for graph in kept.glob("*/model.xml"):
        size = graph.stat().st_size
        graph.write_bytes(b"<" * (size if damage == "garbage" else size // 2))
    again = Pipe()
    again.attach()
    assert psnr(again.draw(), expected) > CLOSE
    assert again.conversions == 1
    assert fast.told(again) == []


def lora(pipe: Pipe) -> None:
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))


def hook(pipe: Pipe) -> None:
    pipe.unet.conv_in.register_forward_hook(lambda module, inputs, output: 2 * output)


def ip_adapter(pipe: Pipe) -> None:
    pipe.unet.encoder_hid_proj = torch.nn.Identity()


def free_u(pipe: Pipe) -> None:
    pipe.unet.enable_freeu(0.9, 0.2, 1.2, 1.4)


@pytest.mark.parametrize(
    ("change", "why"), [(lora, "LoRA"), (hook, "hook"), (ip_adapter, "IP-Adapter"), (free_u, "FreeU")]
)
def test_what_a_trace_would_miss_runs_in_torch(pipe: Pipe, change: Callable[[Pipe], None], why: str) -> None:
    change(pipe)
    expected = pipe.by_torch()
    assert torch.equal(pipe.draw(), expected)
    (told,) = fast.told(pipe)
    assert why in told.reason
    assert (told.requested, told.used) == ("unet: openvino", "unet: torch")
    assert fast.told(pipe) == []  # told once
    assert pipe.conversions == 0


def test_changed_weights_are_seen(pipe: Pipe) -> None:
    before = pipe.draw()
    with torch.no_grad():
        pipe.unet.conv_out.weight.data.mul_(1.5)
    after = pipe.draw()
    assert psnr(after, before) < CLOSE
    assert psnr(after, pipe.by_torch()) > CLOSE


def test_wrapping_at_the_edges_is_seen(pipe: Pipe) -> None:
    before = pipe.draw()
    for layer in pipe.unet.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.padding_mode = "circular"
    after = pipe.draw()
    assert psnr(after, before) < CLOSE
    assert psnr(after, pipe.by_torch()) > CLOSE


def test_a_controlnet_goes_along(pipe: Pipe) -> None:
    skips = [(32, 8), (32, 8), (32, 4), (64, 4)]
    noise = torch.Generator().manual_seed(5)
    extra = {
        "down_block_additional_residuals": tuple(torch.randn(2, c, s, s, generator=noise) for c, s in skips),
        "mid_block_additional_residual": torch.randn(2, 64, 4, 4, generator=noise),
    }
    expected = pipe.by_torch(**extra)
    assert psnr(expected, pipe.by_torch()) < CLOSE
    assert psnr(pipe.draw(**extra), expected) > CLOSE
    assert fast.told(pipe) == []


def test_an_output_that_is_off_is_not_taken(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "ENOUGH", 1000.0)
    assert torch.equal(pipe.draw(), pipe.by_torch())
    assert "off by too much" in pipe_told(pipe)


def pipe_told(pipe: Pipe) -> str:
    pipe.draw()
    return fast.told(pipe)[0].reason


def test_a_full_disk_is_said(pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conversions, "folder", lambda: tmp_path)
    monkeypatch.setattr(conversions.Kept, "save", full)
    assert torch.equal(pipe.draw(), pipe.by_torch())
    assert "No space left" in pipe_told(pipe)


def test_little_memory_is_said(pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversions, "folder", lambda: tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    pipe.draw()
    assert "converting needs" in pipe_told(pipe)


def test_attention_of_another_kind_is_seen(pipe: Pipe) -> None:
    before = fast.look(pipe.unet)
    pipe.unet.set_attn_processor(AttnProcessor())
    assert fast.look(pipe.unet) != before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_pipelines_run_through_it(tiny: Callable[[str], Path], name: str) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(tiny(name)), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        noise = torch.Generator().manual_seed(1)
        made = pipe("a fox", num_inference_steps=2, generator=noise, output_type="pt", height=64, width=64)
        return made.images  # type: ignore[no-any-return]

    expected = draw()
    said: list[str] = []
    fast.attach(pipe, said.append)
    assert psnr(draw(), expected) > 30
    assert fast.told(pipe) == []
    assert any(text.startswith(("converting unet", "converting transformer")) for text in said)
    fast.detach(pipe)
    assert not fast.attached(pipe)
    assert torch.equal(draw(), expected)


def test_the_hash_is_the_same_in_every_process(tmp_path: Path) -> None:
    tiny_pipelines.unet().save_pretrained(str(tmp_path))
    code = (
        "import sys, diffusers; from imagewright.engines.pretrained import fast\n"
        "print(fast.weights_hash(diffusers.UNet2DConditionModel.from_pretrained(sys.argv[1])))"
    )
    made = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
        made.add(done.stdout)
    assert len(made) == 1


WATCH = """
import multiprocessing, os, socket, sys, urllib.request
def noted(*args, **named):
    open(sys.argv[1], "a").write("sent\\n")
    raise OSError("no network")
urllib.request.urlopen = noted
socket.socket.connect = socket.create_connection = noted
"""
OURS = "from imagewright.engines.pretrained import fast; import torch\n" + (
    "fast.converted(torch.nn.Linear(2, 2), [torch.zeros(1, 2)])"
)


@pytest.mark.parametrize(("code", "sends"), [("import openvino, time; time.sleep(2)", True), (OURS, False)])
def test_openvino_reports_nothing(home: Path, tmp_path: Path, code: str, sends: bool) -> None:
    pytest.importorskip("openvino_telemetry")
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    command = [sys.executable, "-c", WATCH + code, str(tmp_path / "sent")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sent").exists() == sends
    assert (home / "intel").exists() == sends
