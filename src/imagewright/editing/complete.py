"""A hole filled from the rest of the picture, without a model: what surrounds it goes on.

Patches that overlap the hole are made alike to patches of the known part, from coarse to fine, and each pixel is what
its patches agree on (Wexler, Shechtman and Irani, "Space-time completion of video", 2007). At most SIDE pixels a side
are searched; at the picture's own resolution each pixel is copied from where its best patch came from. Deviations: all
patches are compared, not those of a random search; colours and transparency (premultiplied) are compared alike.
"""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from imagewright.editing import masks
from imagewright.editing.fields import surroundings
from imagewright.editing.masks import Hole

SIDE = 80  # pixels, at which patches are compared
CONTEXT = 1.5  # sides of the hole, on each side of it, where patches are taken from
PATCH = 7  # pixels
ROUNDS = 4  # at each size
SOURCES = 6000  # patches compared with, at most
GUESSED = 0.3  # weight of pixels of the gap, against known ones, when patches are compared
FLOAT = np.float32

Floats = NDArray[np.float32]
Places = NDArray[np.intp]


def completed(image: Image.Image, hole: Hole) -> Image.Image:
    """The picture with its hole (H, W) filled from around it; all else byte for byte as it was. Deterministic.

    Where nothing is known around the hole, and so nothing can go on, it becomes one even colour.
    """
    picture = masks.eight_bit(image)
    rows, columns = _around(hole)
    part, inside = np.asarray(picture)[rows, columns], hole[rows, columns]
    result = np.asarray(picture).copy()
    result[rows, columns][inside] = _filled(part, inside)[inside]
    return Image.fromarray(result, picture.mode)


def _around(hole: Hole) -> tuple[slice, slice]:
    """Rows and columns of the part that matters."""
    left, top, right, bottom = masks.bounds(hole)
    reach = ceil(CONTEXT * max(right - left, bottom - top)) + PATCH
    height, width = hole.shape
    return slice(max(0, top - reach), min(height, bottom + reach)), slice(
        max(0, left - reach), min(width, right + reach)
    )


def _filled(pixels: NDArray[np.uint8], hole: Hole) -> NDArray[np.uint8]:
    """`pixels` (H, W, 3 or 4) with the hole filled."""
    start = surroundings(_premultiplied(pixels), hole)
    scale = max(1.0, max(hole.shape) / SIDE)
    size = (max(1, round(hole.shape[1] / scale)), max(1, round(hole.shape[0] / scale)))
    found = _searched(start, hole, size)
    if found is None:
        return _straight(start, pixels.shape[-1])
    estimate, origins = found
    rows, columns = _far(origins, hole.shape)
    copied = pixels[rows, columns]
    smooth = _straight(_resized(estimate, (hole.shape[1], hole.shape[0])), pixels.shape[-1])
    return np.where(hole[rows, columns][..., None], smooth, copied)  # what a small pixel covers may touch the hole


def _searched(start: Floats, hole: Hole, size: tuple[int, int]) -> tuple[Floats, Places] | None:
    """The picture filled at `size`, and where each of its pixels comes from; None where no patch is known."""
    found: tuple[Floats, Places] | None = None
    for step in (4, 2, 1):
        small = (max(1, size[0] // step), max(1, size[1] // step))
        if min(small) < PATCH:
            continue
        image, gap = _resized(start, small), _touched(hole, small)
        if found is not None:
            image = np.where(gap[..., None], _resized(found[0], small), image)
        found = _matched(image, gap) or found
    return found if found is not None and found[0].shape[1::-1] == size else None


def _matched(image: Floats, gap: Hole) -> tuple[Floats, Places] | None:
    """(h, w, 4) with the gap (h, w) filled by patches, and where each pixel is from; None where no patch is known."""
    windows = sliding_window_view(gap, (PATCH, PATCH)).any(axis=(2, 3))  # (h - 6, w - 6): touches the gap
    targets, sources = np.argwhere(windows), np.argwhere(~windows)
    if not len(sources) or not len(targets):
        return None
    sources = sources[:: ceil(len(sources) / SOURCES)]
    sure = np.repeat(np.where(gap, FLOAT(GUESSED), FLOAT(1))[..., None], 4, axis=-1)  # (h, w, 4)
    weights = _patches(sure, targets)
    for _ in range(ROUNDS):
        known = _patches(image, sources)
        wanted = _patches(image, targets)
        gaps = weights @ (known**2).T - 2 * (weights * wanted) @ known.T  # (T, S)
        nearest = gaps.argmin(axis=1)
        distance = gaps[np.arange(len(targets)), nearest] + (weights * wanted**2).sum(axis=1)
        image, origins = _voted(image, gap, targets, sources[nearest], distance)
    return image, origins


def _patches(image: Floats, corners: Places) -> Floats:
    """(N, PATCH * PATCH * 4): the patches whose left top corners are given as (N, 2) rows and columns."""
    windows = sliding_window_view(image, (PATCH, PATCH), axis=(0, 1))
    patches: Floats = windows[corners[:, 0], corners[:, 1]].reshape(len(corners), -1).astype(FLOAT)
    return patches


def _voted(image: Floats, gap: Hole, targets: Places, sources: Places, distance: Floats) -> tuple[Floats, Places]:
    """The gap as its patches agree on: the mean by their likeness; and where the likest patch has each pixel from."""
    weight = np.exp(-distance / (2 * max(1e-6, float(np.percentile(distance, 75))))).astype(FLOAT)
    total, weights = np.zeros_like(image), np.zeros((*gap.shape, 1), FLOAT)
    best = np.full(gap.shape, -1.0)
    origins = np.array(np.indices(gap.shape))
    for row in range(PATCH):
        for column in range(PATCH):
            at = (targets[:, 0] + row, targets[:, 1] + column)  # no two targets have the same corner
            come = sources + np.array([row, column])
            total[at] += weight[:, None] * image[come[:, 0], come[:, 1]]
            weights[at] += weight[:, None]
            nearness = weight * (1 - 0.01 * (abs(row - PATCH // 2) + abs(column - PATCH // 2)))
            better = nearness > best[at]
            chosen = (at[0][better], at[1][better])
            best[chosen], origins[:, chosen[0], chosen[1]] = nearness[better], come[better].T
    filled = np.where(gap[..., None] & (weights > 0), total / np.maximum(weights, 1e-12), image)
    return filled.astype(FLOAT), origins


def _far(origins: Places, shape: tuple[int, int]) -> tuple[Places, Places]:
    """Rows and columns (H, W) that each pixel at full size comes from: as far away as its small pixel's origin."""
    rows, columns = np.indices(shape)
    height, width = origins.shape[1:]
    small = (rows * height // shape[0], columns * width // shape[1])
    down, right = origins[0][small] - small[0], origins[1][small] - small[1]
    row = rows + np.rint(down * shape[0] / height).astype(np.intp)
    column = columns + np.rint(right * shape[1] / width).astype(np.intp)
    return row.clip(0, shape[0] - 1), column.clip(0, shape[1] - 1)


def _premultiplied(pixels: NDArray[np.uint8]) -> Floats:
    """(H, W, 3 or 4) bytes -> (H, W, 4), premultiplied, 0 to 1."""
    rgba: Floats = (np.asarray(Image.fromarray(pixels).convert("RGBA")) / 255).astype(FLOAT)
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


def _straight(pixels: Floats, channels: int) -> NDArray[np.uint8]:
    alpha = pixels[..., 3:]
    colour = np.where(alpha > 0.5 / 255, pixels[..., :3] / np.maximum(alpha, 0.5 / 255), 0)
    rgba = np.concatenate([colour, alpha], axis=-1)[..., :channels]
    straight: NDArray[np.uint8] = (rgba.clip(0, 1) * 255).round().astype(np.uint8)
    return straight


def _resized(values: Floats, size: tuple[int, int]) -> Floats:
    if values.shape[1::-1] == size:
        return values
    how = Image.Resampling.BOX if size[0] < values.shape[1] else Image.Resampling.BILINEAR
    planes = [np.asarray(Image.fromarray(plane).resize(size, how)) for plane in np.moveaxis(values, -1, 0)]
    resized: Floats = np.stack(planes, axis=-1)
    return resized


def _touched(hole: Hole, size: tuple[int, int]) -> Hole:
    """The hole at `size`: what covers any of a pixel counts."""
    reduced = Image.fromarray(hole.astype(FLOAT)).resize(size, Image.Resampling.BOX)
    return np.asarray(reduced) > 0
