"""Work that ends when the client that waits for it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

from imagewright.server.errors import ApiError

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects first (then: ApiError 499).

    The body must have been read: what comes next on the connection can only be its end.
    """
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left(request.receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ApiError(499, "The client went away.", code="cancelled")
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def left(receive: Callable[[], Awaitable[Any]]) -> None:
    """Returns when the client has gone; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
