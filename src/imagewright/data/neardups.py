"""Near-duplicates and mirror images between held-out and training pictures, by a small perceptual descriptor.

The descriptor is the premultiplied picture at 16x16 pixels, RGBA, as one vector; likeness is the cosine after
the mean of the training descriptors is taken away, so that what all icons share (a round yellow body in the middle)
does not count as likeness.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
THRESHOLD = 0.97
Descriptors = NDArray[np.float32]


def descriptor(pixels: NDArray[np.uint8]) -> Descriptors:
    """(H, W, 4) straight RGBA -> (SIDE * SIDE * 4,) float32 in [0, 1]."""
    small = Image.fromarray(pixels, "RGBA").convert("RGBa").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float32).reshape(-1) / 255


def mirrored(descriptors: Descriptors) -> Descriptors:
    """(N, D) -> (N, D) of the pictures seen in a mirror."""
    return descriptors.reshape(-1, SIDE, SIDE, 4)[:, :, ::-1].reshape(len(descriptors), -1)


def nearest(held: Descriptors, train: Descriptors) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """For each held-out picture the cosine (n,) to its nearest training picture or mirror image, and which (n,)."""
    mean = train.mean(0)

    def unit(rows: Descriptors) -> Descriptors:
        rows = rows - mean
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)

    plain = unit(held) @ unit(train).T  # (n, N)
    mirror = unit(mirrored(held)) @ unit(train).T
    cosine = np.maximum(plain, mirror)
    index = cosine.argmax(1)
    return cosine[np.arange(len(held)), index].astype(np.float32), index.astype(np.int64)
