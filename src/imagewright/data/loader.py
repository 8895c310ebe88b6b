"""A captioned folder as batches: pixels packed once per size, sampling a pure function of the step.

Half of the sticker files differ only in skin tone, so pictures are drawn by concept, not by file: scene or
sticker, then the concept, then the style, then the tone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from imagewright.data.batch import STYLES
from imagewright.data.captions import caption, natural
from imagewright.data.folder import MAX_PIXELS, prepare
from imagewright.data.ledger import check_training
from imagewright.data.render import cores
from imagewright.data.splits import HOLDOUT, STYLE_HOLDOUT, TRAIN
from imagewright.errors import DataError

CHUNK = 256
SCENE_SHARES = {"object": 0.5, "count": 0.2, "pair": 0.3}


class CaptionedFolder:
    """A folder of captioned pictures: the sticker set, or a user's own (see folder.py)."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.records, self.manifest = prepare(self.path)
        check_training(self.records)
        self._scenes, self._concepts = concept_table(self.records)
        self.before = before_rows(self.records)
        self._edits = np.array(
            [i for i, r in enumerate(self.records) if r["split"] == TRAIN and "before" in r], np.int64
        )
        if not len(self._scenes) and not len(self._concepts.first):
            raise DataError(f"{self.path} has no training pictures.", "Add pictures, or check their splits.")

    def __len__(self) -> int:
        return len(self.records)

    def packed(self, size: int) -> NDArray[np.uint8]:
        """All pictures (N, size, size, 4), premultiplied RGBA, memory-mapped from a cache in the folder."""
        cache = self.path / ".cache" / f"{self.manifest[:16]}-{size}.safetensors"
        if not cache.exists():
            files = [self.path / record["file_name"] for record in self.records]
            write_pack(cache, files, size, self.manifest)
        return open_pack(cache, len(self.records), size)

    def indices(
        self,
        seed: int,
        step: int,
        batch: int,
        start: int = 0,
        stop: int | None = None,
        scenes_share: float = 0.3,
        tones_share: float = 0.25,
        edits_share: float = 0.0,
    ) -> NDArray[np.int64]:
        """Training pictures, rows [start, stop) of a step's global batch; a pure function of (seed, step)."""
        kind, concept, style, tone, pick = np.random.default_rng([seed, step]).random((5, batch))
        scenes, table = self._scenes, self._concepts
        if not len(table.first):
            chosen = scenes.draw(concept)
        else:
            chosen = table.draw(concept, style, tone < tones_share, pick)
            if len(scenes):
                chosen = np.where(kind < scenes_share, scenes.draw(concept), chosen)
        if edits_share and self.has_edits:
            kind, pick = np.random.default_rng([seed, step, 1]).random((2, batch))
            chosen = np.where(kind < edits_share, self._edits[_at(pick, len(self._edits))], chosen)
        return chosen[start:stop]

    @property
    def has_edits(self) -> bool:
        """Whether there are training pictures that an instruction leads to from another."""
        return len(self._edits) > 0

    def heldout(self, n: int, seed: int = 0, *, scenes: bool = True) -> NDArray[np.int64]:
        """Up to `n` held-out pictures in random order, without skin tones (a tone is no new concept)."""
        held = [
            i
            for i, record in enumerate(self.records)
            if record["split"] in (STYLE_HOLDOUT, HOLDOUT)
            and "before" not in record
            and not record.get("tone")
            and (scenes or record.get("kind") != "scene")
        ]
        return np.random.default_rng(seed).permutation(np.array(held, np.int64))[:n]

    def captions(self, seed: int, step: int, chosen: Sequence[int] | NDArray[np.int64], start: int = 0) -> list[str]:
        """Captions of the `chosen` pictures, which are the rows from `start` of a step's global batch."""
        return [
            caption(self.records[i], np.random.default_rng([seed, step, row]))
            for row, i in enumerate(chosen, start=start)
        ]

    def concept(self, row: int) -> str:
        """The name of a picture's base concept, without skin tone or gender; its own where the base has none."""
        record = self.records[row]
        return self._concept_names.get(record["base"]) or natural(record["text"])

    @cached_property
    def _concept_names(self) -> dict[str, str]:
        return {r["base"]: natural(r["text"]) for r in self.records if r.get("hexcode") == r["base"]}

    def pixels(
        self, chosen: Sequence[int] | NDArray[np.int64], size: int, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """(n, 4, size, size) float32, premultiplied RGBA in [-1, 1], on `device`."""
        rows = self.packed(size)[np.asarray(chosen, np.int64)]  # (n, size, size, 4)
        return unpacked(torch.from_numpy(rows).to(device))

    def styles(self, chosen: Sequence[int] | NDArray[np.int64]) -> torch.Tensor:
        """(n,) int64 indices into STYLES; 0 where the style is not one of them."""
        known = {style: index for index, style in enumerate(STYLES)}
        return torch.tensor([known.get(self.records[i].get("style", ""), 0) for i in chosen], dtype=torch.int64)


def unpacked(rows: torch.Tensor) -> torch.Tensor:
    """Packed bytes (n, size, size, 4) -> (n, 4, size, size) float32 in [-1, 1]."""
    return rows.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def _at(uniform: NDArray[np.float64], count: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Uniform draws in [0, 1) -> indices in [0, count)."""
    return (uniform * count).astype(np.int64)


class ConceptTable:
    """Concept -> its styles -> its pictures, as flat arrays: a batch is drawn without a Python loop."""

    def __init__(self, concepts: dict[str, dict[str, tuple[list[int], list[int]]]]) -> None:
        cells = [cell for styles in concepts.values() for cell in styles.values()]
        styles_of = np.array([len(styles) for styles in concepts.values()], np.int64)
        self.count = styles_of  # (concepts,) styles of a concept
        self.first = np.concatenate([[0], np.cumsum(styles_of)])[:-1] if len(styles_of) else styles_of
        self.pictures = np.array([i for cell in cells for part in cell for i in part], np.int64)
        sizes = np.array([[len(plain), len(toned)] for plain, toned in cells], np.int64).reshape(-1, 2)
        ends = np.cumsum(sizes.reshape(-1)).reshape(-1, 2)
        self.sizes, self.starts = sizes, ends - sizes  # (cells, 2): without and with a skin tone

    def draw(
        self,
        concept: NDArray[np.float64],
        style: NDArray[np.float64],
        toned: NDArray[np.bool_],
        pick: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """Pictures (batch,) for uniform draws; where a concept has no such tone, of the other kind."""
        c = _at(concept, len(self.first))
        cell = self.first[c] + _at(style, self.count[c])
        form = toned.astype(np.int64)
        form = np.where(self.sizes[cell, form] > 0, form, 1 - form)
        position = self.starts[cell, form] + _at(pick, self.sizes[cell, form])
        return np.asarray(self.pictures[position])


class SceneTable:
    """Scenes by what is in them, drawn by SCENE_SHARES: what one thing looks like in another colour is worth more than
    the ever smaller things of fuller scenes."""

    def __init__(self, scenes: dict[str, list[int]]) -> None:
        self.groups = [np.array(rows, np.int64) for rows in scenes.values()]
        shares = np.array([SCENE_SHARES[kind] for kind in scenes])
        self.ends = np.append(np.cumsum(shares)[:-1] / max(shares.sum(), 1e-9), 1.0)

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def draw(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """Scenes (batch,) for uniform draws."""
        chosen, begin = np.zeros(len(uniform), np.int64), 0.0
        for rows, end in zip(self.groups, self.ends, strict=True):
            inside = (uniform >= begin) & (uniform < end)
            chosen[inside] = rows[np.minimum(_at((uniform[inside] - begin) / (end - begin), len(rows)), len(rows) - 1)]
            begin = end
        return chosen


def scene_kind(record: dict[str, Any]) -> str:
    """`object`, `count` or `pair`: one thing, several of it, or two things (also where a record does not say)."""
    objects = record.get("objects", ())
    if len(objects) != 1:
        return "pair"
    return "count" if objects[0]["count"] > 1 else "object"


def concept_table(records: list[dict[str, Any]]) -> tuple[SceneTable, ConceptTable]:
    """The training scenes by kind, and the other training pictures by concept."""
    scenes: dict[str, list[int]] = {}
    concepts: dict[str, dict[str, tuple[list[int], list[int]]]] = {}
    for i, record in enumerate(records):
        if record["split"] != TRAIN:
            continue
        if record.get("kind") == "edit":
            continue
        if record.get("kind") == "scene":
            scenes.setdefault(scene_kind(record), []).append(i)
            continue
        cell = concepts.setdefault(record["base"], {}).setdefault(record.get("style", ""), ([], []))
        cell[bool(record.get("tone"))].append(i)
    return SceneTable(scenes), ConceptTable(concepts)


def before_rows(records: list[dict[str, Any]]) -> NDArray[np.int64]:
    """(N,) the row of the picture that each was edited from; its own row where there is none."""
    rows = {record["file_name"]: i for i, record in enumerate(records)}
    try:
        return np.array([rows[record.get("before", record["file_name"])] for record in records], np.int64)
    except KeyError as missing:
        raise DataError(f"The set names {missing} as edited, and has no such picture.", "Make the set again.") from None


def square(path: Path, size: int) -> NDArray[np.uint8]:
    """A picture file -> (size, size, 4), premultiplied; padded if transparent, else cut to its centre."""
    with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise DataError(f"{path} has more than {MAX_PIXELS:,} pixels.", "Make it smaller.")
        picture = ImageOps.exif_transpose(opened)
        transparent = picture.has_transparency_data
        picture = picture.convert("RGBA").convert("RGBa")
    fit = ImageOps.contain if transparent else ImageOps.fit
    picture = fit(picture, (size, size), Image.Resampling.LANCZOS)
    if picture.size != (size, size):
        canvas = Image.new("RGBa", (size, size))
        canvas.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
        picture = canvas
    pixels = np.array(picture)
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])  # LANCZOS overshoots
    return pixels


def write_pack(cache: Path, files: list[Path], size: int, manifest: str) -> None:
    """Pack all pictures into a safetensors file: written chunk by chunk beside its place, then renamed."""
    cache.parent.mkdir(exist_ok=True)
    shape = (len(files), size, size, 4)
    header = json.dumps(
        {
            "__metadata__": {"manifest": manifest, "alpha": "premultiplied"},
            "pixels": {"dtype": "U8", "shape": shape, "data_offsets": [0, int(np.prod(shape))]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    partial = cache.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for pixels in packed_rows(files, size):
                stream.write(pixels.tobytes())
        os.replace(partial, cache)
    finally:
        partial.unlink(missing_ok=True)


def packed_rows(files: list[Path], size: int) -> Iterator[NDArray[np.uint8]]:
    """The pictures in order, decoded by a few threads, a chunk at a time so that memory stays small."""
    with ThreadPoolExecutor(cores()) as pool:
        for begin in range(0, len(files), CHUNK):
            yield from pool.map(lambda path: square(path, size), files[begin : begin + CHUNK])


def open_pack(cache: Path, count: int, size: int) -> NDArray[np.uint8]:
    """The pixels of a pack, memory-mapped read-only."""
    with cache.open("rb") as stream:
        offset = 8 + int.from_bytes(stream.read(8), "little")
    shape = (count, size, size, 4)
    if cache.stat().st_size != offset + int(np.prod(shape)):
        raise DataError(f"{cache} is damaged.", "Delete it; it is made again.")
    return np.memmap(cache, np.uint8, "r", offset, shape)
