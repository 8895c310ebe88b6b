"""An engine for tests of the queue: it takes as long as the prompt says, and writes down what it does.

The words of a prompt: `sleep=0.05` seconds for each step, `fail`, `exit`, `die` (kill -9 of its own process). Each
line of the file IMAGEWRIGHT_SLOW_LOG: what (begin, step, end), the seed, the time, the process.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
from PIL import Image

from imagewright.engines.engine import Engine, ModelInfo, seed_of
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.watch import Watch

_CAN = Capabilities(size=(16, 16), steps=True, default_steps=10)


class SlowEngine(Engine):
    """Noise of 16x16, in as many steps as are asked for; four requests at once."""

    name = "slow"
    concurrency = 4

    def models(self) -> list[ModelInfo]:
        return [
            ModelInfo(
                name="steps",
                engine=self.name,
                technique="noise",
                summary="noise, slowly",
                licence="CC0-1.0",
                capabilities=_CAN,
            )
        ]

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        words = dict(word.partition("=")[::2] for word in request.prompt.split())
        assert request.seed is not None and request.num_inference_steps is not None
        note("begin", request.seed)
        if "die" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "exit" in words:
            raise SystemExit
        if "fail" in words:
            raise RuntimeError("as the prompt says")
        shown = 0
        for step in range(request.num_inference_steps):
            time.sleep(float(words.get("sleep", 0)))
            note("step", request.seed)
            watch.told(step + 1, request.num_inference_steps)
            if watch.preview is not None and shown < watch.previews and step < request.num_inference_steps - 1:
                watch.preview(shown, _picture(request.prompt, shown))
                shown += 1
        note("end", request.seed)
        return [_picture(request.prompt, seed_of(request, index)) for index in range(request.n)], []


def note(what: str, seed: int) -> None:
    """Write down what happens."""
    if path := os.environ.get("IMAGEWRIGHT_SLOW_LOG"):
        with Path(path).open("a") as log:
            log.write(f"{what} {seed} {time.time()} {os.getpid()}\n")


def _picture(prompt: str, seed: int) -> Image.Image:
    words = int.from_bytes(hashlib.sha256(prompt.encode("utf-8")).digest()[:4], "big")
    return Image.fromarray(np.random.default_rng([seed, words]).integers(0, 256, (16, 16, 3), np.uint8))
