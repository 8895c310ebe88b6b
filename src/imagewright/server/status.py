"""Whether the server lives."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from imagewright import __version__
from imagewright.server.security import Public

router = APIRouter()


@router.get("/health", dependencies=[Public])
async def health() -> dict[str, Any]:
    """That the server answers."""
    return {"status": "ok", "version": __version__}
