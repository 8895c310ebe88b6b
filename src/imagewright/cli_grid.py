"""The command that lays pictures out in a grid over two things that vary."""

from __future__ import annotations

import secrets
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import typer

from imagewright import cli_options as opt
from imagewright import prompt as language
from imagewright.cli_output import Target, note, parse_size, progress_bar, say, say_json
from imagewright.cli_results import asked, save, utf8
from imagewright.errors import ModelError, RequestError
from imagewright.evaluation.grid import Axis, Cell, axis_of, draw, sheet_of, side_of
from imagewright.pictures import encode, open_picture, save_atomic
from imagewright.prompt import Parsed
from imagewright.request import MAX_SEED, ImageRequest, ImageResult
from imagewright.workshop import Workshop

_AXIS = "prompt (its {a,b} alternatives), or NAME=VALUE,VALUE of model, technique, style, seed, steps, guidance ..."
_X = Annotated[str | None, typer.Option(help=f"What varies from left to right: {_AXIS}")]
_Y = Annotated[str | None, typer.Option(help="What varies from top to bottom, written alike.")]
_Out = Annotated[Path, typer.Option("-o", "--output", help="The sheet, a PNG file (replaced).")]
_Keep = Annotated[Path | None, typer.Option(help="A folder for the single pictures, each with its record.")]
_Cell = Annotated[int, typer.Option(min=32, max=1024, help="Pixels of a cell's side.")]


def add_to(app: typer.Typer) -> None:
    """Adds `grid`."""
    app.command()(grid)


def grid(
    context: typer.Context,
    prompt: opt.Prompt,
    x: _X = None,
    y: _Y = None,
    output: _Out = Path("grid.png"),
    keep: _Keep = None,
    cell: _Cell = 192,
    seed: opt.Seed = None,
    size: opt.Size = None,
    style: opt.Style = None,
    technique: opt.Technique = None,
    model: opt.Model = None,
    num_inference_steps: opt.Steps = None,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = "",
    wildcards: opt.Wildcards = None,
    plain: opt.Plain = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Draw a prompt over two things that vary, as one labelled sheet.

    All cells share a seed unless seeds vary, or the prompt names some. A cell that fails says why in its place, and
    the others go on; the exit code is 1 only where none could be drawn.
    """
    read = partial(language.plain if plain else partial(language.parse, wildcards=wildcards), utf8(prompt))
    written = [job.fields.get("seed") for job in (language.plain if plain else language.parse)(prompt)]
    common = secrets.randbelow(MAX_SEED)
    jobs = read(seed=common if seed is None else seed)
    rows, columns = _axes(x, y, jobs)
    side = side_of(rows, columns, cell)
    kept = Target.parse(keep, "png", 1) if keep else None
    _check(output)  # before any work
    given = {**asked(context.params), **({"size": parse_size(size)} if size else {})}
    opened = cache(open_picture)

    def request(row: int, column: int) -> ImageRequest:
        branch = row if rows.name == "prompt" else column if columns.name == "prompt" else 0
        shared = {"seed": common} if written[branch] is None else {}
        fields = {**shared, **given, **rows.fields(row), **columns.fields(column)}
        return read(seed=fields.get("seed"))[branch].request(opened, **fields)  # a seed also chooses wildcards

    def keep_it(result: ImageResult) -> list[Path]:
        return save(result, kept, True, False)[0] if kept else []

    workshop = Workshop(say=note)
    cells: list[Cell] = []
    try:
        with progress_bar("drawing", shown=not quiet) as progress:
            for one in draw(rows, columns, lambda row, column: workshop.make(request(row, column)), side, keep_it):
                cells.append(one)
                if progress is not None:
                    progress(len(cells), len(rows.values) * len(columns.values))
    finally:  # what was drawn is shown, also after Ctrl-C
        if cells:
            save_atomic(encode(sheet_of(cells, rows, columns, prompt, side), "png"), output)
            _tell(cells, rows, columns, output, as_json)
    if all(one.problem for one in cells):
        raise ModelError("No cell could be drawn.", "See the notes above.")


def _check(output: Path) -> None:
    Target.parse(output, "png", 1)
    if output.is_dir():
        raise RequestError(f"{str(output)!r} is a folder.", "Name a PNG file with -o.")


def _axes(x: str | None, y: str | None, jobs: list[Parsed]) -> tuple[Axis, Axis]:
    """(rows, columns). A prompt with several jobs takes the free side where it is not asked for."""
    if len(jobs) > 1 and "prompt" not in (x, y):
        if x and y:
            raise RequestError(
                f"The prompt stands for {len(jobs)} pictures, and both axes are taken.",
                "Make --x or --y prompt, or take the braces out.",
            )
        x, y = (x, "prompt") if x else ("prompt", y)
    if not x and not y:
        raise RequestError("Nothing varies.", 'Give an axis: --x "seed=1,2,3", or a prompt with {a,b}.')
    columns, rows = (_axis(text, jobs) for text in (x, y))
    if columns.name == rows.name:
        raise RequestError(f"Both axes are {columns.name}.", "Let two things vary, or give one axis only.")
    return rows, columns


def _axis(text: str | None, jobs: list[Parsed]) -> Axis:
    if text == "prompt":
        return Axis("prompt", tuple(_branch(job) for job in jobs), tuple(jobs))
    return axis_of(text) if text else Axis("", ("",), ("",))


def _branch(job: Parsed) -> str:
    """What was chosen in the template, or the prompt."""
    return ", ".join(chosen for _, chosen in job.choices) or job.prompt


def _tell(cells: list[Cell], rows: Axis, columns: Axis, output: Path, as_json: bool) -> None:
    said: dict[str, Any] = {}
    for one in cells:
        where = " / ".join(filter(None, (rows.labels[one.row], columns.labels[one.column])))
        for line in (one.problem, *map(str, one.adjustments)):
            if line:
                said.setdefault(line, where)
    for line, where in said.items():
        note(f"{where}: {line}")
    if as_json:
        axes = {"x": columns, "y": rows}
        told = {side: {"name": axis.name, "labels": list(axis.labels)} for side, axis in axes.items()}
        say_json({"written": str(output), **told, "cells": [one.told(rows, columns) for one in cells]})
    else:
        say(str(output))
