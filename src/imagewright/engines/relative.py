"""What a request asks for relative to a model's own: a shape at its area, more or fewer steps, more guidance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from imagewright.editing.shapes import nearest
from imagewright.request import MAX_SIDE, QUALITIES, Capabilities, ImageRequest

MULTIPLE = 8  # that sides made from an aspect are of


def size_of(request: ImageRequest, can: Capabilities) -> tuple[int, int]:
    """The model's usual size, or one of its area with the aspect asked for."""
    usual = can.default_size or can.size
    if request.aspect is None or one_size(can):
        return usual
    ratio = request.aspect[0] / request.aspect[1]
    if ratio == usual[0] / usual[1]:
        return usual
    height = math.sqrt(math.prod(usual) / ratio)
    size = _side(height * ratio), _side(height)
    return size if can.any_size else nearest(size, can)


def one_size(can: Capabilities) -> bool:
    """Whether nothing but the model's own size comes out."""
    return not (can.any_size or can.sizes or can.sides)


def _side(length: float) -> int:
    return min(MAX_SIDE, max(MULTIPLE, round(length / MULTIPLE) * MULTIPLE))


def steps_of(request: ImageRequest, can: Capabilities) -> int | None:
    """The model's default steps times the factor of the quality asked for."""
    if can.default_steps is None:
        return None
    return max(1, round(can.default_steps * QUALITIES[request.quality]))


def guidance_of(request: ImageRequest, can: Capabilities) -> float | None:
    """The model's default guidance: half of it at `stylize` 0, itself at 1, twice at 10, straight lines between."""
    if can.default_guidance is None:
        return None
    asked = request.stylize
    return round(can.default_guidance * (0.5 + asked / 2 if asked <= 1 else 1 + (asked - 1) / 9), 4)


def unmet(request: ImageRequest, can: Capabilities) -> Iterator[tuple[str, Any, str]]:
    """Which of these wishes count for nothing: (field, used instead, reason)."""
    if request.aspect is not None:
        if request.image is not None:
            yield "aspect", None, "the picture has its own shape"
        elif request.size is not None:
            yield "aspect", None, "the size was asked for"
        elif one_size(can):
            yield "aspect", None, "this model makes one size only"
    if request.stylize != 1 and "stylize" not in can.features:
        if not can.guidance or can.default_guidance is None:
            yield "stylize", 1.0, "this model has no guidance"
        elif request.guidance_scale is not None:
            yield "stylize", 1.0, "the guidance was asked for"
    if can.qualities:
        if request.quality != "auto" and request.quality not in can.qualities:
            yield "quality", _quality(request.quality, can), "this model knows it by another name, or not so much of it"
    elif QUALITIES[request.quality] != 1:
        if not can.steps or can.default_steps is None:
            yield "quality", "auto", "this model has no steps"
        elif request.num_inference_steps is not None:
            yield "quality", "auto", "the number of steps was asked for"


def _quality(asked: str, can: Capabilities) -> str:
    """The nearest of the qualities that a model knows by name."""
    return min(can.qualities, key=lambda name: abs(QUALITIES[name] - QUALITIES[asked]))
