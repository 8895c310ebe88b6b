"""`imagewright edit`, fill, expand, vary, blend, restyle, upscale: from a picture to a picture; undo and edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from imagewright import cli_options as opt
from imagewright import verbs
from imagewright.cli_output import Target, note, progress_bar, say_json, table
from imagewright.cli_results import asked, save, tell, utf8
from imagewright.editing import masks
from imagewright.errors import RequestError
from imagewright.pictures import open_picture
from imagewright.request import ImageResult
from imagewright.workshop import Workshop

Make = Callable[..., ImageResult]


def add_to(app: typer.Typer) -> None:
    """Registers the commands."""
    for command in (edit, fill, expand, vary, blend, restyle, upscale, undo, edits):
        app.command()(command)


def edit(
    context: typer.Context,
    picture: opt.File,
    prompt: opt.Instruction,
    mask: opt.Mask = None,
    region: opt.Region = None,
    select: opt.Select = None,
    invert: opt.Invert = False,
    save_mask: opt.SaveMask = None,
    strength: opt.Strength = None,
    feather: opt.Feather = None,
    original: opt.Original = None,
    output: opt.EditOutput = None,
    n: opt.N = 1,
    seed: opt.Seed = None,
    model: opt.Model = None,
    num_inference_steps: opt.Steps = None,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = "",
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Change a picture as words say.

    With --mask, --region or --select only there: what lies outside stays byte for byte. Without, the words are an
    instruction ("make the cat blue") for a model that follows them; else they say what the whole should show.
    """
    hole = _hole(context.params)
    _make(context.params, "edit", lambda **given: verbs.edit(picture, utf8(prompt), **hole, **given))


def fill(
    context: typer.Context,
    picture: opt.File,
    prompt: opt.EditPrompt = None,
    mask: opt.Mask = None,
    region: opt.Region = None,
    select: opt.Select = None,
    invert: opt.Invert = False,
    save_mask: opt.SaveMask = None,
    strength: opt.Strength = None,
    feather: opt.Feather = None,
    original: opt.Original = None,
    output: opt.EditOutput = None,
    n: opt.N = 1,
    seed: opt.Seed = None,
    model: opt.Model = None,
    num_inference_steps: opt.Steps = None,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = "",
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Fill a hole in a picture with what words say.

    Without words the surroundings go on, which removes what was there. What lies outside the hole stays byte for byte.
    """
    hole = _hole(context.params)
    words = None if prompt is None else utf8(prompt)
    _make(context.params, "fill", lambda **given: verbs.fill(picture, words, **hole, **given))


def expand(
    context: typer.Context,
    picture: opt.File,
    prompt: opt.EditPrompt = None,
    left: opt.Margin = "0",
    right: opt.Margin = "0",
    up: opt.Margin = "0",
    down: opt.Margin = "0",
    zoom_out: opt.ZoomOut = None,
    pan: opt.Pan = None,
    amount: opt.Amount = "25%",
    feather: opt.Feather = None,
    original: opt.Original = None,
    output: opt.EditOutput = None,
    n: opt.N = 1,
    seed: opt.Seed = None,
    model: opt.Model = None,
    num_inference_steps: opt.Steps = None,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = "",
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Put a picture on a larger canvas and draw what is around it.

    By sides (--right 64 --up 25%), by --zoom-out 1.5, or by --pan left. The picture's own pixels stay as they are.
    Without words, those that the picture was made with count.
    """
    ways: dict[str, Any] = {"left": left, "right": right, "up": up, "down": down}
    ways |= {"zoom_out": zoom_out, "pan": pan, "amount": amount}
    words = None if prompt is None else utf8(prompt)
    _make(context.params, "expand", lambda **given: verbs.expand(picture, words, **ways, **given))


def vary(
    context: typer.Context,
    picture: opt.File,
    prompt: opt.EditPrompt = None,
    strong: Annotated[bool, typer.Option("--strong/--subtle", help="Change much or little.")] = False,
    strength: opt.Strength = None,
    original: opt.Original = None,
    output: opt.EditOutput = None,
    n: opt.N = 1,
    seed: opt.Seed = None,
    model: opt.Model = None,
    num_inference_steps: opt.Steps = None,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = "",
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Draw variations of a picture.

    Without words, those that the picture was made with count.
    """
    words = None if prompt is None else utf8(prompt)
    _make(context.params, "vary", lambda **given: verbs.vary(picture, words, strong=strong, **given))


def blend(
    context: typer.Context,
    pictures: opt.Pictures,
    prompt: Annotated[str | None, typer.Option(help="What the picture should show.")] = None,
    weights: opt.Weights = None,
    strength: opt.Strength = None,
    output: opt.EditOutput = None,
    n: opt.N = 1,
    seed: opt.Seed = None,
    model: opt.Model = None,
    num_inference_steps: opt.Steps = None,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = "",
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Make one picture out of two or more.

    Without --prompt, the words that they were made with count, else what they seem to show.
    """
    words = None if prompt is None else utf8(prompt)
    shares = _numbers(weights) if weights else ()
    params = {**context.params, "picture": pictures[0]}
    _make(params, "blend", lambda **given: verbs.blend(pictures, words, weights=shares, **given))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(f"{text!r} are no weights.", "Give a number for each picture, such as 2,1.") from error


def restyle(
    context: typer.Context,
    picture: opt.File,
    prompt: opt.EditPrompt = None,
    like: opt.Like = None,
    style: opt.Style = None,
    strength: opt.Strength = None,
    original: opt.Original = None,
    output: opt.EditOutput = None,
    n: opt.N = 1,
    seed: opt.Seed = None,
    model: opt.Model = None,
    num_inference_steps: opt.Steps = None,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = "",
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Draw a picture again in another style: a named one of the model's, or that of another picture."""
    words = None if prompt is None else utf8(prompt)
    _make(context.params, "restyle", lambda **given: verbs.restyle(picture, words, like=like, **given))


def upscale(
    context: typer.Context,
    picture: opt.File,
    factor: opt.Factor = 2,
    original: opt.Original = None,
    output: opt.EditOutput = None,
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Make a picture 2 or 4 times as wide and high, its outlines kept crisp. No model draws anything new."""
    _make(context.params, "upscale", lambda progress, **given: verbs.upscale(picture, factor, **given))


def undo(
    context: typer.Context,
    picture: opt.File,
    steps: Annotated[int, typer.Option(help="How many edits to take back.")] = 1,
    original: opt.Original = None,
    output: opt.EditOutput = None,
    model: opt.Model = None,
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Take back the last edits of a picture: the others are made again from its original, into a new file."""
    _make(context.params, "undo", lambda **given: verbs.undo(picture, steps, **given))


def edits(picture: opt.File, as_json: opt.AsJson = False) -> None:
    """List the edits that led to a picture."""
    stack, _ = verbs.stack_of(picture)
    if as_json:
        say_json({"path": str(picture), **stack.to_json()})
        return
    rows: list[tuple[str, ...]] = [("STEP", "VERB", "MODEL", "SEED", "WHERE", "WHAT")]
    rows.append(("0", "original", "", "", "", " ".join(part for part in (stack.original.file, stack.prompt) if part)))
    for number, step in enumerate(stack.steps, 1):
        seed = step.fields.get("seed", "")
        words = str(step.fields.get("prompt", ""))
        rows.append((str(number), step.verb, step.model or "", str(seed), step.where(), words))
    table(rows)


def _hole(params: dict[str, Any]) -> dict[str, Any]:
    """The options that say where a picture may change; with --save-mask the mask is made now, and written."""
    where = {name: params[name] for name in ("mask", "region", "select", "invert")}
    if params["save_mask"] is None:
        return where
    mask, said = verbs.hole_of(masks.upright(open_picture(params["picture"])), **where)
    for adjustment in said:
        note(str(adjustment))
    masks.save(mask, params["save_mask"])
    return {"mask": mask}


def _make(params: dict[str, Any], verb: str, make: Make) -> None:
    """Makes the pictures of a command by `make(workshop, progress, **fields)`, writes them beside the first and tells
    of them."""
    target = Target.beside(params["picture"], verb, params["output"], params["output_format"], params.get("n", 1))
    named = {**asked(params), "original": params.get("original"), "output_format": target.output_format}
    given = {name: value for name, value in named.items() if name != "mask" and value is not None}
    with progress_bar("drawing", shown=not params["quiet"]) as progress:
        result = make(workshop=Workshop(say=note), progress=progress, **given)
    sources = params.get("pictures") or [params["picture"], *([params["like"]] if params.get("like") else [])]
    paths, warnings = save(result, target, not params["no_metadata"], params["require_credential"], sources)
    tell([(result, paths, warnings)], params["as_json"], params["quiet"], params["open_it"])
