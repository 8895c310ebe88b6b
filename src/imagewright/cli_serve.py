"""The commands that run the server. Everything heavy is imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from imagewright.cli_output import note
from imagewright.errors import MissingExtraError


def add_to(app: typer.Typer) -> None:
    """Adds `serve`."""
    app.command()(serve)


def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen at (127.0.0.1: this machine only).")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="The port (8000).")] = None,
    database: Annotated[
        str | None,
        typer.Option(help="Where jobs, keys and records are kept: postgresql://... (a SQLite file unless told)."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where pictures and the SQLite file lie.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="What draws when a client names no model.")] = None,
    work: Annotated[bool, typer.Option(help="Draw in this process too, not only in `imagewright worker`.")] = True,
) -> None:
    """Serve pictures over HTTP, as OpenAI's clients ask for them.

    Point any OpenAI client at http://127.0.0.1:8000/v1. On another address than loopback it needs
    IMAGEWRIGHT_ADMIN_KEY.
    """
    settings = settings_for(host=host, port=port, database=database, folder=folder, default_model=model, work=work)
    try:
        import uvicorn

        from imagewright.server.app import create_app
    except ImportError as error:
        raise MissingExtraError("The server", "serve") from error
    app = create_app(settings)
    note(f"serving at http://{settings.host}:{settings.port}/v1 (stop with Ctrl-C)")
    uvicorn.run(
        app,
        host=settings.host.strip("[]"),
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain),
    )


def settings_for(**given: Any) -> Any:
    """Settings from the command line, then the environment, then the configuration."""
    import os

    from imagewright import config
    from imagewright.server import settings

    variables = {"admin_key": "IMAGEWRIGHT_ADMIN_KEY", "database": "IMAGEWRIGHT_DATABASE"}
    told = {name: os.environ.get(variable) for name, variable in variables.items()}
    found = config.read()
    tables = {name: found.section(name) for name in ("models", "routes", "prices")}
    return settings.read(found.section("server"), **tables, **told | {k: v for k, v in given.items() if v is not None})
