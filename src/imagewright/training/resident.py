"""A captioned folder on the device that trains: a batch is gathered there, row numbers are all that goes over.

Captioning, tokenising and reading pictures row by row gives some thousand rows a second on a processor's core; a GPU
takes tens of thousands. So the pictures (pixels as bytes, latents or codes) go to the device once, and with them POOL
captions for each training picture, tokenised. A batch shows the pictures that a PixelSource shows in the same step;
their captions are drawn from the pool, and all its noise is drawn on the device. A step is still a pure function of
(seed, step), on one kind of device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from imagewright.data.batch import Batch, Draws, TextTokens
from imagewright.data.captions import caption
from imagewright.data.loader import CaptionedFolder
from imagewright.data.render import cores, run
from imagewright.data.splits import TRAIN
from imagewright.text import Tokenizer
from imagewright.training.sources import PixelSource

POOL = 16  # captions of a picture
CHUNK = 2048  # pictures that one process captions at a time
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class _Task:
    """Pictures to caption: their records, None for one that is never trained on, from row `first` on."""

    records: Sequence[dict[str, Any] | None]
    first: int
    count: int


class ResidentSource:
    """`source` with its pictures and captions on `device`. `words`: whether there are captions at all."""

    resident = True

    def __init__(self, source: PixelSource, device: torch.device, *, words: bool = True) -> None:
        self.source, self.device = source, device
        self.manifest_hash, self.styles = source.manifest_hash, source.styles
        rows = np.arange(len(source.folder))
        self.pictures = source.stored().to(device)  # (N, ...)
        self.before = torch.from_numpy(source.folder.before).to(device)  # (N,)
        self.edited = self.before != torch.arange(len(rows), device=device)
        self.style = source.style_of(rows).to(device)
        pool = pool_of(source) if words else {}
        self.pool = {name: torch.from_numpy(array).to(device) for name, array in pool.items()}

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        """Rows [start, stop) of the global batch of a step."""
        rows = _sent(self.source.rows(seed, step, start, stop, total), self.device)
        draws = Draws(seed, step, start, stop, total, self.device)
        shown: dict[str, Any] = dict(self.source.shown(self.pictures[rows]))
        if self.source.edits_share:
            (pictures,) = self.source.shown(self.pictures[self.before[rows]]).values()
            shown |= {"before": pictures, "edited": self.edited[rows]}
        text = self._told(rows, draws) if self.pool else None
        return Batch(draws=draws, text=text, style=self.style[rows], step=step, **shown)

    def heldout(self, start: int, stop: int, seed: int) -> Batch | None:
        """As of the source."""
        return self.source.heldout(start, stop, seed)

    def _told(self, rows: Tensor, draws: Draws) -> TextTokens:
        """For each row one of its captions, all as long as the longest of the pool: static shapes."""
        choice = self.pool["choice"][rows]  # (B, POOL)
        pick = (draws.rand(1) * choice.shape[1]).long()
        text = choice.gather(1, pick)[:, 0].long()
        ids = self.pool["ids"][text].long()  # (B, L)
        mask = torch.arange(ids.shape[1], device=self.device) < self.pool["length"][text, None]
        return TextTokens(ids, self.pool["grams"][text].long(), mask)


def _sent(rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """`rows` on the device, without waiting for what it still has to do."""
    found = torch.from_numpy(rows)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)


def pool_of(source: PixelSource) -> Arrays:
    """The captions of a source: `choice` (N, POOL) the texts of each picture; of each text its `ids` (U, L) and `grams`
    (U, L, G), int16, and its `length` (U,) in tokens. Kept in the folder's cache, where they are drawn anew each time.
    """
    folder = source.folder
    if source.condition != "text":
        return _merged([_tokenised([[name] for name in source.names(np.arange(len(folder)))])])
    path = folder.path / ".cache" / f"{folder.manifest[:16]}-captions-{POOL}.safetensors"
    if not path.exists():
        _write(_merged(list(run(_captioned, _tasks(folder), cores()))), path)
    return load_file(str(path))


def _tasks(folder: CaptionedFolder) -> list[_Task]:
    told = [record if record["split"] == TRAIN else None for record in folder.records]
    return [_Task(told[first : first + CHUNK], first, POOL) for first in range(0, len(told), CHUNK)]


def _captioned(task: _Task) -> Arrays:
    """`count` captions for each picture, drawn as a PixelSource draws them."""
    drawn: list[list[str]] = []
    for row, record in enumerate(task.records, start=task.first):
        rng = np.random.default_rng([row, task.count])
        drawn.append([caption(record, rng) for _ in range(task.count)] if record else [""] * task.count)
    return _tokenised(drawn)


def _tokenised(drawn: Sequence[Sequence[str]]) -> Arrays:
    number: dict[str, int] = {}
    choice = np.array([[number.setdefault(text, len(number)) for text in texts] for texts in drawn], np.int32)
    ids, grams, mask, _ = Tokenizer().encode(list(number))
    length = mask.sum(1).astype(np.int16)
    return {"choice": choice, "ids": ids.astype(np.int16), "grams": grams.astype(np.int16), "length": length}


def _merged(parts: Sequence[Arrays]) -> Arrays:
    """The arrays of several chunks as one, cut to the longest text."""
    offsets = np.cumsum([0, *(len(part["length"]) for part in parts)])
    choice = np.concatenate([part["choice"] + np.int32(first) for part, first in zip(parts, offsets, strict=False)])
    whole = {name: np.concatenate([part[name] for part in parts]) for name in ("ids", "grams", "length")}
    longest = int(whole["length"].max())
    ids, grams = (np.ascontiguousarray(whole[name][:, :longest]) for name in ("ids", "grams"))
    return {"choice": choice, "ids": ids, "grams": grams, "length": whole["length"]}


def _write(arrays: Arrays, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file(arrays, str(partial))
    partial.replace(path)
