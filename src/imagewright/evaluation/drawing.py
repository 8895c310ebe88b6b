"""The pictures that a model makes for a list of items, kept in a folder so that an interrupted evaluation goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from imagewright.data.batch import STYLES
from imagewright.engines.engine import Engine, ModelInfo
from imagewright.engines.trained import TrainedEngine
from imagewright.evaluation.features import Tell
from imagewright.evaluation.prompts import Item
from imagewright.models.technique import Cond
from imagewright.pictures import encode, open_picture, save_atomic
from imagewright.request import ImageRequest
from imagewright.source import to_picture

ROWS = 32  # prompts at a time, where the engine takes several


def drawn(
    engine: Engine, info: ModelInfo, items: Sequence[Item], out: Path, told: Tell | None = None
) -> list[Image.Image]:
    """The picture of each item at the model's own size; those that lie in `out` already are not drawn again.

    They lie in a folder named by the model's digest and the items, so that another model or list never mixes in.
    """
    asked = [[item.prompt, item.style, item.seed] for item in items]
    key = hashlib.sha256(json.dumps([info.name, info.digest, asked]).encode()).hexdigest()[:12]
    folder = out / f"pictures-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:05d}.png" for index in range(len(items))]
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    rows = ROWS if isinstance(engine, TrainedEngine) else 1
    for start in range(0, len(missing), rows):
        some = missing[start : start + rows]
        for index, picture in zip(some, _draw(engine, info, [items[i] for i in some]), strict=True):
            save_atomic(encode(picture, "png"), paths[index])
        if told is not None:
            told("drawing", len(items) - len(missing) + start + len(some), len(items))
    return [open_picture(path).copy() for path in paths]


def _draw(engine: Engine, info: ModelInfo, items: Sequence[Item]) -> list[Image.Image]:
    if isinstance(engine, TrainedEngine):  # several prompts at once; each row is made as if alone
        styles = [STYLES.index(item.style) if item.style else 0 for item in items]
        pictures = engine.technique(info).sample(
            Cond([item.prompt for item in items], styles, [""] * len(items)), [item.seed for item in items]
        )
        return [to_picture(picture[None].cpu().numpy()) for picture in pictures]
    return [engine.generate(_request(info, item))[0] for item in items]


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
