"""Whether the server lives, and what it understands (OpenAPI)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from imagewright import __version__
from imagewright.server.security import Public

router = APIRouter()


@router.get("/health", dependencies=[Public])
async def health() -> dict[str, Any]:
    """That the server answers."""
    return {"status": "ok", "version": __version__}


@router.get("/v1/openapi.json", dependencies=[Public], include_in_schema=False)
async def openapi(http: Request) -> dict[str, Any]:
    """All routes, their parameters and answers."""
    described: dict[str, Any] = http.app.openapi()
    return described
