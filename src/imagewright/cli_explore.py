"""The commands that look inside a trained run. Everything heavy is imported inside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagewright.cli_output import progress_bar, say, train_extra
from imagewright.errors import RequestError

if TYPE_CHECKING:
    from PIL import Image

    from imagewright.models.technique import Technique

Run = Annotated[Path, typer.Argument(help="The folder of a run.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same picture.")]
Prompt = Annotated[str, typer.Option(help="What the pictures show.")]
Sheet = Annotated[Path, typer.Option(help="The PNG file to write (replaced).")]
Style = Annotated[str | None, typer.Option(help="One of the model's styles.")]


def add_to(app: typer.Typer) -> None:
    """Adds `interpolate`, `mix`, `layers` and `project`."""
    for command in (interpolate, mix, layers, project):
        app.command()(command)


def interpolate(
    run: Run,
    a: Annotated[str, typer.Argument(metavar="A", help="A prompt or a picture file.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="A prompt or a picture file.", show_default=False)],
    frames: Annotated[int, typer.Option(min=2, max=1000, help="How many pictures, both ends included.")] = 24,
    out: Annotated[Path, typer.Option(help="A .webp, .gif or .mp4 file (replaced); mp4 needs ffmpeg.")] = Path(
        "film.webp"
    ),
    seed: Seed = 0,
    seed_b: Annotated[int | None, typer.Option(min=0, help="Another seed for B. Default: the same.")] = None,
    style: Style = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps, for diffusion.")] = None,
    there_and_back: Annotated[bool, typer.Option("--there-and-back", help="Return to A at the end.")] = False,
    size: Annotated[int, typer.Option(min=16, max=2048, help="Side of the film in pixels.")] = 256,
    fps: Annotated[int, typer.Option(min=1, max=60, help="Pictures a second.")] = 12,
) -> None:
    """Make a film of the way from one picture to another, through the model's codes."""
    with train_extra("Looking into a run"):
        from imagewright.evaluation import explore

        explore.check_film(out)
        technique = _load(run)
        if steps is not None and "steps" not in technique.sampling:
            raise RequestError("This model has no steps.", "Leave out --steps.")
        start = explore.end(technique, a, seed, style)
        stop = explore.end(technique, b, seed if seed_b is None else seed_b, style)
        options = {} if steps is None else {"steps": steps}
        with progress_bar("drawing") as progress:
            pictures = explore.film(
                technique, start, stop, frames, options=options, there_and_back=there_and_back, progress=progress
            )
        explore.save_film(pictures, out, side=size, fps=fps)
    say(f"{out}: {len(pictures)} pictures, {len(pictures) / fps:.1f} s")


def mix(
    run: Run,
    rows: Annotated[int, typer.Option(min=1, max=16, help="Seeds down, whose form is kept.")] = 4,
    columns: Annotated[int, typer.Option(min=1, max=16, help="Seeds across, whose styles are taken.")] = 4,
    layers: Annotated[str, typer.Option(help="Which layers' styles are taken: FIRST-LAST, 0 is the coarsest.")] = "0-3",
    prompt: Prompt = "",
    style: Style = None,
    seed: Annotated[int, typer.Option(min=0, help="The first row's; the others follow, columns last.")] = 0,
    out: Sheet = Path("mix.png"),
) -> None:
    """Mix the styles of a GAN's pictures, layer by layer.

    Each picture has the row's seed, but for the given layers the styles of the column's.
    """
    with train_extra("Looking into a run"):
        from imagewright.evaluation import explore

        technique = _load(run)
        words = explore.words_for(technique, prompt, style)
        down, across = range(seed, seed + rows), range(seed + rows, seed + rows + columns)
        table = explore.mixed(technique, down, across, explore.parse_layers(layers), words)
    heads = ["mean", *(f"seed {n}: layers {layers}" for n in across)]
    labels = [*heads, *(text for n in down for text in [f"seed {n}", *[""] * columns])]
    _save([picture for row in table for picture in row], labels, columns + 1, out)


def layers(
    run: Run,
    prompt: Prompt = "",
    style: Style = None,
    seed: Seed = 0,
    columns: Annotated[int, typer.Option(min=1, max=16, help="How many other seeds lend their styles.")] = 6,
    parts: Annotated[int, typer.Option(min=1, max=32, help="Into how many ranges the layers are cut.")] = 4,
    out: Sheet = Path("layers.png"),
) -> None:
    """Show what each range of a GAN's layers controls.

    Each row takes the styles of one range of layers from other seeds and keeps all the rest.
    """
    with train_extra("Looking into a run"):
        from imagewright.evaluation import explore

        technique = _load(run)
        words = explore.words_for(technique, prompt, style)
        others = range(seed + 1, seed + 1 + columns)
        rows = explore.layer_rows(technique, seed, others, words, parts)
    pictures, labels = [], []
    for span, row, change in rows:
        pictures += row
        which = f"layer {span.start}" if len(span) == 1 else f"layers {span.start}-{span.stop - 1}"
        labels += [f"{which}: pixels change by {change:.1%}"]
        labels += [f"from seed {other}" for other in others]
        say(labels[-len(row)])
    _save(pictures, labels, columns + 1, out)


def project(
    run: Run,
    picture: Annotated[list[Path], typer.Argument(help="Picture files.", show_default=False)],
    prompt: Prompt = "",
    out: Sheet = Path("project.png"),
) -> None:
    """Find the code of a picture, and show what the model makes of it.

    The sheet holds the original, the picture made again and the difference; PSNR says how near they are.
    """
    with train_extra("Looking into a run"):
        from imagewright.evaluation import explore

        technique = _load(run)
        pictures, labels = [], []
        for file in picture:
            found = explore.project(technique, explore.pixels_of(file, technique.pixels), prompt)
            pictures += found.pictures
            labels += [file.name, f"again, {found.psnr:.1f} dB", "difference"]
            say(f"{file.name}: {found.psnr:.2f} dB")
    _save(pictures, labels, 3, out)


def _load(run: Path) -> Technique:
    from imagewright.training.checkpoint import load_model

    return load_model(run)


def _save(pictures: list[Image.Image], labels: list[str], columns: int, out: Path) -> None:
    from imagewright.evaluation.sheet import sheet
    from imagewright.pictures import encode, save_atomic

    save_atomic(encode(sheet(pictures, labels, columns), "png"), out)
    say(str(out))
