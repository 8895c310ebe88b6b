"""The plan that trains all weights that ship: stops in time, goes on, and goes on elsewhere from shards."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_recipes import RECIPES, draw_folder
from typer.testing import CliRunner

from imagewright.cli import app
from imagewright.training.checkpoint import load_model
from imagewright.training.command import TRAINABLE
from imagewright.training.presets import PRESETS

SHIP = runpy.run_path(str(RECIPES / "ship.py"), run_name="ship")


def states(build: Path) -> dict[str, str]:
    stages = json.loads((build / "ship.json").read_text())["stages"]
    return {name: entry["state"] for name, entry in stages.items()}


def test_each_stage_is_a_technique_with_both_presets_and_works_on_earlier_ones() -> None:
    seen: set[str] = set()
    for stage in SHIP["PLAN"]:
        assert stage.name in TRAINABLE and {"gpu", "tiny"} <= PRESETS[stage.name].keys()
        assert {run for _, run in stage.needs} <= seen
        assert PRESETS[stage.name]["gpu"].train.schedule == "wsd", "only wsd can end with the minutes"
        assert PRESETS[stage.name]["gpu"].train.fit
        seen.add(stage.name)


class Here:
    """Runs a stage in this process; if `hurried`, it is asked to stop as soon as it trains."""

    hurried = True

    def __init__(self, command: list[str], **more: Any) -> None:
        self.arguments, self.code = command[3:], -1

    def wait(self, timeout: float | None = None) -> int:
        if self.code < 0:
            log = Path(self.arguments[self.arguments.index("--out") + 1]) / "log.jsonl"
            if self.hurried:
                threading.Thread(target=interrupt_when, args=(log,), daemon=True).start()
            self.code = CliRunner().invoke(app, self.arguments).exit_code
            if self.code == 130:
                raise subprocess.TimeoutExpired("train", 0)
        return self.code

    def send_signal(self, number: int) -> None:
        """It had the signal already."""


def interrupt_when(log: Path) -> None:
    while not (log.exists() and '"event": "step"' in log.read_text()):
        time.sleep(0.02)
    signal.raise_signal(signal.SIGINT)


def test_a_stage_stops_in_time_and_goes_on_here_and_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, here, there = draw_folder(tmp_path / "data", 2), tmp_path / "here", tmp_path / "there"
    few = ["batch=4", "sample_every=0", "heldout_every=0"]
    monkeypatch.setitem(SHIP["run"].__globals__, "TOY", ["steps=100000", *few])
    monkeypatch.setattr(subprocess, "Popen", Here)
    build = SHIP["Build"](here, "toy")
    SHIP["go"](build, time.monotonic() + 600, data, None, ["autoencoder"])
    assert states(here) == {"autoencoder": "begun"}
    steps = build.latest("autoencoder")["step"]

    SHIP["shards"](build, tmp_path / "out", 2**20, 4, False)
    elsewhere = SHIP["Build"](there, "toy")
    SHIP["unpack"](elsewhere, [tmp_path / "out"])
    command = SHIP["train_command"](elsewhere, SHIP["PLAN"][0], data)
    assert command[command.index("--from") + 1] == str(there / "autoencoder.start")
    assert load_model(there / "autoencoder.start").pixels == 32
    assert elsewhere.used("autoencoder") == pytest.approx(build.used("autoencoder")) and states(there) == states(here)

    monkeypatch.setattr(Here, "hurried", False)
    monkeypatch.setitem(SHIP["run"].__globals__, "TOY", [f"steps={steps + 2}", *few])
    SHIP["go"](SHIP["Build"](here), time.monotonic() + 600, data, None, ["autoencoder"])
    assert states(here) == {"autoencoder": "done"} and build.latest("autoencoder")["step"] == steps + 2
