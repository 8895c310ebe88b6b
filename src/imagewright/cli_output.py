"""What the commands share: where pictures go, and how things are said on the terminal."""

from __future__ import annotations

import json
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import typer

from imagewright.engines.engine import Progress
from imagewright.errors import ImagewrightError, MissingExtraError, OutputError, RequestError
from imagewright.pictures import SUFFIX, save_atomic, save_numbered
from imagewright.request import OutputFormat

_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, bidirectional overrides, surrogates, line separators


class OutputPathError(OutputError):
    """The output was named in a way that cannot work; nothing was made yet."""

    exit_code = 2


@dataclass(frozen=True)
class Target:
    """Where pictures go: into `folder` under names of their own (`stem`, else from the prompt), or into `file`, which
    is replaced."""

    folder: Path
    file: Path | None
    output_format: OutputFormat
    stem: str = ""

    @classmethod
    def parse(cls, output: Path | None, output_format: str | None, n: int) -> Target:
        """The target of `-o` and `--format`, checked before any work. Raises OutputError, RequestError."""
        wanted = _checked_format(output_format)
        if output is None or output.is_dir():
            return cls(_writable(output or Path(".")), None, wanted or "png")
        implied = SUFFIX.get(output.suffix.lower())
        if implied is None:
            raise OutputPathError(
                f"{str(output)!r} is no folder and does not end in .png, .jpg, .webp or .svg.",
                f"Make the folder first (mkdir {output}), or name a picture file.",
            )
        if wanted not in (None, implied):
            raise RequestError(
                f"--format {wanted} and the name {output.name!r} disagree.",
                "Give one of the two, or make them agree.",
            )
        if n > 1:
            raise RequestError(f"{n} pictures do not go into one file.", "Give a folder with -o, or leave -o out.")
        return cls(
            _writable(output.parent),
            output,
            "jpeg" if implied == "jpeg" else _checked_format(implied) or "png",
        )

    @classmethod
    def beside(cls, picture: Path, verb: str, output: Path | None, output_format: str | None, n: int = 1) -> Target:
        """The target of what is made from `picture`: NAME-verb.png beside it, unless `output` says otherwise.

        Raises OutputError, also where `output` is the picture itself, and RequestError.
        """
        if output is not None and output.exists() and picture.exists() and output.samefile(picture):
            raise OutputPathError(f"{str(output)!r} is the picture itself.", "Name another output.")
        target = cls.parse(picture.parent if output is None else output, output_format, n)
        return replace(target, stem=f"{picture.stem}-{verb}")

    def save(self, data: bytes, record: dict[str, Any]) -> Path:
        """Writes one picture and returns its path. Only a file that the user named is ever replaced."""
        if self.file is not None:
            save_atomic(data, self.file)
            return self.file
        name = self.stem or "-".join(part for part in (slug(record["prompt"]), _seed_text(record)) if part)
        suffix = "jpg" if self.output_format == "jpeg" else self.output_format
        return save_numbered(data, self.folder / f"{name}.{suffix}")


def _checked_format(name: str | None) -> OutputFormat | None:
    for known in get_args(OutputFormat):
        if name is not None and name.lower() in (known, {"jpeg": "jpg"}.get(known)):
            found: OutputFormat = known
            return found
    if name is not None:
        raise RequestError(f"Unknown format {name!r}.", "Use png, jpeg, webp or svg.")
    return None


def _writable(folder: Path) -> Path:
    if not folder.is_dir():
        raise OutputPathError(f"There is no folder {str(folder)!r}.", "Make it first, or write elsewhere.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputPathError(f"The folder {str(folder)!r} cannot be written to.", "Write to another folder with -o.")
    return folder


def _seed_text(record: dict[str, Any]) -> str:
    return "" if record.get("seed") is None else str(record["seed"])


def slug(prompt: str) -> str:
    """A short file name for a prompt: lower-case letters and digits of any script, joined by hyphens."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", prompt.lower()))
    return "-".join(words)[:40].strip("-") or "picture"


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(width, height) of '640x480', or of '512' for a square. Raises RequestError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", text.strip().lower(), re.ASCII)
    if not match:
        raise RequestError(f"Cannot read the size {text!r}.", "Write it as WIDTHxHEIGHT, for example 512x512.")
    return int(match[1]), int(match[2] or match[1])


def printable(text: object) -> str:
    """`text` without anything that could steer a terminal: foreign files and prompts pass through here."""
    return "".join("\ufffd" if unicodedata.category(char) in _UNSAFE and char != "\n" else char for char in str(text))


def say(text: str) -> None:
    """One line on stdout."""
    typer.echo(printable(text))


def note(text: str) -> None:
    """One line on stderr, said even when --quiet is given."""
    typer.echo(printable(f"note: {text}"), err=True)


def say_json(value: object) -> None:
    """One JSON object on stdout, ASCII only."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=True, default=str))


def say_error(error: ImagewrightError) -> None:
    """The error and its fix on stderr, red on a terminal unless NO_COLOR is set."""
    plain = bool(os.environ.get("NO_COLOR"))
    typer.secho(printable(f"error: {error.message}"), err=True, fg=None if plain else "red")
    if error.fix:
        typer.echo(printable(f"fix: {error.fix}"), err=True)


@contextmanager
def train_extra(what: str) -> Iterator[None]:
    """Names the extra where something that `what` needs is not installed. Raises MissingExtraError."""
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package == "imagewright" or (package and find_spec(package) is not None):
            raise
        raise MissingExtraError(what, "train") from error


@contextmanager
def progress_bar(label: str, shown: bool = True) -> Iterator[Progress | None]:
    """A bar with an estimate on stderr, or None where nobody watches."""
    with phase_bars(shown) as advance:
        yield (lambda done, total: advance(label, done, total)) if advance else None


@contextmanager
def phase_bars(shown: bool = True) -> Iterator[Callable[[str, int, int], None] | None]:
    """Like `progress_bar`, for work of several phases: (phase, done, total), a bar for each phase."""
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def advance(phase: str, done: int, total: int) -> None:
            if phase not in bars:
                stack.close()  # ends the line of the phase before
                bar = typer.progressbar(length=total, label=phase, file=sys.stderr)
                bars[phase] = stack.enter_context(bar)
            bars[phase].update(done - bars[phase].pos)

        yield advance


def table(rows: list[tuple[str, ...]]) -> None:
    """Rows on stdout in aligned columns; the last column is as wide as it is."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join([*cells, row[-1]]).rstrip())


def size_text(size: int) -> str:
    """'16.2 MB' for a number of bytes; empty for 0."""
    return f"{size / 1e6:.1f} MB" if size else ""
