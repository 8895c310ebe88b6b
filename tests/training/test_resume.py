"""A run that is killed and started again ends where one that was left alone ends, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import techniques
import torch
from tiny import TinySource, dials, tiny
from torch import Tensor

from imagewright.data.batch import Batch
from imagewright.training.checkpoint import CheckpointStore
from imagewright.training.clock import Clock
from imagewright.training.command import TRAINABLE
from imagewright.training.journal import read_log
from imagewright.training.loop import train
from imagewright.training.presets import PRESETS

PROGRAM = Path(__file__).with_name("tiny.py")
EXACT = ("model.safetensors", "ema.safetensors", "state/optimizer.safetensors")
LIMIT = 60  # seconds


def _start(out: Path, config: dict[str, Any], pause: float = 0.0) -> subprocess.Popen[str]:
    often = {"checkpoint_minutes": 0, "keep": 2, "muon": True, "heldout_every": 3, **config}
    arguments = [str(out), json.dumps(often), json.dumps({"pause": pause}), "{}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(PROGRAM), *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _wait_for(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    latest, began = out / "checkpoints/latest", time.monotonic()
    while not (latest.exists() and int(latest.read_text().split("-")[1]) >= step):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - began < LIMIT
        time.sleep(0.002)


def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def _hashes(out: Path) -> dict[str, str]:
    hashes = json.loads((out / "checkpoints/step-00000012/hashes.json").read_text())
    return {name: hashes[name] for name in EXACT}


@pytest.mark.slow
def test_a_run_killed_and_interrupted_ends_bit_for_bit_like_one_left_alone(tmp_path: Path) -> None:
    control, out = _start(tmp_path / "control", {}), tmp_path / "run"
    killed = _start(out, {}, pause=0.05)
    _wait_for(out, 3, killed)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    interrupted = _start(out, {}, pause=0.05)
    _wait_for(out, 8, interrupted)
    interrupted.send_signal(signal.SIGINT)
    report = _finish(interrupted)
    assert report["reason"] == "interrupted"
    assert (out / "checkpoints/latest").read_text() == f"step-{report['step']:08d}\n"
    assert _finish(_start(out, {}))["step"] == _finish(control)["step"] == 12
    assert _hashes(out) == _hashes(tmp_path / "control")
    starts = [e["step"] for e in read_log(out / "log.jsonl") if e["event"] == "start"]
    assert len(starts) == 3 and 0 == starts[0] < 3 <= starts[1] < 8 <= starts[2] < 12


class Crash(BaseException):
    """The power goes out."""


@pytest.mark.parametrize("name", TRAINABLE)
def test_every_technique_goes_on_bit_for_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crash comes in the last phase of the fourth step, the last checkpoint is that of the second."""
    looks = count()
    monkeypatch.setattr(Clock, "wants_checkpoint", lambda clock: next(looks) % 2 == 1)
    model = techniques.build(name)
    source, config = techniques.Discs(model.pixels), techniques.dials(name, heldout_every=3)
    control = train(model, source, config, tmp_path / "control")
    looks, broken = count(), techniques.build(name)
    loss, calls = broken.loss, count(1)

    def crashing(batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        if phase == broken.phases[-1].name and torch.is_grad_enabled() and next(calls) == 4:
            raise Crash
        return loss(batch, phase)

    broken.loss = crashing  # type: ignore[method-assign]
    with pytest.raises(Crash):
        train(broken, source, dataclasses.replace(config, heldout_every=0), tmp_path / "run")
    newest, _ = CheckpointStore(tmp_path / "run").newest()
    assert newest is not None and newest.name == "step-00000002"
    end = train(techniques.build(name, seed=9), source, config, tmp_path / "run")
    assert end.step == control.step == 5 and end.heldout == control.heldout
    for file in EXACT:
        assert (end.checkpoint / file).read_bytes() == (control.checkpoint / file).read_bytes(), file


def test_every_technique_that_can_be_trained_is_tested_here() -> None:
    assert set(TRAINABLE) == {name for name in PRESETS if name != "judge"}
    assert all("tiny" in PRESETS[name] for name in TRAINABLE)


def test_another_seed_ends_elsewhere(tmp_path: Path) -> None:
    for seed in (0, 0, 1):
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        train(tiny(), TinySource(), dials(seed=seed), out)
    same, again, other = (_hashes(tmp_path / f"run-{i}") for i in range(3))
    assert same == again
    assert all(same[name] != other[name] for name in EXACT)
