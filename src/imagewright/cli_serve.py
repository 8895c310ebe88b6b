"""The commands that run the server. Everything heavy is imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from imagewright.cli_output import note
from imagewright.errors import MissingExtraError

Coalesce = Annotated[
    bool | None, typer.Option("--coalesce/--one-by-one", help="Draw several pictures at once, where that is faster.")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(help="Where jobs, keys and records are kept: postgresql://... (a SQLite file unless told)."),
]
DefaultModel = Annotated[str | None, typer.Option("--model", "-m", help="What draws when a client names no model.")]
Drain = Annotated[float | None, typer.Option(min=0, help="Seconds to end what was begun, once told to stop (30).")]
Folder = Annotated[Path | None, typer.Option(help="Where pictures and the SQLite file lie.")]
PicturesUrl = Annotated[
    str | None, typer.Option("--pictures", help="Where pictures lie instead: a folder, or a URL such as s3://bucket/x.")
]
Slots = Annotated[
    int | None, typer.Option(min=1, help="Jobs done at once on this machine's cores (as many as the engine takes).")
]


def add_to(app: typer.Typer) -> None:
    """Adds `serve` and `worker`."""
    app.command()(serve)
    app.command()(worker)


def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen at (127.0.0.1: this machine only).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The port (8000); 0 takes one that is free.")
    ] = None,
    database: DatabaseUrl = None,
    folder: Folder = None,
    pictures: PicturesUrl = None,
    model: DefaultModel = None,
    work: Annotated[
        bool | None, typer.Option("--work/--no-work", help="Draw in this process too, not only in workers.")
    ] = None,
    slots: Slots = None,
    coalesce: Coalesce = None,
    drain: Drain = None,
) -> None:
    """Serve pictures over HTTP, as OpenAI's clients ask for them.

    Point any OpenAI client at http://127.0.0.1:8000/v1. On another address than loopback it needs
    IMAGEWRIGHT_ADMIN_KEY. Ctrl-C or SIGTERM ends it in order; what it has accepted goes on at the next start.
    """
    settings = settings_for(
        host=host, port=port, database=database, folder=folder, pictures=pictures, default_model=model, work=work,
        slots=slots, coalesce=coalesce, drain=drain,
    )  # fmt: skip
    _process().serve(settings, note)


def worker(
    database: DatabaseUrl = None,
    folder: Folder = None,
    pictures: PicturesUrl = None,
    model: DefaultModel = None,
    slots: Slots = None,
    coalesce: Coalesce = None,
    drain: Drain = None,
) -> None:
    """Do the jobs that servers accept, without serving: on as many machines as wanted.

    All must reach the same database and the same pictures: --database postgresql://... and --pictures (a folder that
    all have mounted, or a URL), the same as of `imagewright serve`.
    """
    settings = settings_for(
        database=database, folder=folder, pictures=pictures, default_model=model, slots=slots, coalesce=coalesce,
        drain=drain,
    )  # fmt: skip
    _process().work(settings, note)


def _process() -> Any:
    try:
        from imagewright.server import process
    except ImportError as error:
        raise MissingExtraError("The server", "serve") from error
    return process


def settings_for(**given: Any) -> Any:
    """Settings from the command line, then the environment, then the configuration."""
    import os

    from imagewright import config
    from imagewright.server import settings

    variables = {"admin_key": "IMAGEWRIGHT_ADMIN_KEY", "database": "IMAGEWRIGHT_DATABASE"}
    told = {name: os.environ.get(variable) or None for name, variable in variables.items()}
    found = config.read()
    tables = {name: found.section(name) for name in ("models", "routes", "prices", "planner")}
    return settings.read(found.section("server"), **tables, **told | {k: v for k, v in given.items() if v is not None})
