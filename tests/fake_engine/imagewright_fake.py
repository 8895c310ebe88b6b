"""A stranger's engine for the tests: numbers from the seed and the prompt, found through its entry point."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image

from imagewright.engines.engine import Engine, ModelInfo, seed_of
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.watch import Watch

_CAN = Capabilities(size=(32, 32), steps=True, default_steps=4, transparent=True, styles=("flat",))


class FakeEngine(Engine):
    """`blocks` makes RGBA pictures, `opaque` RGB ones of one size only."""

    name = "fake"

    def models(self) -> list[ModelInfo]:
        return [
            ModelInfo(
                name="blocks",
                engine=self.name,
                technique="noise",
                summary="coloured blocks",
                licence="CC0-1.0",
                capabilities=_CAN,
                digest="ab" * 32,
            ),
            ModelInfo(
                name="opaque",
                engine=self.name,
                technique="noise",
                summary="coloured blocks without alpha",
                licence="CC0-1.0",
                capabilities=Capabilities(size=(24, 24), any_size=False, max_n=2),
            ),
        ]

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        pictures = [self._picture(request, model, seed_of(request, index)) for index in range(request.n)]
        watch.told(4, 4)
        return pictures, []

    def _picture(self, request: ImageRequest, model: ModelInfo, seed: int) -> Image.Image:
        words = int.from_bytes(hashlib.sha256(request.prompt.encode("utf-8")).digest()[:4], "big")
        side = model.capabilities.size[0]
        channels = 4 if model.name == "blocks" else 3
        values = np.random.default_rng([seed, words]).integers(0, 256, (side, side, channels), np.uint8)
        return Image.fromarray(values)
