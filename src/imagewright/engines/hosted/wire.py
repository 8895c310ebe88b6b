"""Connections to hosted services that keep a deadline, and that a stop ends at once.

httpx waits for as long as bytes keep trickling in, and another thread cannot end its waiting. So the connections here
(httpcore's, with a network backend of ours) ask the errand that they serve how long they may still wait, and the errand
shuts the socket of whoever waits when it is stopped.
"""

from __future__ import annotations

import socket
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import contextmanager, suppress
from functools import cache
from threading import Event, Lock, Thread, local
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from imagewright.watch import Watch

CONNECT = 5.0  # seconds
MAX_ANSWER = 64 * 2**20  # bytes
MAX_IDLE = 30.0  # seconds that a connection is kept for the next call
UNSENT = (httpcore.ConnectError, httpcore.ConnectTimeout, httpx.ConnectError, httpx.ConnectTimeout)
LATE = (httpcore.TimeoutException, httpx.TimeoutException)
BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, httpx.TransportError)

_Got = TypeVar("_Got")
_serving = local()


class TooLargeError(Exception):
    """The answer has more bytes than are read."""


class Errand:
    """What one request for pictures has its calls done for: until when, and who may end it. Of several threads."""

    def __init__(self, seconds: float, watch: Watch) -> None:
        self.watch, self.deadline = watch, time.monotonic() + seconds
        self._lock, self._over, self._waiting = Lock(), Event(), set[_Line | _Connecting]()
        if watch.stop is not None:
            watch.stop.then(self.end)

    def left(self) -> float:
        """Seconds until the deadline; 0 or less when it is over."""
        return self.deadline - time.monotonic()

    def pause(self, seconds: float) -> None:
        """Waits, but not beyond the deadline. Raises StoppedError as soon as nobody wants the work."""
        self._over.wait(max(0.0, min(seconds, self.left())))
        self.watch.check()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """This thread's connections serve this errand."""
        _serving.errand = self
        try:
            yield
        finally:
            _serving.errand = None

    @contextmanager
    def waiting(self, line: _Line | _Connecting) -> Iterator[None]:
        """While `line` waits for its socket, which is shut when the errand is stopped."""
        with self._lock:
            if self._over.is_set():
                raise httpcore.ReadError("stopped")
            self._waiting.add(line)
        try:
            yield
        finally:
            with self._lock:
                self._waiting.discard(line)

    def end(self) -> None:
        """Wakes all that wait; nothing waits any more."""
        with self._lock:
            self._over.set()
            for line in self._waiting:
                line.shut()


class _Line(httpcore.NetworkStream):
    """A connection that waits no longer than the errand may take that it serves."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._waited(lambda left: self._stream.read(max_bytes, left), timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._waited(lambda left: self._stream.write(buffer, left), timeout)

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Line:
        return self._waited(lambda left: _Line(self._stream.start_tls(ssl_context, server_hostname, left)), timeout)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def shut(self) -> None:
        """Wakes the thread that waits for this connection; it finds it closed."""
        with suppress(OSError):  # closed already
            socket.socket.shutdown(self.get_extra_info("socket"), socket.SHUT_RDWR)  # of TLS too: no farewell is sent

    def _waited(self, wait: Callable[[float | None], _Got], timeout: float | None) -> _Got:
        errand = _served()
        if errand is None:
            return wait(timeout)
        left = errand.left()
        if left <= 0:
            raise httpcore.ReadTimeout("the deadline is over")
        with errand.waiting(self):
            return wait(left if timeout is None else min(left, timeout))


def _served() -> Errand | None:
    """What this thread's connections serve."""
    errand: Errand | None = getattr(_serving, "errand", None)
    return errand


class _Connecting:
    """A connection on its way, in a thread of its own: neither a name that is looked up nor a host that says nothing
    can be hurried."""

    def __init__(self, connect: Callable[[], httpcore.NetworkStream]) -> None:
        self._found: Future[httpcore.NetworkStream] = Future()
        Thread(target=self._run, args=(connect,), daemon=True).start()

    def _run(self, connect: Callable[[], httpcore.NetworkStream]) -> None:
        try:
            stream = connect()
        except Exception as error:
            with suppress(InvalidStateError):  # nobody waits any more
                self._found.set_exception(error)
            return
        try:
            self._found.set_result(stream)
        except InvalidStateError:
            stream.close()

    def wait(self, seconds: float) -> httpcore.NetworkStream:
        """The connection. Raises httpcore.ConnectTimeout, also when it is shut."""
        try:
            return self._found.result(seconds)
        except (TimeoutError, CancelledError):
            if self._found.cancel() or self._found.cancelled():
                raise httpcore.ConnectTimeout("no connection in time") from None
            return self._found.result()

    def shut(self) -> None:
        """Wakes the thread that waits."""
        self._found.cancel()


class _Network(httpcore.NetworkBackend):
    """Sockets as usual, each a `_Line`."""

    def __init__(self) -> None:
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> _Line:
        def connect() -> httpcore.NetworkStream:
            return self._sockets.connect_tcp(host, port, timeout, local_address, socket_options)

        errand = _served()
        if errand is None:
            return _Line(connect())
        connecting = _Connecting(connect)
        with errand.waiting(connecting):
            return _Line(connecting.wait(max(0.0, min(CONNECT, errand.left()))))


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        self._stream.close()


class _Transport(httpx.BaseTransport):
    """httpx over connections that are `_Line`s, through the proxy that the environment names, if any."""

    def __init__(self, url: httpx.URL) -> None:
        options = {
            "ssl_context": _tls(),
            "network_backend": _Network(),
            "max_connections": 100,
            "keepalive_expiry": MAX_IDLE,
        }
        proxy = None if proxy_bypass(url.host) else getproxies().get(url.scheme)
        self._pool: httpcore.ConnectionPool = (
            httpcore.HTTPProxy(proxy, **options) if proxy else httpcore.ConnectionPool(**options)
        )
        weakref.finalize(self, self._pool.close)  # an engine is not always closed by whoever drops it

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        answer = self._pool.handle_request(
            httpcore.Request(
                request.method, url, headers=request.headers.raw, content=request.stream, extensions=request.extensions
            )
        )
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions
        )

    def close(self) -> None:
        self._pool.close()


@cache
def _tls() -> Any:
    return httpx.create_ssl_context()


def transport(base_url: str) -> httpx.BaseTransport:
    """Connections that are kept open between calls; for several threads at once.

    Used without a httpx.Client, which would follow cookies and write every URL, also of a private picture, to the log.
    """
    return _Transport(httpx.URL(base_url))


def body(response: httpx.Response, limit: int) -> bytes:
    """All of an answer. Raises TooLargeError."""
    size, parts = 0, []
    for part in response.iter_bytes():
        size += len(part)
        if size > limit:
            raise TooLargeError
        parts.append(part)
    return b"".join(parts)


def events(response: httpx.Response, limit: int) -> Iterator[bytes]:
    """The data of each event of a stream (text/event-stream). Raises TooLargeError."""
    data: list[bytes] = []
    size = 0
    for line in _lines(response.iter_bytes(), limit):
        if line.startswith(b"data:"):
            size += len(line)
            data.append(line[5:].removeprefix(b" "))
            if size > limit:
                raise TooLargeError
        elif not line and data:
            yield b"\n".join(data)
            data, size = [], 0


def _lines(parts: Iterable[bytes], limit: int) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for part in parts:
        *ended, rest = part.split(b"\n")
        for line in ended:
            yield b"".join([*held, line]).removesuffix(b"\r")
            held, size = [], 0
        held.append(rest)
        size += len(rest)
        if size > limit:
            raise TooLargeError
