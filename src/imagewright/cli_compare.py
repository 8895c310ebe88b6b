"""The command that compares models. Everything heavy is imported inside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagewright import cli_options as opt
from imagewright.cli_output import note, progress_bar, say, say_json, table
from imagewright.errors import ModelError, ModelNotFoundError, RequestError

if TYPE_CHECKING:
    from imagewright.evaluation.compare import Entry, Scorer
    from imagewright.evaluation.suites import SheetPrompt

SWEEP = "1,2,4,8,16"

_Technique = Annotated[str, typer.Option(help="all: the first model of each family; or one family: all its models.")]
_Models = Annotated[str, typer.Option(help="Compare these: names or folders of runs, with commas between.")]
_Out = Annotated[Path, typer.Option(help="The sheet, a PNG file (replaced); its numbers go beside it as .json.")]
_Report = Annotated[Path | None, typer.Option(help="Draw 24 fixed prompts, and write a page into this folder.")]
_Run = Annotated[list[Path] | None, typer.Option(help="Plot the losses of this run in the report; repeatable.")]
_Evaluations = Annotated[Path | None, typer.Option(help="A folder of `evaluate` reports, for the report.")]
_Sweep = Annotated[str, typer.Option(help="Numbers of steps to draw the report with, too; '' for none.")]


def add_to(app: typer.Typer) -> None:
    """Adds `compare`."""
    app.command()(compare)


def compare(
    prompt: Annotated[str | None, typer.Argument(help="What to draw. Not with --report.", show_default=False)] = None,
    technique: _Technique = "all",
    models: _Models = "",
    seed: Annotated[int, typer.Option(min=0, help="The same for every picture.")] = 0,
    style: opt.Style = None,
    steps: opt.Steps = None,
    out: _Out = Path("compare.png"),
    report: _Report = None,
    run: _Run = None,
    evaluations: _Evaluations = None,
    sweep: _Sweep = SWEEP,
    as_json: opt.AsJson = False,
) -> None:
    """Draw one request with several models, side by side.

    Each model runs in a process of its own: time from a cold start, time of a later picture, most memory, and how a
    judge scores the match with the words.
    """
    if (prompt is None) == (report is None):
        raise RequestError("Give a prompt, or --report FOLDER.", 'For example: imagewright compare "a red fox"')
    if (run or evaluations) and report is None:
        raise RequestError("Runs and evaluations go into a report.", "Add --report FOLDER.")
    from imagewright.engines.catalog import Catalog
    from imagewright.evaluation.compare import entries, models_of
    from imagewright.evaluation.suites import COMPARE_24, SheetPrompt

    chosen, absent = models_of(Catalog(), technique, [name for name in models.split(",") if name])
    for family in absent:
        note(f"no {family} model is here")
    logs, counts = _logs(run or [], evaluations), _numbers(sweep)
    prompts = COMPARE_24 if prompt is None else (SheetPrompt("asked", prompt, style),)
    scorer = _scorer()
    with progress_bar("measuring") as progress:
        made, problems = entries(chosen, prompts, seed, steps=steps, scorer=scorer, progress=progress)
    for label, why in problems.items():
        note(f"{label}: {why}")
    if not made:
        raise ModelError("No model could draw.", "See the notes above.")
    if report is None:
        _write_sheet(made, prompts, out)
    else:
        from imagewright.evaluation.compare_report import Comparison, write

        swept = _sweep(
            {label: chosen[label] for label in (entry.label for entry in made)}, prompts, seed, counts, scorer
        )
        write(Comparison(prompts, made, swept, *logs, problems), report)
    _tell(made, as_json, out if report is None else report / "index.html")


def _scorer() -> Scorer | None:
    from imagewright.refine.judge import Judges

    try:
        return Judges()
    except ModelNotFoundError as error:
        note(f"not scored: {error.message}")
        return None


def _numbers(text: str) -> list[int]:
    counts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(count.isdecimal() and int(count) > 0 for count in counts):
        raise RequestError(f"Cannot read --sweep {text!r}.", f"Write it like {SWEEP}.")
    return [int(count) for count in counts]


def _logs(runs: list[Path], evaluations: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is there before anything is drawn: the logs of runs and the reports of evaluations."""
    from imagewright.evaluation.compare_report import read_evaluations, read_run

    names = [run.name if [other.name for other in runs].count(run.name) == 1 else str(run) for run in runs]
    logs = {name: read_run(run) for name, run in zip(names, runs, strict=True)}
    return logs, read_evaluations(evaluations) if evaluations else {}


def _sweep(
    models: dict[str, str], prompts: Sequence[SheetPrompt], seed: int, counts: list[int], scorer: Scorer | None
) -> list[Entry]:
    """The same with other numbers of steps, where a model has steps and there is a judge to score them."""
    if scorer is None:
        return []
    from imagewright.engines.catalog import Catalog
    from imagewright.evaluation.compare import entries, with_steps

    able, swept = with_steps(Catalog(), models), []
    with progress_bar("other numbers of steps") as progress:
        for index, count in enumerate(counts):
            swept += entries(able, prompts, seed, steps=count, scorer=scorer)[0]
            if progress is not None:
                progress(index + 1, len(counts))
    return swept


def _write_sheet(made: list[Entry], prompts: Sequence[SheetPrompt], out: Path) -> None:
    from imagewright.evaluation.compare import sheet_of
    from imagewright.pictures import encode, save_atomic

    save_atomic(encode(sheet_of(made, prompts), "png"), out)
    told = {"prompt": prompts[0].prompt, "style": prompts[0].style, "models": [entry.told() for entry in made]}
    save_atomic(json.dumps(told, indent=1).encode(), out.with_suffix(".json"))


def _tell(made: list[Entry], as_json: bool, written: Path) -> None:
    from imagewright.evaluation.compare import table as rows_of

    if as_json:
        say_json({"written": str(written), "models": [entry.told() for entry in made]})
        return
    table(rows_of(made))
    for entry in made:
        for adjustment in entry.adjustments:
            note(f"{entry.label}: {adjustment}")
    say(str(written))
