"""The commands that make data, train and export. Everything heavy is imported inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imagewright.cli_output import phase_bars, say, train_extra
from imagewright.errors import RequestError

_Out = Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)]

data_app = typer.Typer(
    help="Make or check a folder of captioned pictures.", no_args_is_help=True, rich_markup_mode=None
)


def add_to(app: typer.Typer) -> None:
    """Adds `data`, `train` and `export`."""
    app.add_typer(data_app, name="data")
    app.command()(train)
    app.command()(export)


@data_app.command()
def stickers(
    out: _Out,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="A folder with the pinned packages. Default: fetched with npm."),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels.")] = 128,
    limit: Annotated[int | None, typer.Option(help="At most so many pictures, for a try.")] = None,
    scenes: Annotated[int, typer.Option(help="How many composed scenes to add.")] = 0,
    edits: Annotated[int, typer.Option(help="How many pairs of scenes with an instruction to add.")] = 0,
    seed: Annotated[int, typer.Option(help="Chooses the scenes.")] = 0,
) -> None:
    """Make the sticker data set.

    Open-licensed emoji art of four vendors with captions, scenes with exact captions, and a licence ledger.
    """
    with train_extra("Making data"), phase_bars() as progress:
        from imagewright.data.stickers import build

        made = build(
            out, source=source, size=size, limit=limit, scenes=scenes, edits=edits, seed=seed, progress=progress
        )
    say(f"{out}: {sum(made.counts.values())} pictures. Next: imagewright train --technique diffusion --data {out}")


@data_app.command()
def folder(
    directory: Annotated[Path, typer.Argument(help="Pictures with captions beside them.", show_default=False)],
) -> None:
    """Check your own folder of captioned pictures.

    Says how many would be trained on, and what is skipped and why.
    """
    with train_extra("Reading data"):
        from imagewright.data.folder import read_folder

        report = read_folder(directory)
    say(f"{directory}: {len(report.records)} pictures, {len(report.skipped)} skipped")
    for skipped in report.skipped:
        say(f"  skipped {skipped.file_name}: {skipped.reason}")
    for warning in report.warnings:
        say(f"  warning: {warning}")


_Stage = Annotated[
    Path | None,
    typer.Option(
        help="A finished run of the autoencoder or tokenizer to work on, instead of training one, or a model that "
        "has one (stickers-diffusion).",
        show_default=False,
    ),
]
_Start = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="A run of the same model to begin from, as for fine-tuning, or an exported model by folder or name "
        "(stickers-diffusion).",
        show_default=False,
    ),
]


def train(
    technique: Annotated[
        str,
        typer.Option(
            help="What to train: vae, gan, diffusion, autoregressive; consistency: a student of a diffusion run "
            "(--from) that draws in fewer passes; or a first stage alone: autoencoder, tokenizer.",
            show_default=False,
        ),
    ],
    data: Annotated[Path, typer.Option(help="A folder made by `imagewright data`, or your own.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The run's folder; the same command goes on where it stopped.")] = Path(
        "runs/first"
    ),
    preset: Annotated[
        str | None,
        typer.Option(help="tiny (seconds), cpu (hours), gpu (minutes), others of some techniques. Default: cpu."),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the pictures in pixels. Default: the preset's.")
    ] = None,
    condition: Annotated[
        str, typer.Option(help="What the model is told: text, class (the concept's name alone) or none.")
    ] = "text",
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after this time, over all resumes.")] = None,
    autoencoder: _Stage = None,
    start: _Start = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Changes one value of the preset, as in steps=1000 or network.depth=6; repeatable.",
        ),
    ] = None,
) -> None:
    """Train on a folder of captioned pictures.

    Ctrl-C loses nothing: the same command goes on where it stopped.
    """
    changes = dict(_pair(text) for text in overrides or [])
    with train_extra("Training"):
        from imagewright.restore import as_run
        from imagewright.training.command import run

        stage, begun = (model and as_run(model, out / "restored") for model in (autoencoder, start))
        dials = {"size": size, "condition": condition, "minutes": minutes, "first_stage": stage, "start": begun}
        report = run(technique, data, preset, out, changes, **dials)  # type: ignore[arg-type]
    say(f"{out}: {report.step} steps, stopped by {report.reason}")
    if report.reason == "interrupted":
        raise typer.Exit(130)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise RequestError(f"Cannot read --set {text!r}.", "Write it as NAME=VALUE, for example --set steps=1000.")
    return name, value


def export(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)],
    out_dir: _Out,
    name: Annotated[str | None, typer.Option(help="The model's name. Default: the folder's.")] = None,
    bits: Annotated[
        int, typer.Option(help="Bits a weight: 32, 8 or 4. Fewer are smaller and a little less exact.")
    ] = 8,
    card: Annotated[Path | None, typer.Option(help="A Markdown file to go with it as its README.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="The model's default number of steps.")] = None,
    sampler: Annotated[str | None, typer.Option(help="The model's default sampler.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="The model's default guidance.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="The model's default temperature.")] = None,
    truncation: Annotated[float | None, typer.Option(help="The model's default truncation.")] = None,
    share: Annotated[bool, typer.Option(help="Do not write a part again that a model beside it holds.")] = False,
    rank: Annotated[int | None, typer.Option(help="Its place in its folder: the lowest is the default model.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out a part that drawing does not need, as encoder; repeatable.")
    ] = None,
    autoencoder: Annotated[
        Path | None,
        typer.Option(help="The model's autoencoder, whose decoder was trained on since.", show_default=False),
    ] = None,
) -> None:
    """Turn a trained run into a model that needs no torch."""
    with train_extra("Exporting"):
        from imagewright.export import export as run_export

        given = {"steps": steps, "sampler": sampler, "guidance": guidance}
        given |= {"temperature": temperature, "truncation": truncation}
        defaults = {option: value for option, value in given.items() if value is not None}
        run_export(
            run_dir,
            out_dir,
            name=name or out_dir.name,
            bits=bits,
            card=card,
            defaults=defaults,
            share=share,
            rank=rank,
            without=without or (),
            autoencoder=autoencoder,
        )
    say(f'{out_dir}: ready. Next: imagewright generate --model {out_dir} "a red fox"')
