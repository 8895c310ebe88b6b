"""The command line: parse, call, print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import imagewright.blas  # noqa: F401 - before numpy
from imagewright import (
    __version__,
    cli_addons,
    cli_chat,
    cli_compare,
    cli_edit,
    cli_evaluation,
    cli_explore,
    cli_grid,
    cli_keys,
    cli_models,
    cli_serve,
    cli_tools,
    cli_training,
)
from imagewright import cli_options as opt
from imagewright import prompt as language
from imagewright.cli_output import (
    Target,
    note,
    parse_size,
    progress_bar,
    say,
    say_error,
    say_json,
    table,
)
from imagewright.cli_results import asked, save, tell, utf8
from imagewright.errors import ImagewrightError, RequestError
from imagewright.pictures import open_picture
from imagewright.request import ImageRequest, ImageResult
from imagewright.watch import Progress
from imagewright.workshop import Workshop

if TYPE_CHECKING:
    from imagewright.evaluation.trace import Trace

app = typer.Typer(
    name="imagewright",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The `imagewright` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows ? instead of failing
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code: 0 good, 1 failed, 2 wrong input, 130 interrupted."""
    try:
        app(list(arguments), prog_name="imagewright")
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except ImagewrightError as error:
        if os.environ.get("IMAGEWRIGHT_DEBUG"):
            raise
        say_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not complain
        return 1
    except Exception as error:
        if os.environ.get("IMAGEWRIGHT_DEBUG"):
            raise
        say_error(
            ImagewrightError(f"Unexpected: {type(error).__name__}: {error}", "Set IMAGEWRIGHT_DEBUG=1 to see where.")
        )
        return 1
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        say(f"imagewright {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Make images from words, on your own machine."""


@app.command()
def generate(
    context: typer.Context,
    prompt: opt.Prompt,
    output: opt.Output = None,
    n: opt.N = 1,
    seed: opt.Seed = None,
    size: opt.Size = None,
    style: opt.Style = None,
    technique: opt.Technique = None,
    model: opt.Model = None,
    num_inference_steps: opt.Steps = None,
    guidance_scale: opt.Guidance = None,
    negative_prompt: opt.Negative = "",
    sampler: opt.Sampler = None,
    adapter: cli_addons.Adapters = None,
    control: cli_addons.Controls = None,
    embedding: cli_addons.Embeddings = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    truncation: opt.Truncation = None,
    best_of: opt.BestOf = 1,
    min_match: opt.MinMatch = None,
    min_realism: opt.MinRealism = None,
    max_tries: opt.MaxTries = None,
    background: opt.Background = "auto",
    output_format: opt.Format = None,
    output_compression: opt.Compression = 100,
    wildcards: opt.Wildcards = None,
    repeat: opt.Repeat = None,
    plain: opt.Plain = False,
    trace: opt.Trace = None,
    open_it: opt.OpenIt = False,
    as_json: opt.AsJson = False,
    no_metadata: opt.NoMetadata = False,
    require_credential: opt.RequireCredential = False,
    quiet: opt.Quiet = False,
) -> None:
    """Make pictures from words.

    The prompt may hold weights (red:1.3), alternatives {a,b} and Midjourney's parameters, as --ar 3:2; write it in
    quotes. See docs/prompt.md. Each file carries how it was made (prompt, model, seed) and a signed credential;
    --no-metadata leaves both out.
    """
    read = language.plain if plain else partial(language.parse, wildcards=wildcards)
    jobs = read(utf8(prompt), seed=seed, n=n, repeat=repeat)
    target = Target.parse(output, output_format, sum(job.fields.get("n", n) for job in jobs))
    given = {**asked(context.params), **cli_addons.put_on(context.params), "output_format": target.output_format}
    if size is not None:
        given["size"] = parse_size(size)
    opened = cache(open_picture)
    requests = [job.request(opened, **given) for job in jobs]
    done: list[tuple[ImageResult, list[Path], list[str]]] = []
    try:
        with progress_bar("drawing", shown=not quiet) as progress:
            for result in _made(requests, progress, trace):
                done.append((result, *save(result, target, not no_metadata, require_credential)))
    finally:  # what was made is told, also when a later one fails
        if done:
            tell(done, as_json, quiet, open_it)


def _made(requests: Sequence[ImageRequest], progress: Progress | None, trace: Path | None) -> Iterator[ImageResult]:
    """The result of each request, one after the other."""
    if trace is not None and len(requests) > 1:
        raise RequestError("A trace follows one picture.", "Make them first, then trace the one you like by its seed.")
    workshop, tracer = Workshop(say=note), _tracer(trace)
    for index, request in enumerate(requests):

        def told(step: int, steps: int, before: int = index) -> None:
            if progress is not None:
                progress(before * steps + step, len(requests) * steps)

        result = workshop.make(request, told, tracer)
        if tracer:
            tracer.finish(result[0], result.records[0])
        yield result


def _tracer(folder: Path | None) -> Trace | None:
    if folder is None:
        return None
    from imagewright.evaluation.trace import Trace

    return Trace(folder)


@app.command()
def inspect(
    file: opt.File,
    as_json: opt.AsJson = False,
) -> None:
    """Say what made a picture.

    Reads its credential, its record and its metadata, offline, from any PNG, JPEG or WebP, and from an SVG the first
    two.
    """
    from imagewright import vector
    from imagewright.pictures import format_of, open_picture, read_bytes
    from imagewright.provenance import credentials, metadata

    data = read_bytes(file)
    if vector.is_svg(data):
        credential, found = credentials.read(data, "svg"), metadata.read_svg(data)
        told = vector.read(data)
        what = f"SVG {'x'.join(told.size)}, {told.paths} paths; only a record of ours is read, no other metadata"
    else:
        image = open_picture(data)
        credential, found = credentials.read(data, format_of(image)), metadata.read(image)
        what = f"{image.format} {image.width}x{image.height} {image.mode}"
    if as_json:
        say_json({"path": str(file), "credential": asdict(credential), "metadata": asdict(found)})
        return
    say(f"{file}: {what}")
    say(f"credential: {credential.state}: {_MEANING[credential.state]}")
    for problem in credential.problems:
        say(f"  {problem}")
    if credential.signer:
        say(f"  signed by {credential.signer}, made with {credential.generator}")
    say(f"metadata: {found.digital_source_type or 'no source type'}")
    if found.record is not None:
        signed = credential.state in ("trusted", "valid")
        say(f"record ({'covered by the credential' if signed else 'unsigned: anyone can write this'}):")
        for key, value in found.record.items():
            if value not in (None, "", []):
                say(f"  {key}: {value}")
    elif found.parameters:
        say("parameters of another tool:\n" + found.parameters)
    else:
        say("record: none; that proves nothing about where the picture comes from")


_MEANING = {
    "trusted": "made by this installation, unchanged since",
    "valid": "unchanged since it was signed, by a signer unknown here",
    "invalid": "does not hold; the picture or its credential was changed, or the certificate has ended",
    "none": "the picture carries none",
}


@app.command()
def reproduce(
    file: opt.File,
    model: opt.Model = None,
    original: opt.Original = None,
    as_json: opt.AsJson = False,
) -> None:
    """Make a picture again and compare the pixels.

    The request comes from the record in the file; of an edited picture, all its edits are made again from the
    original. Exit code 1 where the pixels differ.
    """
    from imagewright.chain import record_of
    from imagewright.reproduce import compare, compare_edits, read_request

    workshop = Workshop(say=note)
    with progress_bar("drawing again", shown=not as_json) as progress:
        if "edits" in (record_of(file)[0] or {}):
            found = compare_edits(file, workshop, original, model, progress)
        else:
            request, record = read_request(file, workshop.catalog, model)
            if not as_json:
                say(f"prompt: {request.prompt}\nmodel: {request.model}  seed: {request.seed}")
            found = compare(file, request, record, workshop, progress)
    if found.digests:
        note(f"the model's files differ: recorded {found.digests[0][:12]}, present {found.digests[1][:12]}")
    if as_json:
        say_json({"path": str(file), "identical": found.identical, **asdict(found)})
    elif found.identical:
        say("identical")
    else:
        say(f"differs by up to {found.largest} of 255 in {found.pixels} pixels")
    if not found.identical:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: opt.AsJson = False) -> None:
    """Check this installation.

    Packages, models and their hashes, signing, the machine. Exit code 1 where something needed is missing.
    """
    from imagewright.doctor import examine

    checks = examine()
    if as_json:
        say_json({"checks": [asdict(check) for check in checks]})
    else:
        table(
            [(check.state, check.name, check.detail + (f"  fix: {check.fix}" if check.fix else "")) for check in checks]
        )
    if any(check.state == "bad" for check in checks):
        raise typer.Exit(1)


cli_models.add_to(app)
cli_edit.add_to(app)
cli_training.add_to(app)
cli_evaluation.add_to(app)
cli_compare.add_to(app)
cli_serve.add_to(app)
cli_keys.add_to(app)
cli_explore.add_to(app)
cli_grid.add_to(app)
cli_tools.add_to(app)
cli_chat.add_to(app)
