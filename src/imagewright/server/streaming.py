"""Events that a server sends as they come (text/event-stream), as OpenAI's SDKs read them.

Each is an `event:` line, a `data:` line with JSON, and a blank line. An error on the way is an `error` event whose data
has the key `error`: that is what makes the SDKs raise it. No `[DONE]`: it is not part of the Images API.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from imagewright.server import errors
from imagewright.server.waiting import left

log = logging.getLogger(__name__)
SILENCE = 15.0  # seconds after which a comment says that the connection still lives

Event = tuple[str, Mapping[str, Any]] | tuple[str, Mapping[str, Any], str]  # its name, its data, perhaps an id


class EventStream(Response):
    """An answer of events, in the order in which `events` gives them.

    When the client goes away first, `events` is cancelled where it waits, so that its `finally` can stop the work.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Event], headers: Mapping[str, str] | None = None) -> None:
        self.events, self.status_code, self.background = events, 200, None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, or stop when nobody reads them any more."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending, leaving = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        coming = asyncio.ensure_future(self._next())
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=SILENCE)
                if not done:
                    await write(b": still at work\n\n")
                    continue
                event = coming.result()
                if event is None:
                    break
                await write(encoded(*event))
                coming = asyncio.ensure_future(self._next())
        except OSError:  # the client left between two looks
            return
        except Exception as error:
            told = errors.of(error)
            if told.status >= 500:
                log.error("a stream failed", exc_info=error)
            await write(encoded("error", {"type": "error", **told.body()}))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            await self.events.aclose()
        await write(b"", more=False)

    async def _next(self) -> Event | None:
        return await anext(self.events, None)


def encoded(name: str, data: Mapping[str, Any], id: str | None = None) -> bytes:
    """One event as it goes over the wire; `id` is what a client that comes again sends as Last-Event-ID."""
    head = b"" if id is None else b"id: %s\n" % id.encode()
    return b"%sevent: %s\ndata: %s\n\n" % (head, name.encode(), orjson.dumps(data))
