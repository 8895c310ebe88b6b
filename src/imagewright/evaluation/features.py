"""The real side of an evaluation: pictures of a folder and their features, kept between evaluations."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from imagewright.data.loader import CaptionedFolder
from imagewright.data.splits import TRAIN
from imagewright.refine.judge import Bytes, Floats, Judges

ROWS = 256
Tell = Callable[[str, int, int], None]  # (phase, done, total)


class FeatureSpace(Protocol):
    """Where distances between pictures are taken: `name` and `version` say which."""

    @property
    def name(self) -> str:
        """Which space."""

    @property
    def version(self) -> str:
        """Which weights."""

    def embed(self, rgba: Bytes) -> Floats:
        """(N, S, S, 4) uint8, premultiplied RGBA -> features (N, D) of length 1."""


@dataclass(frozen=True)
class JudgeSpace:
    """The image encoder among our judges."""

    judges: Judges
    name: str = "judge"

    @property
    def version(self) -> str:
        """That of the judges."""
        return self.judges.version

    def embed(self, rgba: Bytes) -> Floats:
        """(N, S, S, 4) uint8, premultiplied RGBA -> features (N, D) of length 1."""
        return self.judges.embed(rgba)


@dataclass(frozen=True)
class Reals:
    """Real pictures of a folder: `rows` of its `pack` (all, S, S, 4), which stays on the disk, and their `features`
    (N, D)."""

    rows: NDArray[np.int64]
    pack: Bytes
    features: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def rgba(self, index: slice | NDArray[np.int64] = slice(None)) -> Bytes:
        """(n, S, S, 4) those at `index`, read from the disk."""
        return np.asarray(self.pack[self.rows[index]])

    def of(self, rows: NDArray[np.int64]) -> Reals:
        """Those of the folder's `rows`, which must all be here."""
        at = {int(row): i for i, row in enumerate(self.rows)}
        index = np.array([at[int(row)] for row in rows], np.int64)
        return Reals(self.rows[index], self.pack, self.features[index])


def embedded(
    space: FeatureSpace, pack: Bytes, rows: NDArray[np.int64], told: Callable[[int, int], None] | None = None
) -> Floats:
    """Features of many `rows` of a pack, some at a time."""
    parts = []
    for start in range(0, len(rows), ROWS):
        parts.append(space.embed(np.asarray(pack[rows[start : start + ROWS]])))
        if told is not None:
            told(min(start + ROWS, len(rows)), len(rows))
    return np.concatenate(parts)


def training_pictures(folder: CaptionedFolder, space: FeatureSpace, size: int, told: Tell | None = None) -> Reals:
    """All training pictures of `folder`; their features are kept in its cache, where it can be written."""
    rows = np.array([i for i, record in enumerate(folder.records) if record["split"] == TRAIN], np.int64)
    pack = folder.packed(size)
    cache = folder.path / ".cache" / f"{folder.manifest[:16]}-{space.name}-{space.version}.safetensors"
    if cache.exists():
        return Reals(rows, pack, load_file(cache)["features"])
    tell = (lambda done, total: told("training pictures", done, total)) if told else None
    features = embedded(space, pack, rows, tell)
    _keep(cache, {"features": features})
    return Reals(rows, pack, features)


def _keep(cache: Any, tensors: dict[str, Floats]) -> None:
    if not os.access(cache.parent, os.W_OK):
        return
    partial = cache.with_suffix(f".{os.getpid()}.partial")
    save_file(tensors, partial)
    os.replace(partial, cache)
