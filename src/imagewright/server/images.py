"""OpenAI's Images API."""

from __future__ import annotations

import base64
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from imagewright.request import ImageRequest
from imagewright.server.desk import Desk
from imagewright.server.security import Maker
from imagewright.server.waiting import while_connected

router = APIRouter(prefix="/v1/images")


class Generation(BaseModel):
    """The body of /v1/images/generations."""

    model_config = ConfigDict(extra="forbid")
    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    seed: int | None = None
    response_format: Literal["url", "b64_json"] | None = None


@router.post("/generations")
async def generations(body: Generation, request: Request, caller: Maker) -> dict[str, Any]:
    """Pictures from words."""
    desk: Desk = request.app.state.desk
    asked = ImageRequest(prompt=body.prompt, n=body.n or 1, seed=body.seed)
    job = await desk.submit(caller, asked, kind="generate", asked=body.model, request_id=request.state.request_id)
    outcome = await while_connected(request, desk.outcome(job))
    data = [{"b64_json": base64.b64encode(file).decode()} for _, file in outcome.pictures]
    return {"created": int(job.created), "data": data}
