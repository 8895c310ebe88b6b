"""Makes a picture again from the record in its file, and compares pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagewright import chain
from imagewright.editing import masks
from imagewright.editing.stack import Stack, Step
from imagewright.engines.catalog import DEFAULT_ENGINE, Catalog
from imagewright.engines.engine import Progress
from imagewright.errors import PictureError
from imagewright.pictures import encode, open_picture
from imagewright.provenance import metadata, record
from imagewright.request import ImageRequest
from imagewright.workshop import Workshop


@dataclass(frozen=True)
class Comparison:
    """How the picture made again differs: the largest channel difference (0-255) and the number of pixels.

    `digests` is (recorded, present) where the model's files are not those that made the picture, else None.
    """

    largest: int
    pixels: int
    digests: tuple[str, str] | None

    @property
    def identical(self) -> bool:
        """Whether every pixel is the same."""
        return self.pixels == 0


def read_request(path: Path, catalog: Catalog, model: str | None) -> tuple[ImageRequest, dict[str, Any]]:
    """The request that makes the picture in `path` again, and its record. Raises PictureError.

    The record is a stranger's word: it chooses among the embedded engine's models, never an engine or a path.
    Others must be named by `model`.
    """
    found = metadata.read(open_picture(path)).record
    if found is None:
        raise PictureError(f"{str(path)!r} holds no imagewright record.", "Use the file as imagewright wrote it.")
    request = record.to_request(found)
    if request.seed is None:
        raise PictureError("This picture was made without a seed; it cannot be made again exactly.", "")
    engine, name = found.get("engine"), found.get("model")
    if model is None:
        known = {info.name for info in catalog.engine(DEFAULT_ENGINE).models()}
        if engine != DEFAULT_ENGINE or name not in known:
            raise PictureError(
                f"This picture was made by the model {name!r} of the engine {engine!r}.",
                f"If you trust it: --model {engine}/{name}, or the folder of the run.",
            )
    return replace(request, model=model or f"{engine}/{name}"), found


def compare(
    path: Path,
    request: ImageRequest,
    made: Mapping[str, Any],
    workshop: Workshop,
    progress: Progress | None = None,
) -> Comparison:
    """Makes `request` and compares it with the picture in `path`, both as stored in the file's format."""
    result = workshop.make(request, progress)
    again = open_picture(encode(result[0], request.output_format, request.output_compression))
    present, recorded = str(result.records[0].get("model_digest", "")), str(made.get("model_digest", ""))
    largest, pixels = difference(open_picture(path), again)
    return Comparison(largest, pixels, None if present == recorded else (recorded, present))


def compare_edits(
    path: Path,
    workshop: Workshop,
    original: Path | None = None,
    model: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Re-applies the stack of edits in `path` to its original, and compares as `compare` does.

    `original` is needed where it is not beside the picture; `model` (ENGINE/NAME) may be used although the record
    names it. Raises PictureError.
    """
    record, folders = chain.record_of(path)
    stack = Stack.of(record)
    if stack is None or record is None:
        raise PictureError(f"{str(path)!r} holds no edits.", "Use the file as imagewright wrote it.")
    image = chain.replayed(stack, workshop, folders, original, [model] if model else [], progress)
    largest, pixels = difference(masks.upright(open_picture(path)), chain.stored(image, record))
    digests = [(step.model_digest, _present(step, workshop.catalog)) for step in stack.steps if step.model]
    return Comparison(largest, pixels, next((pair for pair in digests if pair[0] != pair[1]), None))


def _present(step: Step, catalog: Catalog) -> str:
    engine, name = catalog.find(f"{step.engine}/{step.model}")
    return engine.find(name).digest


def difference(a: Image.Image, b: Image.Image) -> tuple[int, int]:
    """(largest channel difference, number of differing pixels). Raises PictureError on unlike sizes."""
    if a.size != b.size:
        raise PictureError(f"The picture is {a.size} and the one made again {b.size}.", "It was resized since.")
    gap = np.abs(_rgba(a) - _rgba(b)).max(axis=-1)  # (H, W)
    return int(gap.max()), int((gap > 0).sum())


def _rgba(image: Image.Image) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(image.convert("RGBA"), np.int16)
