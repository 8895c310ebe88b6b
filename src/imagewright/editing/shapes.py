"""Which size a model draws where another is asked for: the nearest shape first, then the nearest area."""

from __future__ import annotations

import math
from dataclasses import replace

from imagewright.request import Capabilities

Size = tuple[int, int]  # width, height in pixels


def nearest(size: Size, can: Capabilities) -> Size:
    """The size that a model without `any_size` draws where `size` is asked for: of the nearest shape, then area."""
    if can.sizes:
        return min(can.sizes, key=lambda one: (round(_apart(one, size), 2), abs(math.prod(one) - math.prod(size))))
    if can.sides is None:
        return can.size
    least, most, step = can.sides
    ratio, area = size[0] / size[1], math.prod(size)
    if can.ratio is not None:
        ratio = min(max(ratio, 1 / can.ratio), can.ratio)
    if can.pixels is not None:
        area = min(max(area, can.pixels[0]), can.pixels[1])
    height = min(max(math.sqrt(area / ratio), least, least / ratio), most, most / ratio)
    return _within((_stepped(height * ratio, step), _stepped(height, step)), can)


def _stepped(side: float, step: int) -> int:
    return max(step, round(side / step) * step)


def _within(size: Size, can: Capabilities) -> Size:
    """`size`, whose sides were rounded, a step smaller or larger where that left the ratio or the number of pixels."""
    assert can.sides is not None
    least, most, step = can.sides
    low, high = can.pixels or (0, most * most)
    ratio = (can.ratio or most) + 1e-9
    around = [(size[0] + x * step, size[1] + y * step) for x in (0, -1, 1, -2, 2) for y in (0, -1, 1, -2, 2)]
    good = (one for one in around if least <= min(one) and max(one) <= min(most, ratio * min(one)))
    return next((one for one in good if low <= math.prod(one) <= high), size)


def shaped(part: Size, can: Capabilities) -> Capabilities:
    """What a model can do for one part of a picture: of several sizes, only that of the nearest shape; and where it
    does not draw shapes as long as that, only the longest."""
    too_long = can.sides is not None and can.ratio is not None and max(part) > can.ratio * min(part)
    if not can.sizes and not too_long:
        return can
    scale = math.sqrt(math.prod(can.size) / math.prod(part))
    width, height = (max(1, round(side * scale)) for side in part)
    return replace(can, size=nearest((width, height), can), sides=None)


def _apart(one: Size, other: Size) -> float:
    """How far two shapes are from each other: 0 where they are the same."""
    return abs(math.log(one[0] * other[1] / (one[1] * other[0])))
