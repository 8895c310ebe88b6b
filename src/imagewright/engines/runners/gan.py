"""GAN: one run of the exported generator. A style-based one maps noise and words to styles first, and decodes after."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imagewright.models.samplers import noise_source
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
    """The pixels (1, 4, H, W) of one picture; who looks on sees what each layer's style adds to the mean style's."""
    pixels = _styled(model, words, options, seed, watch) if "w_mean" in model.runtime else _plain(model, seed)
    watch.told(1, 1)
    return pixels


def _plain(model: Any, seed: int) -> Floats:
    pixels: Floats = model.run("generator", z=noise_source(seed, (1, model.runtime["z"]))())[0]
    return pixels


def _styled(
    model: Any, words: Mapping[str, NDArray[Any]], options: Mapping[str, Any], seed: int, watch: Watch
) -> Floats:
    runtime = model.runtime
    z, noise = np.split(noise_source(seed, (1, runtime["z"] + runtime["noises"]))(), [runtime["z"]], axis=1)
    w = styled(model, words, z, options)
    mean = np.array(runtime["w_mean"], np.float32)
    layers = sum(runtime["depths"])

    def pictured(styled_layers: int, *, large: bool = False) -> Floats:
        """With the styles of the first layers, the mean style in the others."""
        ws = np.where(np.arange(layers)[:, None] < styled_layers, w, mean)[None]
        inputs = {"ws": ws, "noise": noise, "text": words["text"][:1], "text_mask": words["text_mask"][:1]}
        x = model.run("generator", **{name: inputs[name] for name in runtime["inputs"]})[0]
        pixels: Floats = model.run("decoder", ["large" if large else "pixels"], x=x)[0]
        return pixels

    def seen(styled_layers: int) -> Floats:
        picture: Floats = pictured(styled_layers)[0].clip(-1, 1)
        return picture

    for layer in range(layers):
        watch.seen("layer", layer, layers, partial(seen, layer + 1))
    return pictured(layers, large=options.get("large", False))


def styled(model: Any, words: Mapping[str, NDArray[Any]], z: Floats, options: Mapping[str, Any]) -> Floats:
    """w (w,) of z (1, z): guided away from the avoided words, then truncated towards the mean w."""
    mean = np.array(model.runtime["w_mean"], np.float32)
    both = np.repeat(z, 2, axis=0)
    wanted, avoided = model.run("mapping", z=both, pooled=words["pooled"], style=words["style"])[0]
    w = avoided + np.float32(options["guidance"]) * (wanted - avoided)
    truncated: Floats = mean + np.float32(options["truncation"]) * (w - mean)
    return truncated
