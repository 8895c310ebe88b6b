"""How each technique makes one picture from exported parts: numpy around ONNX Runtime.

A runner is a module with PARTS (the parts it cannot do without) and
`draw(model, words, options, seed, watch, source) -> pixels (1, 4, H, W)`, premultiplied RGBA in about [-1, 1].
`words` maps `text`, `pooled`, `text_mask` and `style` to arrays of two rows (the wanted and the avoided);
`options` has a value for every name of the technique's `sampling`; `source` is the picture to start from, if any, for
models whose `runtime` lists "image" or "mask" in `edits`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from imagewright.errors import ModelCorruptError

FAMILIES = ("diffusion", "gan", "autoregressive", "vae")


def runner(technique: str) -> Any:
    """The module that runs models of `technique`. Raises ModelCorruptError for one that this version has not."""
    if technique not in FAMILIES:
        raise ModelCorruptError(
            f"This version cannot run the technique {technique!r}.", "Use the version of imagewright that made it."
        )
    return import_module(f"{__name__}.{technique}")
