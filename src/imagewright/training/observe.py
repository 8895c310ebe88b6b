"""What a run shows of itself: the loss on held-out rows, and pictures, with the averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from imagewright.models.technique import Technique
from imagewright.training.config import TrainConfig
from imagewright.training.feed import Feed
from imagewright.training.journal import Journal
from imagewright.training.state import TrainState
from imagewright.training.watchdog import Watchdog

Preview = Callable[[Technique, int, Path], None]  # (technique with averaged weights, step, PNG to write)


class Observer:
    """Looks at the averaged weights every so many steps; the training does not notice."""

    def __init__(
        self,
        state: TrainState,
        feed: Feed,
        config: TrainConfig,
        journal: Journal,
        watchdog: Watchdog,
        samples: Path,
        preview: Preview | None,
    ) -> None:
        self.state, self.feed, self.config = state, feed, config
        self.journal, self.watchdog, self.samples, self.preview = journal, watchdog, samples, preview
        self.heldout: float | None = None

    def look(self) -> None:
        """After a step: whatever is due."""
        step, config = self.state.step, self.config
        if config.heldout_every and step % config.heldout_every == 0:
            self._evaluate()
        if self.preview is not None and config.sample_every and step % config.sample_every == 0:
            path = self.samples / f"step-{step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            with self._averaged():
                self.preview(self.state.technique, step, path)
            self.journal.picture(step, path)

    def _evaluate(self) -> None:
        """The loss of the last phase on the held-out rows."""
        technique, total, rows = self.state.technique, 0.0, 0
        with self._averaged(), autocast(self.feed.device, self.config):
            for batch in self.feed.heldout():
                losses = technique.loss(batch, technique.phases[-1].name)
                total += losses["loss"].item() * len(batch)
                rows += len(batch)
        if not rows:
            return
        self.heldout = total / rows
        self.journal.event("heldout", self.state.step, loss=self.heldout, rows=rows)
        if self.watchdog.overfitting(self.heldout):
            self.journal.warn("overfitting: the held-out loss rises while the training loss falls")

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the technique is in eval mode with the averaged weights, and needs no gradients."""
        self.state.technique.eval()
        try:
            with torch.no_grad(), self.state.ema.applied():
                yield
        finally:
            self.state.technique.train()


def autocast(device: torch.device, config: TrainConfig) -> torch.autocast:
    """The precision in which losses are computed; the weights stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
