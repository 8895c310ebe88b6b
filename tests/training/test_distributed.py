"""Several processes compute what one process computes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import techniques
import torch
from safetensors.torch import load_file
from tiny import TinySource, dials, tiny

from imagewright.training.command import TRAINABLE
from imagewright.training.distributed import World
from imagewright.training.journal import read_log
from imagewright.training.loop import train

PROGRAM, TESTS = Path(__file__).with_name("tiny.py"), Path(__file__).parents[1]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _two_processes(program: Path, *arguments: str) -> None:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
    ]
    finished = subprocess.run(
        [*launcher, f"--master-port={_free_port()}", str(program), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(TESTS)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr


@pytest.fixture(scope="module")
def all_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every technique by two processes, all in one launch."""
    out = tmp_path_factory.mktemp("two")
    _two_processes(Path(techniques.__file__), str(out))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINABLE)
def test_two_processes_equal_one_with_every_technique(name: str, all_by_two: Path, tmp_path: Path) -> None:
    model = techniques.build(name, by_row=True)
    start = {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}
    train(model, techniques.Discs(model.pixels), techniques.dials(name, **techniques.TWO_STEPS), tmp_path)
    one, two = load_file(tmp_path / "model.safetensors"), load_file(all_by_two / name / "model.safetensors")
    moved = sum((one[key] - start[key]).square().sum() for key in start) ** 0.5
    apart = sum((one[key] - two[key]).square().sum() for key in start) ** 0.5
    assert apart < 0.02 * moved  # AdamW turns the rounding of gradients near 0 into steps
    for event in ("step", "heldout"):
        logs = [
            [e for e in read_log(run / "log.jsonl") if e["event"] == event] for run in (tmp_path, all_by_two / name)
        ]
        assert len(logs[0]) == len(logs[1]) > 0
        for ours, theirs in zip(*logs, strict=True):
            names = [key for key in ours if key.rpartition("/")[2] == "loss"]
            assert names and [theirs[key] for key in names] == pytest.approx([ours[key] for key in names], rel=2e-3)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path) -> None:
    config = {
        "precision": "fp32",
        "batch": 9,
        "steps": 10,
        "lr": 0.003,
        "heldout_every": 5,
        "schedule": "constant",
    }
    arguments = [json.dumps({**config, "steps": 6}), "{}", json.dumps({"dropout": 0.0})]
    _two_processes(PROGRAM, str(tmp_path / "two"), *arguments)
    for out in (tmp_path / "two", tmp_path / "one"):  # what two processes began, one goes on with
        train(tiny(dropout=0.0), TinySource(), dials(**config), out)
    start = dict(tiny(dropout=0.0).named_parameters())
    for name in ("model.safetensors", "ema.safetensors"):
        one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        for key, tensor in one.items():
            torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=2e-5)
            assert key not in start or (tensor - start[key]).abs().max() > 1e-3
    logs = [[e for e in read_log(tmp_path / run / "log.jsonl") if "loss" in e] for run in ("one", "two")]
    assert [e["step"] for e in logs[0]] == [e["step"] for e in logs[1]]
    assert [e["loss"] for e in logs[1]] == pytest.approx([e["loss"] for e in logs[0]], rel=1e-4)


@pytest.mark.parametrize(("total", "size"), [(8, 2), (9, 2), (7, 3), (3, 3)])
def test_every_row_has_one_owner(total: int, size: int) -> None:
    spans = [World(torch.device("cpu"), rank, size).rows(total) for rank in range(size)]
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(total))
    assert all(stop > start for start, stop in spans)
