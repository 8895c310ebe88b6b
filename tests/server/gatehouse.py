"""What tests of the gateway share: engines that do as they are told, at a price, and a desk with a worker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image

from imagewright.database import Database
from imagewright.engines.catalog import Catalog, _Source
from imagewright.engines.engine import Engine, ModelInfo
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.server import jobs, keys, orders
from imagewright.server.app import create_app
from imagewright.server.gateway import Gateway
from imagewright.server.jobs import Job
from imagewright.server.security import Caller
from imagewright.server.settings import Settings
from imagewright.watch import Watch
from imagewright.workshop import Workshop

CENT = 10_000  # µ$
Act = Callable[[ImageRequest, Watch], dict[str, Any]]  # -> what goes into the record, as cost; or it raises


class Paid(Engine):
    """A service that draws grey squares; `act` says what a call costs, or how it goes wrong."""

    concurrency = 64

    def __init__(self, name: str, act: Act | None = None, can: Capabilities | None = None) -> None:
        self.name = name  # type: ignore[misc]
        self.act = act or (lambda request, watch: {})
        self.can = can or Capabilities(size=(8, 8), seed=False)
        self.calls = 0

    def models(self) -> Sequence[ModelInfo]:
        return [
            ModelInfo(
                name="m",
                engine=self.name,
                technique="hosted",
                summary="",
                licence="",
                capabilities=self.can,
            )
        ]

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        self.calls += 1
        told = self.act(request, watch)
        images = [Image.new("RGB", request.size or (8, 8), "grey") for _ in range(request.n)]
        images[0].info["record"] = told
        return images, []


class Shelf(Catalog):
    """A catalog with these engines only."""

    def __init__(self, *engines: Engine) -> None:
        super().__init__()
        self._engines = {engine.name: engine for engine in engines}
        self.__dict__["_sources"] = {engine.name: _Source("") for engine in engines}


def shop(*engines: Engine) -> Workshop:
    """A workshop with these engines only."""
    return Workshop(Shelf(*engines))


def gateway(*engines: Engine, **settings: Any) -> Gateway:
    """A gateway to these engines, to the first one's model by default."""
    given = {"folder": Path(), "default_model": f"{engines[0].name}/m", **settings}
    return Gateway(Settings(**given), shop(*engines))


@contextlib.contextmanager
def server(folder: Path, *engines: Engine, **settings: Any) -> Iterator[TestClient]:
    """A running server with these engines, the first one's model by default."""
    given = {"folder": folder, "default_model": f"{engines[0].name}/m", **settings}
    app = create_app(Settings(**given), shop(*engines))
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def new_key(database: Database, **values: Any) -> tuple[Caller, str]:
    """A caller with a key of its own, and its token."""
    with database.write() as connection:
        key, token = keys.create(connection, **{"name": "somebody", **values})
    return key.caller, token


def entered(found: Gateway, database: Database, caller: Caller, begun: bool = True, **order: Any) -> Job:
    """An order, accepted as the desk does it, and begun at once. Raises ApiError."""
    request = ImageRequest(**{"prompt": "a fox", **order})
    choice = found.choose(caller, None, request)
    job = Job(
        id=jobs.new_id(),
        owner=caller.key_id,
        kind="generate",
        asked=None,
        model=choice.model,
        pool=choice.pool,
        order=orders.to_json(request, lambda data, size: ""),
        plan=choice.plan,
        reserved=choice.estimate or 0,
        created=time.time(),
    )
    with database.write() as connection:
        jobs.add(connection, job, 10_000)
        found.reserve(connection, caller, job)
        if begun:
            job = replace(job, state=jobs.RUNNING, worker="worker", attempts=1)
            taken = {name: getattr(job, name) for name in ("state", "worker", "attempts")}
            connection.execute(jobs.jobs.update().where(jobs.jobs.c.id == job.id).values(**taken))
    return job


def key_row(database: Database, caller: Caller) -> keys.Key:
    """A caller's key as it stands."""
    with database.read() as connection:
        return keys.get(connection, caller.key_id)


def bearer(token: str, **more: str) -> dict[str, str]:
    """The headers of who has a token."""
    return {"authorization": f"Bearer {token}", **more}
