"""A run that is killed and started again ends where one that was left alone ends, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from imagewright.training.journal import read_log

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
def test_a_killed_run_ends_bit_for_bit_where_an_unkilled_one_ends(tmp_path: Path) -> None:
    control = _start(tmp_path / "control", {})
    other = _start(tmp_path / "other", {"seed": 1})
    killed = tmp_path / "killed"
    for step in (3, 8):
        process = _start(killed, {}, pause=0.05)
        _wait_for(killed, step, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = _start(killed, {})
    assert [_finish(p)["step"] for p in (control, other, last)] == [12, 12, 12]
    assert _hashes(killed) == _hashes(tmp_path / "control")
    assert all(_hashes(tmp_path / "other")[name] != digest for name, digest in _hashes(killed).items())
    starts = [e["step"] for e in read_log(killed / "log.jsonl") if e["event"] == "start"]
    assert len(starts) == 3 and 0 == starts[0] < 3 <= starts[1] < 8 <= starts[2] < 12


def test_ctrl_c_in_a_process_of_its_own_saves_and_ends_well(tmp_path: Path) -> None:
    process = _start(tmp_path, {"steps": 10_000}, pause=0.02)
    _wait_for(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    report = _finish(process)
    assert report["reason"] == "interrupted"
    assert (tmp_path / "checkpoints/latest").read_text() == f"step-{report['step']:08d}\n"
