"""What the commands that make pictures share: what was asked for, and what becomes of the pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import typer
from PIL import Image

from imagewright.cli_output import Target, note, say, say_json
from imagewright.errors import PromptError
from imagewright.pictures import read_bytes
from imagewright.request import ImageRequest, ImageResult, joined


def asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's options that are fields of a request and were given."""
    named = {field.name: field.default for field in fields(ImageRequest) if field.name not in ("prompt", "size")}
    given = {name: options[name] for name, default in named.items() if options.get(name, default) != default}
    return given | {name: utf8(given[name]) for name in ("negative_prompt",) if name in given}


def tell(done: Sequence[tuple[ImageResult, list[Path], list[str]]], as_json: bool, quiet: bool, open_it: bool) -> None:
    """Says what was made, with all that was changed on the way."""
    result = joined([result for result, _, _ in done])
    paths = [path for _, some, _ in done for path in some]
    warnings = list(dict.fromkeys(warning for _, _, some in done for warning in some))
    for line in (
        *_choices(result),
        *_drawings(result),
        *(str(adjustment) for adjustment in result.adjustments),
        *warnings,
    ):
        note(line)
    if as_json:
        say_json(_as_json(result, paths, warnings))
    else:
        _show(result, paths, quiet)
    if open_it:
        for path in paths:
            typer.launch(str(path))


def _choices(result: ImageResult) -> Iterator[str]:
    """What --best-of and the bars chose, and what they rejected."""
    for record in result.records:
        for step in (step for step in record["refine"] if step["step"] == "choose"):
            yield f"chose seed {record['seed']} of {step['tried']}: {_scores(step['scores'])}"
            for one in step["rejected"]:
                yield f"  rejected seed {one['seed']}: {_scores(one['scores'])} ({one['reason']})"


def _drawings(result: ImageResult) -> Iterator[str]:
    """How far each SVG is from the picture that it was traced from."""
    for step in (step for record in result.records for step in record["refine"] if "mean_difference" in step):
        psnr = f" (PSNR {step['psnr']:.1f} dB)" if "psnr" in step else ""
        yield f"drawn with {step['paths']} paths, on average {step['mean_difference']:.1f} of 255 off the picture{psnr}"


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.2f}" for name, score in scores.items())


def utf8(text: str) -> str:
    """`text`, if it can be written down. Raises PromptError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            "The prompt is not valid UTF-8 text.", "Type it again, or set your locale to UTF-8."
        ) from error
    return text


def save(
    result: ImageResult, target: Target, with_metadata: bool, require: bool, parents: Sequence[Path] = ()
) -> tuple[list[Path], list[str]]:
    """Writes the pictures; their paths, and why any is not signed. `parents` are the files that they were made from.

    Raises OutputError, ProvenanceError.
    """
    from imagewright.provenance.seal import seal

    paths, warnings = [], []
    sources = [read_bytes(path) for path in parents] if with_metadata else []
    for image, record in zip(result.images, result.records, strict=True):
        sealed = seal(image, record, with_metadata=with_metadata, require_credential=require, parents=sources)
        paths.append(target.save(sealed.data, dict(record)))
        if sealed.warning and sealed.warning not in warnings:
            warnings.append(sealed.warning)
    return paths, warnings


def _as_json(result: ImageResult, paths: list[Path], warnings: list[str]) -> dict[str, Any]:
    return {
        "model": result.model,
        "engine": result.engine,
        "seconds": round(result.seconds, 4),
        "adjustments": [asdict(adjustment) for adjustment in result.adjustments],
        "warnings": warnings,
        "images": [{"path": str(path), "record": record} for path, record in zip(paths, result.records, strict=True)],
    }


def inline() -> Callable[[Image.Image], str] | None:
    """How this terminal shows a picture, None where it cannot."""
    from imagewright import terminal

    how = terminal.protocol()
    return None if how is None else lambda image: terminal.render(image, how)


def _show(result: ImageResult, paths: list[Path], quiet: bool) -> None:
    how = inline() if sys.stdout.isatty() and not quiet else None
    for path, image, record in zip(paths, result.images, result.records, strict=True):
        if how:
            sys.stdout.write(how(image))
        say(str(path) if quiet else f"{path}  {_facts(image, record)}")


def _facts(image: Image.Image, record: Mapping[str, Any]) -> str:
    """Size, and for a model's picture its seed, model and time."""
    size = "x".join(str(side) for side in image.size)
    if record["model"] is None:
        return size
    seed = "no seed" if record["seed"] is None else f"seed {record['seed']}"
    return f"{size}  {seed}  {record['model']}  {record['seconds']:.2f} s"
