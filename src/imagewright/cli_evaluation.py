"""The commands that measure models and check what they may learn from. Everything heavy is imported inside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagewright.cli_options import AsJson
from imagewright.cli_output import phase_bars, say, say_json, table, train_extra
from imagewright.cli_training import data_app
from imagewright.errors import OutputError

WIDTH = 110  # columns of the table: a narrow terminal wraps its lines, which loses nothing

if TYPE_CHECKING:
    from imagewright.evaluation.evaluate import Result


def add_to(app: typer.Typer) -> None:
    """Adds `evaluate`, and `check` to the commands of `data`."""
    app.command()(evaluate)
    data_app.command()(check)


def check(
    directory: Annotated[Path, typer.Argument(help="A sticker set.", show_default=False)],
    listed: Annotated[
        Path | None,
        typer.Option("--list", help="Also write what is trained on, in the form that ships with weights."),
    ] = None,
) -> None:
    """Check that a sticker set keeps what it holds out.

    Recomputes its hash and the rules of its hold-outs, and compares it with the list that ships for this hash.
    """
    from imagewright.data.trained_on import check as checked
    from imagewright.data.trained_on import shipped

    found = checked(directory)
    if listed is not None:
        listed.write_text(found.to_json(), "utf-8")
    say(f"{directory}: {found.pictures} training pictures, manifest sha256 {found.manifest}")
    say(f"{len(found.concepts)} pairs of style and concept, {len(found.pairs)} pairs of concepts in one picture")
    say("no rule is broken" + ("; the list that ships says the same" if shipped(found.manifest) else ""))


def evaluate(
    model: Annotated[str, typer.Argument(help="NAME, ENGINE/NAME or the folder of a run.", show_default=False)],
    against: Annotated[
        Path, typer.Option(help="A folder of captioned pictures to measure against.", show_default=False)
    ],
    suite: Annotated[
        str,
        typer.Option(help="stickers (the sticker set), own (your held-out captions) or edits (by instruction)."),
    ] = "stickers",
    n: Annotated[int, typer.Option("--n", "-n", help="How many pictures; 50 for a look, 5000 for a verdict.")] = 500,
    out: Annotated[
        Path, typer.Option(help="Where pictures and the report go; the same command goes on where it stopped.")
    ] = Path("evaluation"),
    features: Annotated[
        list[str] | None,
        typer.Option(help="Also measure with inception, dinov2 or clip, from weights of your own; repeatable."),
    ] = None,
    costs: Annotated[bool, typer.Option(help="Also measure time and memory.")] = True,
    as_json: AsJson = False,
) -> None:
    """Measure a model against real pictures.

    Draws pictures and prints what three judges see, beside real pictures, a copycat and the targets for the technique;
    writes report.json, samples.png and copies.png.
    """
    with train_extra("Evaluating"):
        from imagewright.evaluation import evaluate as evaluation
        from imagewright.evaluation import verdicts
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made: {error}.", "Write elsewhere with --out.") from error
    if suite == "edits":
        return _evaluate_edits(model, against, n, out, as_json)
    with phase_bars() as told:
        result = evaluation.evaluate(
            model, against, out, suite=suite, n=n, features=features or (), costs=costs, told=told
        )
    evaluation.save(result, out)
    verdicts.samples(result).save(out / "samples.png")
    verdicts.copies(result).save(out / "copies.png")
    if as_json:
        say_json(evaluation.plain(result))
    else:
        _print(result)
        say(f"{out / 'report.json'}, {out / 'samples.png'}, {out / 'copies.png'}")


def _evaluate_edits(model: str, against: Path, n: int, out: Path, as_json: bool) -> None:
    from imagewright.evaluation.edits import evaluate_edits, plain_values, shown

    with phase_bars() as told:
        sides, asked, pictures = evaluate_edits(model, against, n=n, told=told)
    shown(asked, pictures).save(out / "edits.png")
    report = plain_values(sides)
    (out / "edits.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if as_json:
        say_json(report)
        return
    rows = [("measure", *sides, "N")]
    for name, found in sides["model"].items():
        figures = [_figure(name, sides[side][name].value) for side in sides]
        rows.append((name, f"{figures[0]}  [{_figure(name, found.low)}, {_figure(name, found.high)}]", *figures[1:]))
        rows[-1] = (*rows[-1], str(found.n))
    table(rows)
    say(f"{out / 'edits.json'}, {out / 'edits.png'}")


def _figure(name: str, value: float) -> str:
    return f"{value:.1f} dB" if name.startswith("PSNR") else f"{100 * value:.1f} %"


def _print(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    from imagewright.evaluation import verdicts

    column = verdicts.column_of(result.facts["technique"], result.facts["steps"])
    table = Table(box=None, pad_edge=False)
    for head in ("measure", "model", "real", "copycat", "N", f"target, {column}" if column else "target", ""):
        table.add_column(head, justify="left" if head in ("measure", "model", "") else "right", no_wrap=True)
    for row in verdicts.rows(result):
        verdict = {None: "", True: "reached", False: "missed"}[row.reached]
        table.add_row(row.measure, row.model, row.real, row.copycat, str(row.n), row.target, verdict)
    for line in verdicts.facts_text(result.facts):
        say(line)
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    console.print(table)
