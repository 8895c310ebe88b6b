"""What a request asks for relative to a model's own: a shape at its area, more or fewer steps, more guidance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from imagewright.request import MAX_SIDE, QUALITIES, Capabilities, ImageRequest

MULTIPLE = 8  # that sides made from an aspect are of


def size_of(request: ImageRequest, can: Capabilities) -> tuple[int, int]:
    """The model's usual size, or one of its area with the aspect asked for."""
    usual = can.default_size or can.size
    if request.aspect is None or not can.any_size:
        return usual
    ratio = request.aspect[0] / request.aspect[1]
    if ratio == usual[0] / usual[1]:
        return usual
    height = math.sqrt(math.prod(usual) / ratio)
    return _side(height * ratio), _side(height)


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
        elif not can.any_size:
            yield "aspect", None, "this model makes one size only"
    if request.stylize != 1:
        if not can.guidance or can.default_guidance is None:
            yield "stylize", 1.0, "this model has no guidance"
        elif request.guidance_scale is not None:
            yield "stylize", 1.0, "the guidance was asked for"
    if QUALITIES[request.quality] != 1:
        if not can.steps or can.default_steps is None:
            yield "quality", "auto", "this model has no steps"
        elif request.num_inference_steps is not None:
            yield "quality", "auto", "the number of steps was asked for"
