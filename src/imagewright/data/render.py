"""SVG -> PNG files and thumbnails, in worker processes. Pictures are uint8 (H, W, 4), straight alpha."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.data.neardups import Thumbnails, thumbnail
from imagewright.errors import DataError, MissingExtraError

Pixels = NDArray[np.uint8]
Task = TypeVar("Task")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Job:
    """One picture to make: `svg` becomes a PNG file at `path`, `size` pixels square."""

    svg: str
    path: Path
    size: int


@dataclass(frozen=True)
class Rendered:
    """`sha256` of the file and its `thumbnail`, see neardups; `empty` where nothing can be seen."""

    sha256: str
    thumbnail: Thumbnails
    empty: bool


def render(job: Job) -> Rendered:
    """Render one job and write its file."""
    png = svg_to_png(job.svg, job.size)
    pixels = decode(png)
    job.path.write_bytes(png)
    return Rendered(hashlib.sha256(png).hexdigest(), thumbnail(pixels), not pixels[..., 3].any())


def svg_to_png(svg: str, size: int) -> bytes:
    """PNG bytes, `size` pixels square, alpha kept."""
    try:
        import resvg_py
    except ImportError:
        raise MissingExtraError("Rendering the stickers", "train") from None
    try:
        png: Any = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError as error:
        raise DataError(f"An SVG cannot be rendered: {error}", "Report the picture's name.") from error
    return bytes(png)


def decode(png: bytes) -> Pixels:
    """PNG bytes -> (H, W, 4)."""
    return np.asarray(Image.open(io.BytesIO(png), formats=("PNG",)).convert("RGBA"))


def encode(pixels: Pixels) -> bytes:
    """(H, W, 4) -> PNG bytes."""
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(stream, "PNG")
    return stream.getvalue()


def cores() -> int:
    """Processor cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def run(work: Callable[[Task], Done], tasks: Iterable[Task], workers: int) -> Iterator[Done]:
    """`work` over `tasks`, in order; with more than one worker in fresh processes (no fork under threads)."""
    if workers <= 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, tasks, chunksize=32)
