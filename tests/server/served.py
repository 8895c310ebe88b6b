"""A server on a port of this machine, in a thread, as real clients meet it; and pictures to send there."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from imagewright.server.app import create_app
from imagewright.server.protocol import UVICORN
from imagewright.server.settings import Settings
from imagewright.workshop import Workshop

FAKE = "fake/painter"  # draws noise of 16x16 in no time; edits too


@contextmanager
def served(folder: Path, workshop: Workshop | None = None, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a running server; `client.app` is the application."""
    app = create_app(Settings(**{"folder": folder, "default_model": FAKE, **settings}), workshop)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5, **UVICORN))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.app = app  # type: ignore[attr-defined]
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def drawn(size: tuple[int, int] = (48, 32), mode: str = "RGB", seed: int = 1) -> Image.Image:
    """Noise, so that no pixel is like another."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    values[..., 3] |= 1
    return Image.fromarray(values).convert(mode)


def hole(size: tuple[int, int] = (48, 32), box: tuple[int, int, int, int] = (12, 8, 30, 24)) -> Image.Image:
    """A mask: transparent in the box."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), box)
    return mask


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The file of a picture."""
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def data_url(image: Image.Image) -> str:
    """A picture as JSON bodies bring it."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


def opened(item: dict[str, Any]) -> Image.Image:
    """The picture of an item with base64."""
    return Image.open(BytesIO(base64.b64decode(item["b64_json"])), formats=("PNG", "JPEG", "WEBP"))


def failed(answer: httpx.Response, status: int, **keys: Any) -> str:
    """The message of an error, checked to be in OpenAI's form."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert {name: body["error"][name] for name in keys} == keys
    assert answer.headers["x-request-id"].startswith("req_")
    return str(body["error"]["message"])


def events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a stream: name and data."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])
