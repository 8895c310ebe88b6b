"""The commands about virtual keys and what they used, on the server's database directly. Heavy imports are inside."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from imagewright import cli_options as opt
from imagewright.cli_output import note, say, say_json, table
from imagewright.errors import MissingExtraError, RequestError

group = typer.Typer(rich_markup_mode=None, help="Make and change the keys that clients of the server use.")

Database = Annotated[
    str | None, typer.Option(help="The server's database: postgresql://... (its SQLite file unless told).")
]
Folder = Annotated[Path | None, typer.Option(help="Where the server's SQLite file lies.")]
KeyId = Annotated[str, typer.Argument(help="The key's id, as `imagewright keys list` shows it.", show_default=False)]
DAY = 86_400


def add_to(app: typer.Typer) -> None:
    """Adds `keys` with its commands, and `usage`."""
    app.add_typer(group, name="keys")
    app.command()(usage)


@group.command()
def create(
    name: Annotated[str, typer.Argument(help="Who will use it.", show_default=False)],
    models: Annotated[
        str | None, typer.Option(help="Names that it may ask for, as openai/*,my-image. Default: all.")
    ] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Dollars that it may spend in a period.")] = None,
    period: Annotated[str, typer.Option(help="day, week, month or total.")] = "total",
    requests: Annotated[int | None, typer.Option(min=1, help="Requests a minute.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Pictures a minute.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Requests at work at the same time.")] = None,
    days: Annotated[float | None, typer.Option(min=0, help="How long it is good for.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may also make keys and see all that is used.")] = False,
    database: Database = None,
    folder: Folder = None,
    as_json: opt.AsJson = False,
) -> None:
    """Make a key. Its token is printed this once only; the server keeps no more than a hash of it.

    As soon as there is a key, the server wants one from everybody.
    """
    with _open(database, folder) as connection:
        from imagewright.server import admin as shown
        from imagewright.server import keys

        key, token = keys.create(
            connection,
            name=name,
            scopes=("images", "admin") if admin else ("images",),
            models=None if models is None else tuple(part.strip() for part in models.split(",") if part.strip()),
            budget=None if budget is None else round(budget * 1_000_000),
            period=period,
            requests=requests,
            images=images,
            parallel=parallel,
            expires=None if days is None else time.time() + days * DAY,
        )
    if as_json:
        say_json(shown.with_token(key, token))
        return
    note(f"{key.id} for {key.name}; the token is shown this once only")
    say(token)


@group.command(name="list")
def listed(database: Database = None, folder: Folder = None, as_json: opt.AsJson = False) -> None:
    """List the keys, with what each may do and has spent."""
    with _open(database, folder) as connection:
        from imagewright.server import admin, keys

        found = [admin.to_json(key) for key in keys.listed(connection)]
    if as_json:
        say_json({"keys": found})
        return
    rows: list[tuple[str, ...]] = [("ID", "NAME", "TOKEN", "MODELS", "BUDGET", "SPENT", "LIMITS", "STATE")]
    rows += [_row(key) for key in found]
    table(rows)


@group.command()
def disable(key: KeyId, database: Database = None, folder: Folder = None) -> None:
    """Take a key's rights away, within seconds. What it made and used is kept."""
    with _open(database, folder) as connection:
        from imagewright.server import keys

        keys.change(connection, key, {"disabled": True})
    note(f"{key} is disabled")


@group.command()
def rotate(key: KeyId, database: Database = None, folder: Folder = None, as_json: opt.AsJson = False) -> None:
    """Give a key a new token; the old one is worth nothing within seconds."""
    with _open(database, folder) as connection:
        from imagewright.server import admin, keys

        changed, token = keys.rotate(connection, key)
    if as_json:
        say_json(admin.with_token(changed, token))
        return
    note(f"{key} has a new token, which is shown this once only")
    say(token)


def usage(
    since: Annotated[str | None, typer.Option(help="The first day, as 2026-11-22, or days back, as 7.")] = None,
    by: Annotated[str, typer.Option(help="key, model or day.")] = "model",
    key: Annotated[str | None, typer.Option(help="Of this key only.")] = None,
    database: Database = None,
    folder: Folder = None,
    as_json: opt.AsJson = False,
) -> None:
    """Show what was asked of the server, and what it did cost. The log holds no prompts and no pictures."""
    begin = _time(since)
    with _open(database, folder) as connection:
        from imagewright.server import admin
        from imagewright.server import usage as log

        if by not in log.GROUPS:
            raise RequestError(f"There is no {by!r} to sum up by.", f"Use {', '.join(log.GROUPS)}.")
        found = [admin.in_dollars(row) for row in log.totals(connection, by, key, begin)]
    if as_json:
        say_json({"usage": found})
        return
    columns = ("requests", "failed", "images", "tokens_in", "tokens_out", "seconds", "cost")
    rows: list[tuple[str, ...]] = [(by.upper(), *(column.replace("_", " ").upper() for column in columns))]
    for row in found:
        numbers = (f"{row[name]:,}" for name in columns[:5])
        unknown = f" (+{row['unpriced']} unknown)" if row["unpriced"] else ""
        rows.append((str(row[by] or ""), *numbers, f"{row['seconds']:.1f}", f"${row['cost']:.4f}{unknown}"))
    table(rows)


@contextmanager
def _open(database: str | None, folder: Path | None) -> Iterator[Any]:
    """A transaction on the database that the server uses."""
    try:
        from imagewright.database import Database
        from imagewright.server import admin  # noqa: F401  all of the server's tables
    except ImportError as error:
        raise MissingExtraError("The server", "serve") from error
    from imagewright.cli_serve import settings_for

    found = Database(settings_for(database=database, folder=folder).database_url)
    found.create()
    with found.write() as connection:
        yield connection
    found.close()


def _row(key: Mapping[str, Any]) -> tuple[str, ...]:
    limits = (("requests", "requests/min"), ("images", "images/min"), ("parallel", "at once"))
    budget = "" if key["budget"] is None else f"${key['budget']:.2f} {key['period']}"
    state = "disabled" if key["disabled"] else "expired" if 0 < (key["expires"] or 0) <= time.time() else "good"
    return (
        key["id"],
        key["name"],
        f"{key['prefix']}...",
        "all" if key["models"] is None else ",".join(key["models"]),
        budget,
        f"${key['spent']:.4f}",
        ", ".join(f"{key[name]} {unit}" for name, unit in limits if key[name] is not None),
        state,
    )


def _time(since: str | None) -> float:
    if since is None:
        return 0.0
    try:
        return time.time() - float(since) * DAY if since.replace(".", "", 1).isdigit() else _day(since)
    except ValueError as error:
        raise RequestError(f"{since!r} is no day.", "Write it as 2026-11-22, or as a number of days back.") from error


def _day(text: str) -> float:
    return datetime.fromisoformat(text).astimezone().timestamp()
