"""For every test: no network, a home of its own, and a stranger's engine named `fake`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "no_network"), str(HERE / "fake_engine")]

import sitecustomize  # noqa: E402

if not hasattr(sitecustomize, "block"):  # the interpreter came with a sitecustomize of its own
    del sys.modules["sitecustomize"]
    import sitecustomize


@pytest.fixture(autouse=True)
def _network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a test marked `network` may reach another machine."""
    if request.node.get_closest_marker("network"):
        monkeypatch.setenv(sitecustomize.ALLOW, "1")
    else:
        monkeypatch.delenv(sitecustomize.ALLOW, raising=False)


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, also for the processes that a test starts."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(folder))
    path = [str(HERE / "no_network"), str(HERE / "fake_engine"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    return folder


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a shell's background job: the tests of Ctrl-C need one
    signal.signal(signal.SIGINT, signal.default_int_handler)
