"""Tiny pipelines, built once for all tests of this folder, and an engine that runs them in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

import tiny_pipelines
import torch

from imagewright.engines.pretrained import PretrainedEngine, machine

Get = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Get:
    """The folder of a tiny model by name."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tiny_pipelines.BUILDERS[name](tmp_path_factory.mktemp(name))
        return made[name]

    return get


@pytest.fixture(scope="session")
def shared() -> PretrainedEngine:
    """One engine for all tests: that it stays usable after errors is part of what they show."""
    return PretrainedEngine()


@pytest.fixture(autouse=True)
def in_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain float32 on the CPU; what the machine plans otherwise has tests of its own."""
    if request.module.__name__ in ("test_machine", "test_fast", "test_estimate"):
        return
    plain = machine.Plan(torch.float32, "cpu")
    monkeypatch.setattr(machine, "plan", lambda *args, **named: replace(plain))
    monkeypatch.setattr(machine, "announce", lambda *args: None)
