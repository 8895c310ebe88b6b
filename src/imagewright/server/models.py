"""OpenAI's list of models, with what each can do."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from imagewright.engines.engine import ModelInfo
from imagewright.server.documents import failures
from imagewright.server.errors import ApiError
from imagewright.server.gateway import Gateway
from imagewright.server.security import Maker

STARTED = int(time.time())  # models have no date of their own here
router = APIRouter(prefix="/v1/models", tags=["models"])


class About(BaseModel):
    """What this server tells of a model beyond OpenAI's keys; `name` is its own, behind the id."""

    name: str
    engine: str
    technique: str
    summary: str
    licence: str
    capabilities: dict[str, Any]


class Model(BaseModel):
    """A model as OpenAI's API shows it. `created`: since when this server has it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    imagewright: About


class Models(BaseModel):
    """All models that the caller may use."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("", responses=failures())
def listed(http: Request, caller: Maker) -> Models:
    """The models that the caller may ask for."""
    gateway: Gateway = http.app.state.gateway
    return Models(data=[_shown(name, info) for name, info in gateway.models(caller)])


@router.get("/{model:path}", responses=failures(404))
def shown(model: str, http: Request, caller: Maker) -> Model:
    """One model; its id may hold slashes."""
    gateway: Gateway = http.app.state.gateway
    for name, info in gateway.models(caller):
        if model in (name, f"{info.engine}/{info.name}"):
            return _shown(model, info)
    raise ApiError(404, f"The model {model[:200]!r} does not exist.", param="model", code="model_not_found")


def _shown(name: str, info: ModelInfo) -> Model:
    about = {field: getattr(info, field) for field in ("name", "engine", "technique", "summary", "licence")}
    return Model(
        id=name,
        created=STARTED,
        owned_by=info.engine,
        imagewright=About(**about, capabilities=asdict(info.capabilities)),
    )
