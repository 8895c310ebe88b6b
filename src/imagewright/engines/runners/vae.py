"""VAE: a scaled code of noise, or one on the way from a picture's, through the exported generator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagewright.models.samplers import noise_source
from imagewright.models.start import departed
from imagewright.source import Source
from imagewright.watch import Watch

PARTS = ("generator",)
Floats = NDArray[np.float32]


def draw(
    model: Any,
    words: Mapping[str, NDArray[Any]],
    options: Mapping[str, Any],
    seed: int,
    watch: Watch,
    source: Source | None = None,
) -> Floats:
    """The pixels (1, 4, H, W) of one picture; who looks on sees what each level adds to those above."""
    levels = model.runtime["levels"]
    code = noise_source(seed, (1, sum(levels)))() * np.float32(options["temperature"])
    if source is not None:
        said = {name: words[name][:1] for name in model.runtime["inputs"]}
        each = [model.run("encoder", pixels=picture[None], **said)[0] for picture in source.pixels]
        code = departed(each, code, source.strength)
    condition = _condition(model.runtime["inputs"], words, options)
    code = np.repeat(code, len(next(iter(condition.values()), code)), axis=0)

    def generated(numbers: int) -> Floats:
        """With the first `numbers` of the code, the rest at the prior's mean."""
        kept = np.where(np.arange(code.shape[1]) < numbers, code, np.float32(0))
        pixels: Floats = model.run("generator", code=kept, **condition)[0][:1]
        return pixels

    def seen(upper: int) -> Floats:
        picture: Floats = generated(sum(levels[:upper]))[0].clip(-1, 1)
        return picture

    for level in range(len(levels)):
        watch.seen("level", level, len(levels), partial(seen, level + 1))
    pixels = generated(code.shape[1])
    watch.told(1, 1)
    return pixels


def _condition(
    names: list[str], words: Mapping[str, NDArray[Any]], options: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """The words that the model looks at, and if it can be guided, how its rows' prior means mix."""
    scale = options.get("guidance")
    rows = 1 if scale in (None, 1) else 2
    condition = {name: words[name][:rows] for name in names}
    if scale is not None:
        mixing = [[1.0]] if rows == 1 else [[scale, 1 - scale]] * 2
        condition["guide"] = np.array(mixing, np.float32)
    return condition
