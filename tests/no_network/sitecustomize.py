"""Blocks every socket that leaves this machine, in every process that has this folder on its path."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

ALLOW = "IMAGEWRIGHT_TESTS_NETWORK"  # set for tests marked `network`, and for the processes that they start


class NetworkBlocked(RuntimeError):
    """A test tried to reach another machine."""


def is_local(address: Any) -> bool:
    """Whether a socket address is on this machine: a Unix path, or a loopback name or number."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0])
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "")


def _guard(name: str) -> None:
    original = getattr(socket.socket, name)

    def guarded(self: socket.socket, address: Any) -> Any:
        if not is_local(address) and not os.environ.get(ALLOW):
            raise NetworkBlocked(f"the tests may not reach {address!r}")
        return original(self, address)

    setattr(socket.socket, name, guarded)


def block() -> None:
    """Guards connect and connect_ex, once."""
    if not getattr(socket, "_imagewright_blocked", False):
        socket._imagewright_blocked = True  # type: ignore[attr-defined]
        _guard("connect")
        _guard("connect_ex")


block()
