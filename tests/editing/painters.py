"""An engine that paints noise over all that it is given, and pictures and masks of every kind to try it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from imagewright.engines.engine import Engine, ModelInfo
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.watch import Watch

MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16")
FIXED = Capabilities(size=(16, 16), image=True, mask=True, features=("instruction", "images", "style_images"))
FREE = Capabilities(size=(64, 64), sides=(16, 128, 8), image=True, mask=True)
WIDE = Capabilities(size=(40, 24), image=True, mask=True)


@dataclass
class Noise(Engine):
    """Draws random pixels of a random mode and size, whatever it is asked for; keeps the requests that it saw."""

    can: Capabilities = FIXED
    seen: list[ImageRequest] = field(default_factory=list)
    name = "noise"  # type: ignore[misc]

    def models(self) -> Sequence[ModelInfo]:
        return [
            ModelInfo(name="n", engine="noise", technique="noise", summary="", licence="CC0-1.0", capabilities=self.can)
        ]

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        self.seen.append(request)
        assert request.seed is not None
        random = np.random.default_rng(request.seed)
        return [anything(random, most=80, modes=("RGB", "RGBA", "L")) for _ in range(request.n)], []


def anything(random: np.random.Generator, most: int, modes: Sequence[str] = MODES) -> Image.Image:
    """A picture of noise of random mode and size, 1x1 to `most` x `most`."""
    width, height = (int(side) for side in random.integers(1, most + 1, 2))
    mode = modes[random.integers(len(modes))]
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65536, (height, width), np.uint16))
    channels = 4 if mode in ("RGBA", "LA") else 3
    picture = Image.fromarray(random.integers(0, 256, (height, width, channels), np.uint8))
    return picture.convert(mode)


def any_hole(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """A hole (H, W): speckles, a rectangle, a disc, all, or one pixel."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    x, y = random.integers(width), random.integers(height)
    kind = random.integers(5)
    if kind == 0:
        hole = random.random((height, width)) < random.random()
    elif kind == 1:
        hole = (abs(rows - y) <= random.integers(height)) & (abs(columns - x) <= random.integers(width))
    elif kind == 2:
        hole = (rows - y) ** 2 + (columns - x) ** 2 <= random.integers(1, max(size) + 1) ** 2
    else:
        hole = np.full((height, width), kind == 3)
    hole[y, x] = True
    return hole
