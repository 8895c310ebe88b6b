"""An engine whose answers are known, and a catalogue that finds it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Lock

import numpy as np
from PIL import Image

from imagewright.data.loader import CaptionedFolder
from imagewright.engines.catalog import Catalog
from imagewright.engines.engine import Engine, ModelInfo
from imagewright.errors import ModelError
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.watch import Watch


class Answering(Engine):
    """Draws the real picture of a caption, of any split; `grey` draws grey noise instead. `broken`: fails after so
    many. `most`: how many were drawn at once."""

    name = "answering"

    def __init__(self, folder: CaptionedFolder, grey: bool = False, concurrency: int = 1) -> None:
        self.folder, self.grey, self.concurrency = folder, grey, concurrency
        self.drawn, self.now, self.most, self.lock = 0, 0, 0, Lock()
        self.broken: int | None = None

    def models(self) -> Sequence[ModelInfo]:
        can = Capabilities(size=(64, 64), styles=("noto", "flat"), transparent=True)
        digest = "grey" if self.grey else "real"
        info = {"summary": "", "licence": "", "digest": digest}
        return [ModelInfo(name="answer", engine=self.name, technique="gan", capabilities=can, **info)]

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        with self.lock:
            if self.broken is not None and self.drawn >= self.broken:
                raise ModelError("It is broken.", "Mend it.")
            self.drawn, self.now = self.drawn + 1, self.now + 1
            self.most = max(self.most, self.now)
        if self.concurrency > 1:
            time.sleep(0.002)  # so that others come
        picture = self._picture(request)
        with self.lock:
            self.now -= 1
        return [picture], []

    def _picture(self, request: ImageRequest) -> Image.Image:
        rng = np.random.default_rng(request.seed)
        if self.grey:
            return Image.fromarray(rng.integers(0, 255, (64, 64, 4), np.uint8), "RGBA")
        fitting = [r for r in self.folder.records if (r["text"], r["style"]) == (request.prompt, request.style)]
        record = (fitting or self.folder.records)[-1]
        return Image.open(self.folder.path / record["file_name"]).convert("RGBA")


class One(Catalog):
    """A catalogue of one engine."""

    def __init__(self, only: Engine) -> None:
        super().__init__()
        self.only = only

    def find(self, name: str | None, technique: str | None = None) -> tuple[Engine, str | None]:
        return self.only, name
