"""HTTP as uvicorn speaks it, with bounds that it has not: on the head of a request, and on what nobody reads any more.

uvicorn waits for ever for a head that comes byte by byte, and keeps all of it. A target must be a path: one that names
a server of its own (`GET http://other/`) is for proxies, and this is none.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from imagewright.server.errors import ApiError

HEAD_SECONDS = 20.0  # for the head of a request, and for the rest of a body that is refused
HEAD_BYTES = 64 * 2**10


class Refused(ValueError):
    """The parser shall give up."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It is there; a request must follow."""
        super().connection_made(transport)
        self._in_head, self._heads, self._bytes, self._fields = True, 0, 0, 0
        self._clock: asyncio.TimerHandle | None = None
        self._wind()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._unwind()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """More of a request, or of the next one."""
        was_in_head, heads = self._in_head, self._heads
        super().data_received(data)
        if self.transport.is_closing():
            return
        if was_in_head and self._in_head and self._heads == heads:
            self._wind()
            self._bytes += len(data)
            if self._bytes > HEAD_BYTES:
                self._refuse(431, f"The head of the request has more than {HEAD_BYTES // 2**10} KiB.")
        elif not self._in_head and self.cycle.response_complete:
            self._wind()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._fields = 0

    def on_url(self, url: bytes) -> None:
        """A part of the target. Raises Refused."""
        super().on_url(url)
        if not self.url.startswith(b"/"):
            raise Refused

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or behind the body. Raises Refused."""
        super().on_header(name, value)
        self._fields += len(name) + len(value) + 32  # as kept
        if self._fields > HEAD_BYTES:
            raise Refused

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head, self._heads, self._bytes = False, self._heads + 1, 0
        self._unwind()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_head = True
        self._unwind()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered like all that is wrong."""
        self._refuse(400, msg)

    def _wind(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(HEAD_SECONDS, self._late)

    def _unwind(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _late(self) -> None:
        self._clock = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # an earlier request is still at work
        if self._in_head:
            self._refuse(408, "The head of the request came too slowly.")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps(ApiError(status, message, code="invalid_http").body()).encode()
        head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()


UVICORN: dict[str, Any] = {"http": Protocol, "ws": "none", "access_log": False, "server_header": False}
