"""For the tests of the server: an engine that takes its time, here and in the processes that a test starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

SLOW = str(Path(__file__).parent / "slow_engine")
sys.path.insert(0, SLOW)


@pytest.fixture(autouse=True)
def slow_log(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the slow engine did in this test; see imagewright_slow."""
    path = tmp_path / "slow.log"
    monkeypatch.setenv("IMAGEWRIGHT_SLOW_LOG", str(path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SLOW, os.environ["PYTHONPATH"]]))
    return path
