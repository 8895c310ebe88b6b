"""Looking on while pictures are made: progress, and what happens on the way. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Progress = Callable[[int, int], None]  # (steps done, steps in all)
Tracer = Callable[[str, int, NDArray[Any], Mapping[str, Any]], None]  # (kind, index, array, facts)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Watch:
    """Passed down to whatever makes pictures; does nothing unless it was given something to call.

    `trace` gets (kind, index, array, facts). Kinds and their arrays: `step` (a denoising step), `layer` (of a
    generator), `level` (of a hierarchical prior) and `token` (the picture so far): pixels (4, H, W), premultiplied
    RGBA in about [-1, 1]; `attention`: weights (L, h, w), one map a text token, with the fact `words`. `words`:
    the word pieces of the prompt, where the tokens alone do not tell them. `say` gets what the user should know before
    the pictures are there: how long they will take, a conversion that is done once.
    """

    progress: Progress | None = None
    trace: Tracer | None = None
    words: tuple[str, ...] = ()
    say: Say | None = None

    @property
    def tracing(self) -> bool:
        """Whether `shown` leads anywhere: do not compute for it otherwise."""
        return self.trace is not None

    def told(self, done: int, total: int) -> None:
        """`done` of `total` steps are over."""
        if self.progress is not None:
            self.progress(done, total)

    def said(self, text: str) -> None:
        """One line for the user, now."""
        if self.say is not None:
            self.say(text)

    def shown(self, kind: str, index: int, array: Any, **facts: Any) -> None:
        """Something to keep: a numpy array or a torch tensor on the CPU."""
        if self.trace is not None:
            self.trace(kind, index, np.asarray(array, dtype=np.float32), facts)
