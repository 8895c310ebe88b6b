"""VAE: a scaled code of noise, or one on the way from a picture's, through the exported generator.

On latents the generator makes x, which a decoder turns into pixels; a code is then found by `encoder` and `posterior`.
"""

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

PARTS = ("generator",)  # and decoder, on latents
Floats = NDArray[np.float32]


def draw(
    model: Any,
    words: Mapping[str, NDArray[Any]],
    options: Mapping[str, Any],
    seed: int,
    watch: Watch,
    source: Source | None = None,
) -> Floats:
    """The pixels (1, 4, H, W) of one picture, twice as large where the decoder can and that is asked for (`large`); who
    looks on sees what each level adds to those above."""
    levels = model.runtime["levels"]
    code = noise_source(seed, (1, sum(levels)))() * np.float32(options["temperature"])
    if source is not None:
        said = {name: words[name][:1] for name in model.runtime["inputs"]}
        each = [encode(model, picture[None], said) for picture in source.pixels]
        code = departed(each, code, source.strength)
    condition = _condition(model.runtime["inputs"], words, options)
    code = np.repeat(code, len(next(iter(condition.values()), code)), axis=0)

    def generated(numbers: int, *, large: bool = False) -> Floats:
        """With the first `numbers` of the code, the rest at the prior's mean."""
        kept = np.where(np.arange(code.shape[1]) < numbers, code, np.float32(0))
        made: Floats = model.run("generator", code=kept, **condition)[0][:1]
        if _on_latents(model):
            made = model.run("decoder", ["large" if large else "pixels"], x=made)[0]
        return made

    def seen(upper: int) -> Floats:
        picture: Floats = generated(sum(levels[:upper]))[0].clip(-1, 1)
        return picture

    for level in range(len(levels)):
        watch.seen("level", level, len(levels), partial(seen, level + 1))
    pixels = generated(code.shape[1], large=options.get("large", False))
    watch.told(1, 1)
    return pixels


def encode(model: Any, pixels: Floats, words: Mapping[str, NDArray[Any]]) -> Floats:
    """The code (1, N) of pixels (1, 4, H, W) under words of one row."""
    code: Floats
    if _on_latents(model):
        x = model.run("encoder", pixels=pixels.astype(np.float32))[0]
        code = model.run("posterior", x=x, **words)[0]
    else:
        code = model.run("encoder", pixels=pixels.astype(np.float32), **words)[0]
    return code


def _on_latents(model: Any) -> bool:
    return "encoding" in model.runtime


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
