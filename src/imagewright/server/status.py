"""Whether the server lives, and what it understands (OpenAPI)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from imagewright import __version__
from imagewright.server.desk import stopping
from imagewright.server.security import Public

router = APIRouter()


@router.get("/health", dependencies=[Public])
async def health(http: Request) -> dict[str, Any]:
    """That the server answers; 503 where it is about to stop, so that others get the requests."""
    if http.app.state.desk.closing:
        raise stopping()
    return {"status": "ok", "version": __version__}


@router.get("/v1/openapi.json", dependencies=[Public], include_in_schema=False)
async def openapi(http: Request) -> dict[str, Any]:
    """All routes, their parameters and answers."""
    described: dict[str, Any] = http.app.openapi()
    return described
