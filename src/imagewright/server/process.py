"""The two processes: one that serves over HTTP, and one that only works. Both end in order when they are told to.

SIGTERM or Ctrl-C: nothing more is accepted (503 with Retry-After) or begun, what was begun is ended, and what is not
by the end of `drain` seconds is put back for others; the exit code is 0. A second signal: at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from imagewright.database import Database
from imagewright.errors import ImagewrightError
from imagewright.server.app import create_app
from imagewright.server.gateway import Gateway
from imagewright.server.hub import Hub
from imagewright.server.protocol import UVICORN
from imagewright.server.settings import Settings
from imagewright.server.worker import Worker
from imagewright.store import Store
from imagewright.workshop import Workshop

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Say = Callable[[str], None]


def serve(settings: Settings, say: Say) -> None:
    """Serve until a signal; `say` gets the address. Raises ImagewrightError where the port is taken."""
    with _listen(settings.host, settings.port) as listener:
        app = create_app(settings)
        worker: Worker | None = app.state.worker
        server = _Server(app, settings.drain, worker)
        host, port = settings.host, listener.getsockname()[1]
        server.ready = lambda: say(f"serving at http://{host}:{port}/v1 (stop with Ctrl-C)")
        server.run([listener])
    if worker is not None and not worker.stop(0):
        _leave()


def work(settings: Settings, say: Say) -> None:
    """Do jobs until a signal."""
    database = Database(settings.database_url)
    database.create()
    store = Store(database, settings.store_url)
    worker = Worker(database, store, Gateway(settings, Workshop()), settings, Hub())
    told = threading.Event()

    def tell(*_: Any) -> None:
        if told.is_set():
            worker.hurry()
        told.set()

    with _handling(tell):
        worker.start()
        say(f"working for {database.url.render_as_string(hide_password=True)} (stop with Ctrl-C)")
        told.wait()
        done = worker.stop(settings.drain)
    database.close()
    if not done:
        _leave()


class _Server(uvicorn.Server):
    """uvicorn, which goes on listening while it drains, so that clients get a 503 and not a closed door, and which
    does not end the process by the signal that it got."""

    def __init__(self, app: FastAPI, drain: float, worker: Worker | None) -> None:
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, **UVICORN)
        super().__init__(config)
        self.desk, self.drain, self.worker = app.state.desk, drain, worker
        self.ready: Callable[[], None] = lambda: None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so when it listens."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self.ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Only for as long as it runs."""
        with _handling(self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal came."""
        if self.desk.closing or not self.started:
            self.should_exit = self.force_exit = True
            if self.worker is not None:
                self.worker.hurry()
        else:
            self._loop.call_soon_threadsafe(self._begin_to_drain)

    def _begin_to_drain(self) -> None:
        self._draining = self._draining or asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        try:
            await self.desk.close(self.drain)
        finally:
            self.config.timeout_graceful_shutdown = max(1, int(self.desk.left))
            self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    try:
        where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(where[4][:2], family=where[0], backlog=2048)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise ImagewrightError(
            f"The server cannot listen at {host}, port {port}: {reason}.", "Choose another with --port or --host."
        ) from error


@contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, handler) for one in SIGNALS}
    try:
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, old)


def _leave() -> None:
    """End the process although work goes on in its threads: it was put back, for others to do."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
