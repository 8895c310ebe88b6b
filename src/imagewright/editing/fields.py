"""Fields over a hole: how deep it is, and what it would be if its surroundings went on smoothly."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.editing import masks
from imagewright.editing.masks import Hole
from imagewright.request import MAX_SIDE

FINE = 32  # steps of distance, at most, in which a depth is measured

Floats = NDArray[np.float32]


def thickness(hole: Hole) -> int:
    """How deep the deepest pixel of the hole lies below its edge, at most; 4,096 where it has no edge."""
    if hole.all():
        return MAX_SIDE
    left, top, right, bottom = masks.bounds(hole)
    part = hole[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1]  # with the edge around it
    return int(np.minimum(_runs(part, MAX_SIDE), _runs(part.T, MAX_SIDE).T).max()) - 1


def depth(hole: Hole, most: int) -> Floats:
    """Distance (H, W) in pixels to the nearest pixel that stays, up to `most`, and 0 there. Beyond the picture nothing
    stays. Large distances are measured on a coarser grid, on which what stays has no less room."""
    if most > FINE:
        factor = ceil(most / FINE)
        size = tuple(max(1, side // factor) for side in hole.shape)
        kept = shrunk(shrunk((~hole).astype(np.float32), size[0]).T, size[1]).T > 0
        coarse = Image.fromarray(depth(~kept, ceil(most / factor)) * factor)
        fine = np.asarray(coarse.resize(hole.shape[::-1], Image.Resampling.BILINEAR))
        return np.where(hole, np.clip(fine, 1, most), 0).astype(np.float32)
    down = _runs(hole, most).astype(np.int32)  # along columns
    nearest = down**2
    for shift in range(1, min(most, hole.shape[1])):
        beside = down[:, shift:] ** 2 + shift**2
        np.minimum(nearest[:, :-shift], beside, out=nearest[:, :-shift])
        np.minimum(nearest[:, shift:], down[:, :-shift] ** 2 + shift**2, out=nearest[:, shift:])
    return np.sqrt(np.minimum(nearest, most**2)).astype(np.float32)


def _runs(hole: Hole, most: int) -> NDArray[np.int32]:
    """Distance (H, W) to the nearest pixel of the same column that stays, up to `most`, and 0 there."""
    height = len(hole)
    index = np.arange(height, dtype=np.int32)[:, None]
    before = np.maximum.accumulate(np.where(hole, np.int32(-most - height), index), axis=0)
    after = np.minimum.accumulate(np.where(hole, np.int32(2 * height + most), index)[::-1], axis=0)[::-1]
    runs: NDArray[np.int32] = np.minimum(np.minimum(index - before, after - index), most)
    return runs


def surroundings(values: NDArray[Any], hole: Hole) -> Floats:
    """`values` (H, W, C) with the hole filled smoothly from around it, by halving until nothing is missing and back.

    Their middle, 127.5, where there is nothing around it.
    """
    known = ~hole
    if not known.any():
        return np.full(values.shape, 127.5, np.float32)
    weighted = np.concatenate([values * known[..., None], known[..., None]], axis=-1).astype(np.float32)
    filled: Floats = _filled(weighted)[..., :-1]
    return filled


def _filled(planes: Floats) -> Floats:
    """(H, W, C + 1), weighted values and their weight -> with every weight 1, holes taken from coarser levels."""
    weight = planes[..., -1:]
    own = (planes / np.maximum(weight, 1e-6)).astype(np.float32)
    if (weight > 0).all():
        return own
    height, width = planes.shape[:2]
    half = (max(1, (width + 1) // 2), max(1, (height + 1) // 2))
    coarse = _filled(_scaled(planes, half, Image.Resampling.BOX))
    filled: Floats = np.where(weight > 0, own, _scaled(coarse, (width, height), Image.Resampling.BILINEAR))
    return filled


def _scaled(planes: Floats, size: tuple[int, int], how: Image.Resampling) -> Floats:
    scaled = [Image.fromarray(plane).resize(size, how) for plane in np.moveaxis(planes, -1, 0)]
    return np.stack([np.asarray(plane) for plane in scaled], axis=-1)


def shrunk(values: Floats, length: int) -> Floats:
    """The maximum over the rows that each of `length` rows covers."""
    edges = np.arange(length + 1) * values.shape[0] / length
    first = np.floor(edges[:-1]).astype(int)
    last = np.maximum(np.ceil(edges[1:]).astype(int), first + 1)
    return np.stack([values[a:b].max(axis=0) for a, b in zip(first, last, strict=True)])
