"""The network block itself: in this process and in those that tests start."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

REACH_OUT = "import socket; socket.socket().connect(('192.0.2.1', 80))"


def test_a_foreign_address_is_blocked_here() -> None:
    with socket.socket() as outward, pytest.raises(RuntimeError, match="may not reach"):
        outward.connect(("192.0.2.1", 80))


def test_a_foreign_address_is_blocked_in_child_processes() -> None:
    done = subprocess.run([sys.executable, "-c", REACH_OUT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "NetworkBlocked" in done.stderr


def test_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
