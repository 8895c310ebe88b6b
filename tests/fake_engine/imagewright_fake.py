"""A stranger's engine for the tests: numbers from the seed and the prompt, found through its entry point."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from PIL import Image

from imagewright.engines.engine import Engine, ModelInfo, seed_of
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.watch import Watch

_FEATURES = ("instruction", "images", "style_images")
_CAN = Capabilities(size=(32, 32), steps=True, default_steps=4, transparent=True, styles=("flat",))


class FakeEngine(Engine):
    """`blocks` makes RGBA pictures, `opaque` RGB ones of one size only, and `painter` edits: it draws noise over all
    that it is given, so that whatever stays does so in spite of it."""

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
            ModelInfo(
                name="painter",
                engine=self.name,
                technique="noise",
                summary="noise over a picture",
                licence="CC0-1.0",
                capabilities=replace(_CAN, size=(16, 16), image=True, mask=True, features=_FEATURES),
                digest="cd" * 32,
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
        channels = 3 if model.name == "opaque" else 4
        values = np.random.default_rng([seed, words]).integers(0, 256, (side, side, channels), np.uint8)
        return Image.fromarray(values)
