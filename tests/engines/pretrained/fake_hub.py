"""A model hub on the loopback interface, as far as its client needs it, and what it was asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE = 200  # bytes: larger files are "large" to this hub, so have a sha256


@dataclass
class Repository:
    """What a hub says of a repository; `lies` are files whose bytes are not what their hash says."""

    files: dict[str, bytes]
    licence: str = "mit"
    gated: bool = False
    lies: set[str] = field(default_factory=set)


class FakeHub:
    """Repositories by name; `asked` lists (method, path, bytes sent)."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.asked: list[tuple[str, str, int]] = []
        self.url = ""
        self.cut: dict[str, int] = {}  # files that break off after so many bytes, once

    def sent(self, path: str) -> list[int]:
        """Bytes sent in each answer about a file."""
        return [sent for method, asked, sent in self.asked if method == "GET" and asked.endswith(path)]


@contextmanager
def running() -> Iterator[FakeHub]:
    """A hub that answers until the block ends."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            _answer(hub, self, body=False)

        def do_GET(self) -> None:
            _answer(hub, self, body=True)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(hub: FakeHub, handler: BaseHTTPRequestHandler, body: bool) -> None:
    path = unquote(urlsplit(handler.path).path)
    status, headers, data = _found(hub, handler, path)
    cut = hub.cut.pop(path.rpartition("/")[2], None) if body and status < 300 else None
    sent = data if cut is None else data[:cut]
    hub.asked.append((handler.command, path, len(sent) if body else 0))
    handler.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(data))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if body:
        handler.wfile.write(sent)
    if cut is not None:
        handler.wfile.flush()
        handler.close_connection = True
        handler.connection.shutdown(2)


def _found(hub: FakeHub, handler: BaseHTTPRequestHandler, path: str) -> tuple[int, dict[str, str], bytes]:
    parts = path.strip("/").split("/")
    api = parts[:2] == ["api", "models"]
    name = "/".join(parts[2:4] if api else parts[:2])
    repository = hub.repositories.get(name)
    if repository is None:
        return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"{}"
    if api and "tree" in parts:
        entries = [{"type": "file", **_entry(path, data)} for path, data in repository.files.items()]
        return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
    if api:
        return 200, {"Content-Type": "application/json"}, json.dumps(_info(name, repository)).encode()
    file = "/".join(parts[4:])
    if repository.gated:
        return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted"}, b""
    if file not in repository.files:
        return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
    data = repository.files[file]
    digest = _digest(data)
    headers = {"ETag": f'"{digest}"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
    if len(data) > LARGE:
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
    if file in repository.lies:
        data = bytes(len(data))
    asked = handler.headers.get("Range", "")
    if asked.startswith("bytes=") and asked != "bytes=0-0":
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return 206, headers, data[start:]
    return 200, headers, data


def _info(name: str, repository: Repository) -> dict[str, Any]:
    return {
        "id": name,
        "sha": REVISION,
        "private": False,
        "gated": "auto" if repository.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "cardData": {"license": repository.licence},
        "siblings": [{"rfilename": path, **_entry(path, data)} for path, data in repository.files.items()],
    }


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": path, "size": len(data), "oid": _git(data), "blobId": _git(data)}
    if len(data) > LARGE:
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"size": len(data), "sha256": digest, "oid": digest, "pointerSize": 130}
    return entry


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if len(data) > LARGE else _git(data)


def _git(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
