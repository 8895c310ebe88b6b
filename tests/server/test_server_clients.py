"""Real clients against a real `imagewright serve`: in each, nothing but the base URL differs from its own examples.

A client runs where its environment is there: python scripts/clients.py NAME (scripts/clients.py, tests/clients).
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import drawn, hole

TESTS = Path(__file__).parent.parent
clients = runpy.run_path(str(TESTS.parent / "scripts/clients.py"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a server that draws with the model that ships."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "imagewright", "serve", "--port", "0", "--folder", str(folder)]
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:\d+/v1", process.stderr.readline())
        assert found is not None
        yield found[0]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.mark.parametrize("name", clients["PINNED"])
def test_a_client_works_when_only_its_base_url_is_changed(name: str, server: str, tmp_path: Path) -> None:
    folder = clients["FOLDER"] / clients["environment"](name)
    if not clients["is_made"](name):
        pytest.skip(f"to run it: python scripts/clients.py {name}")
    drawn((64, 64)).save(tmp_path / "picture.png")
    hole((64, 64)).save(tmp_path / "mask.png")
    script = TESTS / "clients" / clients["PINNED"][name]["script"]
    if script.suffix == ".mjs":  # which looks for packages beside itself
        script = Path(shutil.copy(script, folder))
        command = [shutil.which("node") or "node", script, server]
    else:
        command = [clients["python"](folder), script, server]
    keys = {"OPENAI_API_KEY": "sk-test", "OPENAI_API_BASE": server, "OPENAI_BASE_URL": server}
    environment = {**os.environ, **keys, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
