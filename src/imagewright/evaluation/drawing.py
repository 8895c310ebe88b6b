"""The pictures that a model makes for a list of items, kept in a folder so that an interrupted evaluation goes on.

As many are drawn side by side as the engine takes (one a core for the models that ship), each as if it were alone.
They stay on the disk: whoever measures them reads a few at a time, so 5,000 of them need no more memory than 50.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import overload

from PIL import Image

from imagewright.data.batch import STYLES
from imagewright.engines.engine import Engine, ModelInfo
from imagewright.engines.lanes import all_of, at_once
from imagewright.engines.trained import TrainedEngine
from imagewright.evaluation.features import Tell
from imagewright.evaluation.prompts import Item
from imagewright.models.technique import Cond
from imagewright.pictures import encode, open_picture, save_atomic
from imagewright.request import ImageRequest
from imagewright.source import to_picture

ROWS = 32  # prompts at a time


class Drawn(Sequence[Image.Image]):
    """Pictures in files, read when they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> Drawn: ...

    def __getitem__(self, index: int | slice) -> Image.Image | Drawn:
        return Drawn(self.paths[index]) if isinstance(index, slice) else open_picture(self.paths[index]).copy()


def drawn(engine: Engine, info: ModelInfo, items: Sequence[Item], out: Path, told: Tell | None = None) -> Drawn:
    """The picture of each item at the model's own size; those that lie in `out` already are not drawn again.

    They lie in a folder named by the model's digest and the items, so that another model or list never mixes in.
    """
    asked = [[item.prompt, item.style, item.seed] for item in items]
    key = hashlib.sha256(json.dumps([info.name, info.digest, asked]).encode()).hexdigest()[:12]
    folder = out / f"pictures-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:05d}.png" for index in range(len(items))]
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    count = _Count(len(items) - len(missing), len(items), told)

    def keep(index: int, picture: Image.Image) -> None:
        save_atomic(encode(picture, "png"), paths[index])
        count.one_more()

    for start in range(0, len(missing), ROWS):
        some = missing[start : start + ROWS]
        if isinstance(engine, TrainedEngine):
            for index, picture in zip(some, _together(engine, info, [items[i] for i in some]), strict=True):
                keep(index, picture)
        else:
            all_of(
                at_once([partial(_alone, engine, info, items[i], partial(keep, i)) for i in some], engine.concurrency)
            )
    return Drawn(paths)


class _Count:
    """Tells how many pictures there are, from any thread."""

    def __init__(self, done: int, total: int, told: Tell | None) -> None:
        self.done, self.total, self.told, self.lock = done, total, told, Lock()

    def one_more(self) -> None:
        with self.lock:
            self.done += 1
            if self.told is not None:
                self.told("drawing", self.done, self.total)


def _together(engine: TrainedEngine, info: ModelInfo, items: Sequence[Item]) -> list[Image.Image]:
    """Several prompts in one batch, which is faster for torch; each row is made as if alone."""
    styles = [STYLES.index(item.style) if item.style else 0 for item in items]
    pictures = engine.technique(info).sample(
        Cond([item.prompt for item in items], styles, [""] * len(items)), [item.seed for item in items]
    )
    return [to_picture(picture[None].cpu().numpy()) for picture in pictures]


def _alone(engine: Engine, info: ModelInfo, item: Item, keep: Callable[[Image.Image], None]) -> None:
    keep(engine.generate(_request(info, item))[0])


def _request(info: ModelInfo, item: Item) -> ImageRequest:
    can = info.capabilities
    return ImageRequest(
        prompt=item.prompt,
        model=info.extra.get("path") or info.name,
        style=item.style,
        seed=item.seed if can.seed else None,
        size=can.size,
    )


def fields_of(model: str, item: Item) -> dict[str, object]:
    """An item as fields of ImageRequest, for evaluation.measure."""
    told = dataclasses.asdict(item)
    return {"model": model, **{name: told[name] for name in ("prompt", "style", "seed")}}
