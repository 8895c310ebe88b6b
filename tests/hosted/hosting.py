"""What tests of hosted engines share: a configuration that points to a stand-in, and pictures to send."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from imagewright.config import Config, Secret
from imagewright.editing import masks
from imagewright.engines.catalog import Catalog
from imagewright.engines.engine import Engine


def config(provider: str, base_url: str, timeout: float = 20.0, **options: Any) -> Config:
    """What a file with one service says; `key`, `client_secret` and the like become secrets."""
    hidden = {name: Secret(value) if name in ("key", "client_secret") else value for name, value in options.items()}
    return Config(tables={"providers": {provider: {"base_url": base_url, "timeout": timeout, **hidden}}})


def photo(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A picture whose every pixel tells where it is."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([across, down, np.full_like(across, 90)], axis=-1).round().astype(np.uint8))


def hole(size: tuple[int, int] = (96, 64), box: tuple[int, int, int, int] = (30, 20, 60, 40)) -> Image.Image:
    """A mask, as OpenAI's, that lets change what is in `box`."""
    found = np.zeros((size[1], size[0]), bool)
    found[box[1] : box[3], box[0] : box[2]] = True
    return masks.mask_of(found)


def border(size: tuple[int, int] = (96, 64), kept: tuple[int, int, int, int] = (0, 0, 64, 64)) -> Image.Image:
    """A mask that lets change all around the rectangle `kept`."""
    return masks.inverted(hole(size, kept))


class Only(Catalog):
    """A catalog of one engine."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._only = engine

    def find(self, name: str | None, technique: str | None = None) -> tuple[Engine, str | None]:
        return self._only, name
