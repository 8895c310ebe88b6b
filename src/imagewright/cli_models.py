"""The commands about models: which are here, which are recommended, get one. Everything heavy is imported inside."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from imagewright import cli_options as opt
from imagewright.cli_output import note, say, say_json, size_text, table
from imagewright.errors import RequestError

group = typer.Typer(rich_markup_mode=None)


def add_to(app: typer.Typer) -> None:
    """Adds `models` with `get` and `clear-cache` below it."""
    app.add_typer(group, name="models")


@group.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    recommended: Annotated[
        bool, typer.Option("--recommended", help="List open weights worth getting, by task, instead.")
    ] = False,
    as_json: opt.AsJson = False,
) -> None:
    """List the models that are here, or those worth getting.

    --recommended gives licence, size, and how long a picture would take on this machine.
    """
    if context.invoked_subcommand is not None:
        return
    if recommended:
        _list_recommended(as_json)
    else:
        _list_here(as_json)


def _list_here(as_json: bool) -> None:
    from imagewright.engines.catalog import Catalog

    listings = Catalog().listings()
    if as_json:
        say_json({"engines": [asdict(listing) for listing in listings]})
        return
    rows: list[tuple[str, ...]] = [("MODEL", "ENGINE", "TECHNIQUE", "SIZE", "FILES", "LICENCE", "WHERE")]
    for info in (info for listing in listings for info in listing.models):
        pixels = "x".join(str(side) for side in info.capabilities.size)
        where = str(info.extra.get("path", ""))
        rows.append((info.name, info.engine, info.technique, pixels, size_text(info.size_bytes), info.licence, where))
    table(rows)
    for listing in listings:
        if listing.locked:
            continue
        if listing.problem:
            say(f"{listing.engine}: {listing.problem} Fix: {listing.fix}")
        elif not listing.models:
            say(f"{listing.engine}: none by name; give {listing.hint} with --model")
    if locked := [listing for listing in listings if listing.locked]:
        names = ", ".join(listing.engine for listing in locked)
        say(f"hosted, with a key of yours: {names}. For example: {locked[0].fix}")


def _list_recommended(as_json: bool) -> None:
    from imagewright.engines.pretrained.recommended import rates, recommended

    measured = rates()
    seconds = {entry.id: entry.seconds(measured) if measured else None for entry in recommended()}
    if as_json:
        entries = [
            {**asdict(entry), "memory_gb": entry.memory_gb, "seconds_here": seconds[entry.id]}
            for entry in recommended()
        ]
        say_json({"models": entries})
        return
    rows: list[tuple[str, ...]] = [
        ("FOR", "MODEL", "LICENCE", "COMMERCIAL USE", "PARAMETERS", "DOWNLOAD", "MEMORY", "A PICTURE HERE", "SINCE")
    ]
    for entry in recommended():
        here = "" if not entry.steps else _span(seconds[entry.id])
        rows.append(
            (
                entry.task,
                entry.id,
                entry.licence,
                entry.commercial,
                f"{entry.parameters_millions:,} M",
                f"{entry.download_gb:g} GB",
                f"{entry.memory_gb:g} GB",
                f"{here}, {entry.steps} steps, {entry.size} px" if entry.steps else "",
                entry.date,
            )
        )
    table(rows)
    say("imagewright models get MODEL   (shows the licence first; licences here are as published at the date given)")
    if measured is None:
        note("times are told once the extra is there: pip install 'imagewright[pretrained]'")


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


@group.command()
def get(
    model: Annotated[str, typer.Argument(help="ORG/NAME, as the hub and --recommended give it.", show_default=False)],
    files: Annotated[
        list[str] | None, typer.Argument(help="Only these files or patterns. Default: what a pipeline needs.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="A folder. Default: the hub's cache, shared with other tools.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Accept the licence without being asked.")] = False,
) -> None:
    """Download open weights, their licence shown first.

    Only safetensors, configurations and vocabularies, each verified by its hash. Given again, it goes on where it
    stopped. Then: imagewright generate "..." --model ORG/NAME
    """
    from imagewright.engines.pretrained import hub
    from imagewright.engines.pretrained.recommended import recommended

    known = next((entry for entry in recommended() if entry.id == model), None)
    found = hub.offer(model, files or (known.files if known else ()))
    say(f"{found.repository}: licence {found.licence}; {found.page}")
    if known:
        say(f"commercial use: {known.commercial} (as published {known.date})")
    if found.gated:
        say("gated: its owners ask you to accept their terms on that page first")
    say(f"{found.size / 1e9:.2f} GB in {len(found.files)} files, into {to or hub.cache_folder()}")
    if not yes:
        _confirm()
    folder = hub.fetch(found, to, progress=sys.stderr.isatty())
    say(f"{folder}\nimagewright generate PROMPT --model {to or model}" if not files else str(folder))


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise RequestError("Nobody is here to accept the licence.", "Read it, and give --yes.")
    typer.confirm("Do you accept the licence and want to download?", abort=True, err=True)


@group.command("clear-cache")
def clear_cache() -> None:
    """Delete the conversions that the fast path on the CPU keeps; they are made again when needed."""
    from imagewright.engines.pretrained import conversions

    freed = conversions.clear()
    say(f"{conversions.folder()}: {size_text(freed) or '0 MB'} freed")
