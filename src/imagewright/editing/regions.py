"""Regions of pixels in numpy: connected parts, growing and shrinking, local means, and segments of like colour.

The segments are those of Felzenszwalb and Huttenlocher (Efficient Graph-Based Image Segmentation, 2004), on colours in
OKLab and with four neighbours a pixel; the paper smooths the picture before and has eight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


def components(mask: Mask) -> Labels:
    """The connected parts (four neighbours) of a mask (H, W): 0 outside, then 1, 2, ... in reading order.

    Rows are cut into runs, and runs that touch are joined, so that the work grows with runs and not with pixels.
    """
    height, width = mask.shape
    line = np.zeros((height, width + 1), np.int8)  # a column of zeros keeps the rows apart
    line[:, :width] = mask
    steps = np.diff(line.reshape(-1), prepend=0)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    first = np.searchsorted(ends, starts + width + 1, "right")  # the runs in the next row that touch each run
    last = np.searchsorted(starts, ends + width + 1, "left")
    counts = np.maximum(0, last - first)
    above = np.repeat(np.arange(len(starts)), counts)
    below = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    names = np.unique(joined(len(starts), above, below), return_inverse=True)[1] + 1
    out = np.zeros(height * (width + 1) + 1, np.int64)
    out[starts] += names
    np.subtract.at(out, ends, names)
    return np.cumsum(out)[:-1].reshape(height, width + 1)[:, :width]


def joined(count: int, one: Labels, other: Labels) -> Labels:
    """For each of `count` nodes the least node that the edges one[i] - other[i] connect it with."""
    root = np.arange(count)
    while True:
        a, b = root[one], root[other]
        low, high = np.minimum(a, b), np.maximum(a, b)
        if np.array_equal(low, high):
            return root
        np.minimum.at(root, high, low)
        while not np.array_equal(root, root[root]):
            root = root[root]


def grown(mask: Mask, by: int) -> Mask:
    """The mask and all pixels up to `by` steps (four neighbours) away."""
    for _ in range(by):
        wider = mask.copy()
        wider[1:] |= mask[:-1]
        wider[:-1] |= mask[1:]
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        mask = wider
    return mask


def shrunk(mask: Mask, by: int) -> Mask:
    """The pixels of the mask that are more than `by` steps away from any other; what is outside the picture is not."""
    return ~grown(~mask, by)


def box_sums(values: Floats, radius: int) -> Floats:
    """Sums of (H, W, C) over squares of 2 * radius + 1 pixels, cut at the border."""
    for axis in (0, 1):
        length = values.shape[axis]
        total = np.cumsum(values, axis=axis)
        total = np.concatenate([np.zeros_like(total.take([0], axis)), total], axis)
        low = np.clip(np.arange(length) - radius, 0, length)
        high = np.clip(np.arange(length) + radius + 1, 0, length)
        values = total.take(high, axis) - total.take(low, axis)
    return values


def spread(values: Floats, known: Mask, radius: int) -> tuple[Floats, Mask]:
    """Local means of (H, W, C) over the known pixels within `radius`, and where there are any."""
    weights = box_sums(known[..., None].astype(np.float64), radius)
    sums = box_sums(np.where(known[..., None], values, 0), radius)
    return sums / np.maximum(weights, 1e-9), weights[..., 0] > 0.5


def segments(lab: Floats, scale: float, least: int) -> Labels:
    """Segments 0, 1, ... of like colour of a picture (H, W, C); larger `scale`, larger segments, none below `least`
    pixels. Takes a second or so for 256 x 256 pixels."""
    height, width = lab.shape[:2]
    index = np.arange(height * width).reshape(height, width)
    pairs = [(index[:, :-1], index[:, 1:]), (index[:-1], index[1:])]
    one = np.concatenate([a.reshape(-1) for a, _ in pairs])
    other = np.concatenate([b.reshape(-1) for _, b in pairs])
    flat = lab.reshape(height * width, -1)
    weight = np.linalg.norm(flat[one] - flat[other], axis=1)
    order = np.argsort(weight, kind="stable")
    parent, size = list(range(height * width)), [1] * (height * width)
    inner = [0.0] * (height * width)  # the largest edge inside each segment

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    edges = list(zip(one[order].tolist(), other[order].tolist(), weight[order].tolist(), strict=True))
    for small in (False, True):  # first by colour, then whatever is too small
        for a, b, w in edges:
            a, b = find(a), find(b)
            if a == b:
                continue
            alike = w <= min(inner[a] + scale / size[a], inner[b] + scale / size[b])
            if alike if not small else min(size[a], size[b]) < least:
                parent[b] = a
                size[a] += size[b]
                inner[a] = max(inner[a], inner[b], w)
    roots = np.array([find(node) for node in range(height * width)])
    return np.unique(roots, return_inverse=True)[1].reshape(height, width)
