"""One prompt over two things that vary (models, seeds, guidance, the prompt's own alternatives ...): a labelled sheet.

A cell that fails says why, and the others go on.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from imagewright.errors import ImagewrightError, RequestError
from imagewright.evaluation.sheet import MARGIN, matrix
from imagewright.request import Adjustment, ImageRequest, ImageResult

MAX_CELLS = 256
MAX_SIDE = 16_000  # pixels of a sheet
ALIASES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
WORDS = ("model", "technique", "style", "sampler", "quality", "background")  # axes whose values are names
_TYPES = {"int": int, "int | None": int, "float": float, "float | None": float}
_NUMBERS = {f.name: _TYPES[str(f.type)] for f in fields(ImageRequest) if str(f.type) in _TYPES and f.name != "n"}


@dataclass(frozen=True)
class Axis:
    """What varies along one side of a grid: the field's name as it was given, and its values with their labels."""

    name: str
    labels: tuple[str, ...]
    values: tuple[Any, ...]

    def fields(self, index: int) -> dict[str, Any]:
        """The request's fields at a place of the axis; none for the prompt, which stands for a whole request, nor for
        the one place of an axis without a name."""
        return {} if self.name in ("", "prompt") else {ALIASES.get(self.name, self.name): self.values[index]}


def axis_of(text: str) -> Axis:
    """The axis in `name=value,value`. Raises RequestError."""
    name, equals, rest = text.partition("=")
    name = name.strip().replace("-", "_")
    texts = [value.strip() for value in rest.split(",") if value.strip()]
    if not equals or not texts:
        raise RequestError(f"Cannot read the axis {text!r}.", "Write it like seed=1,2,3; prompt alone is an axis, too.")
    kind = str if name in WORDS else _NUMBERS.get(ALIASES.get(name, name))
    if kind is None:
        known = ", ".join((*WORDS, *ALIASES, *(known for known in _NUMBERS if known not in ALIASES.values())))
        raise RequestError(f"{name!r} cannot be an axis.", f"Use prompt, {known}.")
    try:
        values = tuple(kind(value) for value in texts)
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise RequestError(f"The axis {name} has {rest!r}.", f"Write {what} with commas between.") from error
    return Axis(name, tuple(_label(name, value) for value in texts), values)


def _label(name: str, value: str) -> str:
    short = value.rstrip("/").rpartition("/")[2] if name == "model" else value
    return f"{name} {short}" if name in _NUMBERS or name in ALIASES else short


@dataclass(frozen=True)
class Cell:
    """One place of a grid: what was drawn there, or the `problem`."""

    row: int
    column: int
    picture: Image.Image | None = None
    records: tuple[Mapping[str, Any], ...] = ()
    adjustments: tuple[Adjustment, ...] = ()
    problem: str = ""
    paths: tuple[str, ...] = ()

    def told(self, rows: Axis, columns: Axis) -> dict[str, Any]:
        """As JSON values, without the picture."""
        return {
            "row": rows.labels[self.row],
            "column": columns.labels[self.column],
            "records": list(self.records),
            "adjustments": [asdict(adjustment) for adjustment in self.adjustments],
            "problem": self.problem,
            "paths": list(self.paths),
        }


def draw(
    rows: Axis,
    columns: Axis,
    make: Callable[[int, int], ImageResult],
    side: int,
    keep: Callable[[ImageResult], Sequence[Path]] = lambda result: (),
) -> Iterator[Cell]:
    """The cells row by row, each as it is drawn by `make(row, column)`, its picture fitted into `side` x `side` pixels.
    `keep` writes a result where it is wanted, and gives the paths.

    Raises RequestError where there would be more than MAX_CELLS.
    """
    count = len(rows.values) * len(columns.values)
    if count > MAX_CELLS:
        raise RequestError(f"The grid has {count} cells.", f"Use at most {MAX_CELLS}.")
    for row, column in product(range(len(rows.values)), range(len(columns.values))):
        try:
            result = make(row, column)
        except ImagewrightError as error:
            yield Cell(row, column, problem=str(error))
        else:
            paths = tuple(str(path) for path in keep(result))
            yield Cell(row, column, fitted(result[0], side), tuple(result.records), result.adjustments, paths=paths)


def side_of(rows: Axis, columns: Axis, side: int) -> int:
    """The side of a cell, smaller than asked for where the sheet would be too large."""
    return max(8, min(side, MAX_SIDE // max(len(rows.values), len(columns.values)) - MARGIN))


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """The picture, aspect kept, with a thin frame, in the middle of a clear square."""
    square = Image.new("RGBA", (side, side))
    small = ImageOps.contain(picture.convert("RGBA"), (side, side), Image.Resampling.LANCZOS)
    x, y = (side - small.width) // 2, (side - small.height) // 2
    square.paste(small, (x, y))
    ImageDraw.Draw(square).rectangle((x, y, x + small.width - 1, y + small.height - 1), outline=(228, 228, 228, 255))
    return square


def sheet_of(cells: Sequence[Cell], rows: Axis, columns: Axis, title: str, side: int) -> Image.Image:
    """The cells as one RGB page under `title`, with a label for every row and column."""
    pictures = [[_blank(side)] * len(columns.values) for _ in rows.values]
    for cell in cells:
        pictures[cell.row][cell.column] = cell.picture or _failed(cell.problem, side)
    heads = [textwrap.fill(_cut(label, 3 * side // 7), max(8, side // 7)) for label in columns.labels]
    page = matrix(pictures, [_cut(label, 16 * (side // 18)) for label in rows.labels], heads, side)
    font = ImageFont.load_default(size=14)
    lines = textwrap.wrap(title, max(20, page.width // 8))[:3]
    top = MARGIN + 18 * len(lines)
    whole = Image.new("RGB", (page.width, page.height + top), "white")
    ImageDraw.Draw(whole).multiline_text((MARGIN, MARGIN), "\n".join(lines), fill=(20, 20, 20), font=font, spacing=4)
    whole.paste(page, (0, top))
    return whole


def _cut(label: str, length: int) -> str:
    return label if len(label) <= length else label[: length - 3] + "..."


def _blank(side: int) -> Image.Image:
    return Image.new("RGBA", (side, side), (240, 240, 240, 255))


def _failed(problem: str, side: int) -> Image.Image:
    """A cell that says why there is no picture."""
    picture = Image.new("RGBA", (side, side), (253, 236, 234, 255))
    lines = textwrap.wrap(problem, max(6, side // 6))[: max(1, side // 14)]
    font = ImageFont.load_default(size=11)
    ImageDraw.Draw(picture).multiline_text((4, 4), "\n".join(lines), fill=(140, 20, 10), font=font, spacing=2)
    return picture
