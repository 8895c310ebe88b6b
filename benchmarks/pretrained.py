"""How fast a Stable Diffusion 1.5 makes a picture here, beside diffusers: python benchmarks/pretrained.py

The model has Stable Diffusion 1.5's exact networks (860 M parameters and the rest) with random weights: speed does not
depend on them. Every arm is a process of its own that loads the same folder and stays; the arms take turns, so that
all see the same machine:

    diffusers   as its documentation calls it: StableDiffusionPipeline.from_pretrained(folder), pipe(prompt, ...)
    torch       imagewright without OpenVINO: bfloat16 where the processor has it, channels last
    openvino    imagewright as it runs by itself where the extra openvino is installed
    cpp         stable-diffusion.cpp, where --cpp names a Python that has stable-diffusion-cpp-python

Given are seconds of a guided step and of the decoder, the ratio for a picture of 25 steps, the PSNR of one step and of
the decoder against diffusers in float32 on the same inputs, the largest memory, and how far our estimate was off.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, GUIDANCE, PICTURE_STEPS = "a red fox in the snow", 7.5, 25
FULL = {"unet": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "text": 768, "layers": 12, "side": 512}
TINY = {"unet": (32, 64, 64, 64), "vae": (32, 32, 32, 32), "text": 64, "layers": 2, "side": 64}


def build(folder: Path, sizes: dict[str, Any]) -> None:
    """A folder in diffusers' layout, random weights in float32, as Stable Diffusion 1.5 is published."""
    import diffusers
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    letters = string.ascii_lowercase
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=sizes["side"] // 8,
            block_out_channels=sizes["unet"],
            cross_attention_dim=sizes["text"],
            attention_head_dim=8,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=sizes["vae"],
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=sizes["side"],
        )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=sizes["text"],
            intermediate_size=4 * sizes["text"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["text"] // 64,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
            pad_token_id=len(words) - 1,
        )
    )
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    torch.manual_seed(0)
    parts = {"unet": _filled(unet), "vae": _filled(vae), "text_encoder": text, "scheduler": scheduler}
    for name, part in parts.items():
        part.save_pretrained(str(folder / name))
    weights = folder / "text_encoder" / "model.safetensors"
    named = {f"text_model.{name}": tensor for name, tensor in load_file(weights).items()}  # as it is published
    save_file(named, weights, {"format": "pt"})
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    kind = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(kind))
    listing = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    listing |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    listing |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **listing}
    (folder / "model_index.json").write_text(json.dumps(index))


def _filled(module: Any) -> Any:
    """Weights that keep the size of what passes through them, norms of one, no biases."""
    module = module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.zero_()
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.fill_(1)
    return module


class Arm:
    """One way to draw, inside its process: `load`, then `draw` as often as asked."""

    def __init__(self, name: str, folder: Path, side: int) -> None:
        self.name, self.folder, self.side = name, folder, side
        self.taken: dict[str, list[float]] = {"unet": [], "decoder": []}
        self.started = 0.0
        self.pipe: Any = None
        self.draw: Callable[[int], object]

    def load(self) -> dict[str, Any]:
        """Loads and warms up; returns what this took and what our estimate is."""
        start = time.perf_counter()
        found = self._load_diffusers() if self.name == "diffusers" else self._load_ours()
        loaded = time.perf_counter() - start
        for part, module in (("unet", self.pipe.unet), ("decoder", self.pipe.vae.decoder)):
            module.register_forward_pre_hook(self._start)
            module.register_forward_hook(lambda *args, part=part: self._stop(part))
        return {"load": loaded, **found}

    def _load_diffusers(self) -> dict[str, Any]:
        from diffusers import StableDiffusionPipeline

        self.pipe = StableDiffusionPipeline.from_pretrained(str(self.folder))
        self.pipe.set_progress_bar_config(disable=True)
        self.draw = lambda steps: self.pipe(
            PROMPT, num_inference_steps=steps, guidance_scale=GUIDANCE, height=self.side, width=self.side
        )
        return {}

    def _load_ours(self) -> dict[str, Any]:
        from imagewright import ImageRequest
        from imagewright.engines.pretrained import PretrainedEngine, machine
        from imagewright.watch import Watch

        if self.name == "torch":
            machine.has_openvino = lambda: False
        engine, said = PretrainedEngine(), []

        def draw(steps: int) -> object:
            request = ImageRequest(
                prompt=PROMPT,
                model=str(self.folder),
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                size=(self.side, self.side),
                seed=1,
            )
            result = engine.generate(request, Watch(say=said.append))
            said.extend(map(str, result.adjustments))
            return result

        self.draw = draw
        draw(1)
        self.pipe = engine._open[1]
        estimate = machine.estimate(self.pipe, self.side, self.side, PICTURE_STEPS, GUIDANCE)
        return {"said": said, "estimate": [estimate.step_seconds, estimate.decode_seconds]}

    def _start(self, *args: Any) -> None:
        self.started = time.perf_counter()

    def _stop(self, part: str) -> None:
        self.taken[part].append(time.perf_counter() - self.started)

    def fixed(self, to: Path) -> dict[str, Any]:
        """One step and one decoding of inputs that are the same in all arms; the outputs go into a file."""
        import torch

        noise, latent = torch.Generator().manual_seed(0), self.side // 8
        x = torch.randn(2, 4, latent, latent, generator=noise)
        width = self.pipe.unet.config.cross_attention_dim
        words = torch.randn(2, 77, width, generator=noise)
        dtype = self.pipe.unet.dtype
        with torch.no_grad():
            step = self.pipe.unet(x.to(dtype), torch.tensor(500), words.to(dtype), return_dict=False)[0]
            pixels = self.pipe.vae.decode(x[:1].to(dtype), return_dict=False)[0]
        np.savez(to, step=step.float().numpy(), pixels=pixels.float().numpy())
        return {}

    def timed(self, steps: int) -> dict[str, Any]:
        """One picture of `steps` steps."""
        self.taken = {"unet": [], "decoder": []}
        start = time.perf_counter()
        self.draw(steps)
        whole = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {"steps": self.taken["unet"], "decode": sum(self.taken["decoder"]), "whole": whole, "gib": memory}


def serve(name: str, folder: Path, side: int) -> None:
    """The process of an arm: reads a command a line, answers with a line of JSON."""
    arm = Arm(name, folder, side)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print goes elsewhere
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        found = {
            "load": arm.load,
            "fixed": lambda a=argument: arm.fixed(Path(a)),
            "draw": lambda a=argument: arm.timed(int(a)),
        }
        print(json.dumps(found[command]()), file=out, flush=True)


CPP = r"""
import json, os, resource, sys, time
from stable_diffusion_cpp import StableDiffusion
folder, side, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
model, ends = None, []
for line in sys.stdin:
    command, _, argument = line.strip().partition(" ")
    start = time.perf_counter()
    ends.clear()
    if command == "load":
        model = StableDiffusion(model_path=folder, n_threads=threads)
        found = {"load": time.perf_counter() - start}
    else:
        steps = int(argument)
        model.generate_image(
            prompt="a red fox in the snow", sample_steps=steps, cfg_scale=7.5, width=side, height=side, seed=1,
            sample_method="euler", progress_callback=lambda *args: ends.append(time.perf_counter()),
        )
        stop = time.perf_counter()
        ends[:] = ends[-steps - 1:]
        gaps = [b - a for a, b in zip(ends, ends[1:])]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found = {"steps": gaps, "decode": stop - ends[-1], "whole": stop - start, "gib": memory}
    print(json.dumps(found), file=out, flush=True)
"""


@dataclass
class Runner:
    """An arm's process, from outside."""

    name: str
    process: subprocess.Popen[str]

    def ask(self, command: str) -> dict[str, Any]:
        """Its answer. Raises RuntimeError where the process ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the arm {self.name} ended; see its log")
        found: dict[str, Any] = json.loads(line)
        return found


def start(name: str, folder: Path, side: int, cpp: str | None, log: Path) -> Runner:
    """Starts the process of an arm; what it prints goes into `log`."""
    own = [sys.executable, __file__, "--arm", name, "--folder", str(folder), "--side", str(side)]
    threads = str(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
    command = [str(cpp), "-c", CPP, str(folder), str(side), threads] if name == "cpp" else own
    with log.open("a") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ
        )
    return Runner(name, process)


def psnr(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """In dB, the peak being the range of `expected`."""
    error = float(np.mean((found - expected) ** 2))
    return 10 * float(np.log10(float(np.ptp(expected)) ** 2 / max(error, 1e-20)))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Runs all arms in turn and prints the table."""
    sizes = TINY if arguments.tiny else FULL
    begun = time.perf_counter()
    model = folder / "model"
    build(model, sizes)
    print(f"{len(os.sched_getaffinity(0))} cores, {sizes['side']} px; built in {time.perf_counter() - begun:.0f} s")
    names = ["diffusers", "torch", "openvino", *(["cpp"] if arguments.cpp else [])]
    runners, loads, outputs = {}, {}, {}
    for name in names:
        runners[name] = start(name, model, sizes["side"], arguments.cpp, folder / f"{name}.log")
        loads[name] = runners[name].ask("load")
        said = "; ".join(loads[name].get("said", ()))
        print(f"{name}: ready after {loads[name]['load']:.0f} s{': ' + said if said else ''}", flush=True)
        if name != "cpp":
            runners[name].ask(f"fixed {folder / name}.npz")
            outputs[name] = np.load(folder / f"{name}.npz", allow_pickle=False)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(arguments.rounds):
        for name in names:
            if name != "cpp" or turn == 0:  # slow, and beside the point: once
                rows[name].append(runners[name].ask(f"draw {arguments.steps}"))
    for runner in runners.values():
        runner.process.kill()
        runner.process.wait()
    _print(names, rows, loads, outputs)
    print(f"{time.perf_counter() - begun:.0f} s in all")


def _print(names: list[str], rows: dict[str, Any], loads: dict[str, Any], outputs: dict[str, Any]) -> None:
    head = f"{'':10} {'step s':>8} {'decode s':>9} {'25 steps s':>11} {'ratio':>6}  {'PSNR (dB)':19}  GiB  estimate"
    print(f"\n{head}")
    base = 0.0
    for name in names:
        step = statistics.median(seconds for row in rows[name] for seconds in row["steps"])
        decode = statistics.median(row["decode"] for row in rows[name])
        rest = statistics.median(row["whole"] - sum(row["steps"]) - row["decode"] for row in rows[name])
        whole = PICTURE_STEPS * step + decode + max(0.0, rest)
        base = base or whole
        near = ""
        if name in outputs:
            truth = outputs["diffusers"]
            near = ", ".join(f"{psnr(outputs[name][key], truth[key]):.1f}" for key in ("step", "pixels"))
        off = ""
        if "estimate" in loads[name]:
            off = ", ".join(f"{a / b - 1:+.0%}" for a, b in zip(loads[name]["estimate"], (step, decode), strict=True))
        memory = max(row["gib"] for row in rows[name])
        print(f"{name:10} {step:8.2f} {decode:9.2f} {whole:11.1f} {base / whole:6.2f}  {near:19} {memory:4.1f}  {off}")


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="rehearse with small networks")
    parser.add_argument("--steps", type=int, default=2, help="guided steps of each measured picture")
    parser.add_argument("--rounds", type=int, default=2, help="pictures of each arm, in turn")
    parser.add_argument("--cpp", metavar="PYTHON", help="an interpreter that has stable-diffusion-cpp-python")
    parser.add_argument("--keep", type=Path, help="a folder for the model and the logs, kept. Default: a temporary one")
    for hidden in ("--arm", "--folder", "--side"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        serve(arguments.arm, Path(arguments.folder), int(arguments.side))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measure(arguments, folder)


if __name__ == "__main__":
    main()
