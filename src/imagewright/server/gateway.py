"""From the model that a client names to the one that draws: what a name stands for, who may use it, what draws it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from imagewright.engines.engine import ModelInfo
from imagewright.request import Adjustment, ImageRequest, ImageResult
from imagewright.server.errors import ApiError
from imagewright.server.jobs import Job
from imagewright.server.security import Caller
from imagewright.server.settings import Settings
from imagewright.watch import Watch
from imagewright.workshop import Workshop

# Ids that clients send by default, whatever server they talk to: they get this server's default model.
_WORLD = re.compile(r"(dall-e-[23]|gpt-image-[\w.-]+|chatgpt-image-[\w.-]+)\Z")


@dataclass(frozen=True)
class Choice:
    """What a client's model name stands for: `model` of ours, drawn in `pool`; `estimate` in µ$."""

    model: str
    pool: str = "local"
    lane: str | None = None
    estimate: int = 0
    adjustments: tuple[Adjustment, ...] = ()


class Gateway:
    """Routes, rights and prices between the front desk and the workshop."""

    def __init__(self, settings: Settings, workshop: Workshop) -> None:
        self.settings, self.workshop = settings, workshop

    def models(self) -> list[tuple[str, ModelInfo]]:
        """The names that clients may ask for, with what they stand for: the operator's first, then all that is here."""
        here = [model for listing in self.workshop.catalog.listings() for model in listing.models]
        given = [(name, self._info(target)) for name, target in self.settings.models.items()]
        own = [(model.name, model) for model in here if model.name not in self.settings.models]
        return [*given, *own]

    def choose(self, caller: Caller, asked: str | None, request: ImageRequest) -> Choice:
        """What draws `request`. Raises ApiError: 404 for a name that is not served, 403 for one the key may not use."""
        if caller.models is not None and (asked or "default") not in caller.models:
            raise ApiError(403, f"This key may not use the model {asked or 'default'!r}.", param="model")
        name = self._target(asked)
        engine, own_name = self.workshop.catalog.find(name, request.technique)
        info = engine.find(own_name)
        full = f"{info.engine}/{info.name}"
        said = () if asked is None or not _WORLD.match(asked) else (_stands_in(asked, info.name),)
        return Choice(full, "hosted" if info.technique == "hosted" else "local", None, 0, said)

    def make(self, work: Sequence[tuple[Job, ImageRequest, Watch]]) -> list[ImageResult | Exception]:
        """The pictures of jobs of one lane, or why there are none."""
        done: list[ImageResult | Exception] = []
        for job, request, watch in work:
            try:
                request = replace(request, model=job.model)
                done.append(self.workshop.make(request, watch.progress, watch.trace, watch.stop))
            except Exception as error:
                done.append(error)
        return done

    def reserve(self, connection: sa.Connection, caller: Caller, job: Job) -> None:
        """Set aside what the job may cost, in the transaction that accepts it. Raises ApiError (429)."""

    def settle(self, connection: sa.Connection, job: Job, cost: int) -> None:
        """Charge what the job did cost and free the rest, in the transaction that ends it."""

    def _target(self, asked: str | None) -> str | None:
        if asked is None:
            return self.settings.default_model
        if asked in self.settings.models:
            return self.settings.models[asked]
        if _WORLD.match(asked):
            return self.settings.default_model
        if asked in self._served():
            return asked
        raise ApiError(
            404,
            f"The model {asked!r} does not exist or you do not have access to it.",
            "GET /v1/models lists those that are here.",
            param="model",
            code="model_not_found",
        )

    def _served(self) -> set[str]:
        here = [model for listing in self.workshop.catalog.listings() for model in listing.models]
        return {model.name for model in here} | {f"{model.engine}/{model.name}" for model in here}

    def _info(self, name: str) -> ModelInfo:
        engine, own_name = self.workshop.catalog.find(name)
        return engine.find(own_name)


def _stands_in(asked: str, used: str) -> Adjustment:
    return Adjustment("model", asked, used, "this server's model for that name")
