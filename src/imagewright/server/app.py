"""The application: its parts put together, its life, and how errors leave it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from imagewright import __version__
from imagewright.conversation.remote import configured
from imagewright.database import Database
from imagewright.errors import ImagewrightError
from imagewright.server import a1111, admin, errors, files, images, models, pictures, responses, status, tasks, wire
from imagewright.server.desk import Desk
from imagewright.server.documents import failures
from imagewright.server.errors import ApiError
from imagewright.server.fetch import Fetcher
from imagewright.server.gateway import Gateway
from imagewright.server.guard import Guard
from imagewright.server.hub import Hub
from imagewright.server.keys import Keys
from imagewright.server.links import Links
from imagewright.server.settings import Settings
from imagewright.server.uploads import Decoder
from imagewright.server.worker import Worker
from imagewright.store import Store
from imagewright.workshop import Workshop

log = logging.getLogger(__name__)
ROUTERS = (  # the busiest first: they are asked one by one
    images.router,
    responses.router,
    pictures.router,
    status.router,
    tasks.router,
    models.router,
    files.router,
    admin.router,
    a1111.router,
)


def create_app(settings: Settings, workshop: Workshop | None = None) -> FastAPI:
    """The server as an ASGI application; its parts hang on `app.state` (database, store, gateway, keys, desk)."""
    database = Database(settings.database_url)
    database.create()
    store = Store(database, settings.store_url)
    gateway = Gateway(settings, workshop or Workshop())
    hub = Hub()
    worker = Worker(database, store, gateway, settings, hub) if settings.work else None
    desk = Desk(database, store, gateway, settings, hub, worker)
    decoder = Decoder()

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        if worker is not None:
            await run_in_threadpool(worker.start)
        looking = asyncio.create_task(desk.look())
        yield
        await desk.close(settings.drain)
        looking.cancel()
        if worker is not None:
            await run_in_threadpool(worker.stop, desk.left)
        await run_in_threadpool(decoder.close)
        database.close()

    app = FastAPI(
        title="imagewright",
        version=__version__,
        lifespan=life,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        openapi_url=None,  # status.py has it, as a route that declares its scope
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},  # nobody is told
    )
    state = app.state
    state.settings, state.database, state.store, state.gateway = settings, database, store, gateway
    state.hub, state.desk, state.worker, state.keys = hub, desk, worker, Keys(database, settings)
    state.planner = configured(settings.planner)
    state.links, state.decoder, state.fetcher = Links(database, settings), decoder, Fetcher(settings.image_urls)
    for router in ROUTERS:
        app.include_router(router, responses=failures(404, 422))
    _answer_errors(app)
    app.add_middleware(Guard, settings=settings)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Every error becomes the body that clients read, also those of the framework."""

    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers())

    async def ours(request: Request, error: Exception) -> JSONResponse:
        told = errors.of(error)
        errors.note(log, f"request {request.state.request_id}", error)
        return answer(told)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return answer(_invalid(error.errors()[0], request.headers.get("content-type", "")))

    async def of_framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
        told = ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}", code=code)
        headers = {"allow": _allowed(request)} if error.status_code == 405 else error.headers
        return JSONResponse(told.body(), told.status, headers)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_framework)
    app.add_exception_handler(ImagewrightError, ours)


def _allowed(request: Request) -> str:
    """All methods that a path has."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, Route)]
    fitting = [route.methods or () for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for methods in fitting for method in methods}))


def _invalid(found: dict[str, Any], media_type: str) -> ApiError:
    """One finding of pydantic in OpenAI's words."""
    if found["type"] == "json_invalid":
        return ApiError(400, f"The body is no JSON: {found['ctx']['error']}.", code="invalid_json")
    if found["type"] == "model_attributes_type" and "json" not in media_type.lower():
        return errors.unsupported_media_type(media_type, "application/json")
    param = ".".join(str(part) for part in found["loc"][1:]) or None
    if found["type"] == "missing":
        return errors.missing(param or "body", param or "body")
    if found["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: {param}.", param=param, code="unknown_parameter")
    said = wire.SAID.get(found.get("ctx", {}).get("pattern")) or found["msg"]
    return ApiError(400, f"Invalid value for {param or 'the body'}: {said}.", param=param, code="invalid_value")
