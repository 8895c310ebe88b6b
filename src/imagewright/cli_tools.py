"""`imagewright select`, remove-background, recolor, vectorise and describe: tools that need no generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from imagewright import cli_options as opt
from imagewright.chain import record_of, stored_as
from imagewright.cli_output import Target, say, say_json
from imagewright.cli_results import save, tell, utf8
from imagewright.errors import RequestError
from imagewright.pictures import encode
from imagewright.request import ImageResult

Colour = Annotated[str, typer.Argument(help="red, orange, yellow, green, ... or #rrggbb.", show_default=False)]
Words = Annotated[str, typer.Argument(help='What to find, such as "the hat".', show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(select)
    app.command("remove-background")(remove_background)
    for command in (recolor, vectorise, describe):
        app.command()(command)


def select(
    picture: opt.File,
    words: Words,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the mask here, as --mask takes it: a PNG file.")
    ] = None,
    as_json: opt.AsJson = False,
) -> None:
    """Find what words name in a picture: its box, how sure that is, and its mask."""
    from imagewright import tools

    target = None if output is None else Target.beside(picture, "mask", output, None)
    if target is not None and target.output_format != "png":
        raise RequestError("A mask is a PNG file.", "Let the output's name end in .png.")
    found = tools.select(picture, utf8(words))
    if target is not None:
        output = target.save(encode(found.mask, "png"), {})
    left, top, right, bottom = found.box
    box = [left, top, right - left, bottom - top]
    if as_json:
        say_json({"path": str(picture), "words": words, "score": round(found.score, 4), "box": box, "mask": output})
    else:
        say(f"{','.join(map(str, box))}  score {found.score:.2f}" + (f"  {output}" if output else ""))


def remove_background(
    context: typer.Context,
    picture: opt.File,
    output: opt.EditOutput = None,
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Take a plain background away; the edge becomes soft and loses the background's colour."""
    from imagewright import tools

    _make(context.params, "cutout", lambda: tools.remove_background(picture))


def recolor(
    context: typer.Context,
    picture: opt.File,
    colour: Colour,
    select: opt.Select = None,
    region: opt.Region = None,
    mask: opt.Mask = None,
    invert: opt.Invert = False,
    output: opt.EditOutput = None,
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Give a picture, or the part that --select, --region or --mask names, another colour. No model."""
    from imagewright import tools

    _make(
        context.params,
        "recolor",
        lambda: tools.recolor(picture, colour, select=select, region=region, mask=mask, invert=invert),
    )


def vectorise(
    context: typer.Context,
    picture: opt.File,
    output: opt.EditOutput = None,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Trace a flat picture into an SVG drawing, and say how far that is from the picture.

    Needs the extra svg.
    """
    from imagewright import tools

    _make({**context.params, "output_format": "svg"}, "drawing", lambda: tools.vectorise(picture))


def describe(
    picture: opt.File,
    n: Annotated[int, typer.Option("-n", "--n", min=1, max=100, help="How many captions.")] = 4,
    as_json: opt.AsJson = False,
) -> None:
    """Say what a picture seems to show: the words it was made with, if it holds them, then the best captions."""
    from imagewright import tools

    made_with = (record_of(picture)[0] or {}).get("prompt") or None
    found = tools.describe(picture, n)
    if as_json:
        say_json({"path": str(picture), "prompt": made_with, "captions": [asdict(caption) for caption in found]})
        return
    if made_with:
        say(f"made with the words: {made_with}")
    for caption in found:
        say(f"{caption.score:.2f}  {caption.text}")


def _make(params: dict[str, Any], verb: str, make: Callable[[], ImageResult]) -> None:
    """Makes the picture of a command, writes it beside the first and tells of it."""
    target = Target.beside(params["picture"], verb, params["output"], params["output_format"])
    result = make()
    if "svg" not in result[0].info:
        result = stored_as(result, target.output_format, params["output_compression"])
    paths, warnings = save(result, target, not params["no_metadata"], params["require_credential"])
    tell([(result, paths, warnings)], params["as_json"], params["quiet"], params["open_it"])
