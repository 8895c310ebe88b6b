"""Looking on while pictures are made: progress, and what happens on the way. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.errors import StoppedError
from imagewright.source import to_picture

Progress = Callable[[int, int], None]  # (steps done, steps in all)
Tracer = Callable[[str, int, NDArray[Any], Mapping[str, Any]], None]  # (kind, index, array, facts)
Say = Callable[[str], None]
Preview = Callable[[int, Image.Image], None]  # (index, picture)


class Stop:
    """Says once, from any thread, that nobody wants the work any more."""

    def __init__(self) -> None:
        self._lock, self._then, self._set = Lock(), list[Callable[[], None]](), False

    def set(self) -> None:
        """Stop. What `then` was given is called, once, in this thread."""
        with self._lock:
            waiting, self._then, self._set = self._then, [], True
        for call in waiting:
            call()

    def is_set(self) -> bool:
        """Whether it was said."""
        return self._set

    def then(self, call: Callable[[], None]) -> None:
        """Have `call` called when it is said; at once if it was."""
        with self._lock:
            if not self._set:
                self._then.append(call)
                return
        call()


@dataclass(frozen=True)
class Watch:
    """Passed down to whatever makes pictures; does nothing unless it was given something to call.

    `trace` gets (kind, index, array, facts). Kinds and their arrays: `step` (a denoising step), `layer` (of a
    generator), `level` (of a hierarchical prior) and `token` (the picture so far): pixels (4, H, W), premultiplied
    RGBA in about [-1, 1]; `attention`: weights (L, h, w), one map a text token, with the fact `words`. `words`:
    the word pieces of the prompt, where the tokens alone do not tell them. `say` gets what the user should know before
    the pictures are there: how long they will take, a conversion that is done once. `stop` ends the work: at the next
    step that is told, StoppedError is raised.
    `preview` gets (index, picture): what the first picture of the request looks like on the way, at most `previews`
    times, evenly spaced; fewer where a model has fewer steps, none where nothing can be seen before the end.
    """

    progress: Progress | None = None
    trace: Tracer | None = None
    words: tuple[str, ...] = ()
    say: Say | None = None
    stop: Stop | None = None
    preview: Preview | None = None
    previews: int = 0

    @property
    def tracing(self) -> bool:
        """Whether `shown` leads anywhere: do not compute for it otherwise."""
        return self.trace is not None

    def told(self, done: int, total: int) -> None:
        """`done` of `total` steps are over. Raises StoppedError where nobody wants more."""
        self.check()
        if self.progress is not None:
            self.progress(done, total)

    def check(self) -> None:
        """Raises StoppedError where nobody wants the work any more."""
        if self.stop is not None and self.stop.is_set():
            raise StoppedError("The work was stopped.", "Ask again if you still want it.")

    def seen(self, kind: str, step: int, total: int, picture: Callable[[], Any], **facts: Any) -> None:
        """What there is after `step` (from 0) of `total`, for the trace and for a preview that is due: `picture` gives
        its pixels, and is called only if anybody looks."""
        due = self.due(step, step + 1, total)
        if self.tracing or due is not None:
            pixels = picture()
            self.shown(kind, step, pixels, **facts)
            if due is not None:
                self.previewed(due, pixels)

    def due(self, before: int, done: int, total: int) -> int | None:
        """Which preview to make where `done` of `total` steps are over and `before` were the last time; None: none."""
        count = min(self.previews, total - 1) if self.preview is not None else 0
        marks = [(index + 1) * total // (count + 1) for index in range(count)]  # none at the end: that is the picture
        passed = [index for index, mark in enumerate(marks) if before < mark <= done < total]
        return passed[-1] if passed else None

    def previewed(self, index: int, pixels: Any) -> None:
        """The preview that is due: pixels (4, H, W), premultiplied RGBA in about [-1, 1]."""
        if self.preview is not None:
            self.preview(index, to_picture(np.asarray(pixels, dtype=np.float32)[None]))

    def said(self, text: str) -> None:
        """One line for the user, now."""
        if self.say is not None:
            self.say(text)

    def shown(self, kind: str, index: int, array: Any, **facts: Any) -> None:
        """Something to keep: a numpy array or a torch tensor on the CPU."""
        if self.trace is not None:
            self.trace(kind, index, np.asarray(array, dtype=np.float32), facts)


def shared(watch: Watch, count: int) -> Callable[[int, int, int], None]:
    """Tells `watch` of `count` like things that are done at once: called with (which, its steps done, its steps)."""
    lock, done = Lock(), [0] * count

    def told(which: int, steps: int, total: int) -> None:
        with lock:
            done[which] = steps
            watch.told(sum(done), count * total)

    return told
