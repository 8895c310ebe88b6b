"""What a run shows of itself: the loss on held-out rows, and pictures, with the averaged weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from imagewright.models.technique import Technique
from imagewright.training.accelerator import fast_bfloat16
from imagewright.training.config import TrainConfig
from imagewright.training.feed import Feed
from imagewright.training.journal import Journal
from imagewright.training.state import TrainState
from imagewright.training.watchdog import OVERFIT, SIGNS, Watchdog

Preview = Callable[[Technique, int, Path], None]  # (technique with averaged weights, step, PNG to write)
Checkup = Callable[[Technique], dict[str, float]]  # technique with averaged weights -> findings, by the names of SIGNS


class Observer:
    """Looks at the averaged weights every so many steps; the training does not notice.

    `improved`: whether the latest look found the best held-out loss so far.
    """

    def __init__(
        self,
        state: TrainState,
        feed: Feed,
        config: TrainConfig,
        journal: Journal,
        watchdog: Watchdog,
        samples: Path,
        preview: Preview | None,
        checkup: Checkup | None = None,
    ) -> None:
        self.state, self.feed, self.config = state, feed, config
        self.journal, self.watchdog, self.samples = journal, watchdog, samples
        self.preview, self.checkup = preview, checkup
        self.heldout: float | None = None
        self.improved = False

    def look(self) -> None:
        """After a step: whatever is due. Raises DivergedError if what it sees has collapsed."""
        step, config = self.state.step, self.config
        self.improved = False
        if config.heldout_every and step % config.heldout_every == 0:
            self._evaluate()
        if not config.sample_every or step % config.sample_every:
            return
        if self.preview is not None:
            path = self.samples / f"step-{step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            with self._averaged():
                self.preview(self.state.technique, step, path)
            self.journal.picture(step, path)
        if self.checkup is not None:
            with self._averaged():
                findings = self.checkup(self.state.technique)
            self.journal.event("checkup", step, **findings)
            self._examine(findings)

    def _evaluate(self) -> None:
        """The numbers of the last phase on the held-out rows. Only the loss of a lone phase tells better from worse:
        that of two opponents does not."""
        technique, rows = self.state.technique, 0
        totals: defaultdict[str, float] = defaultdict(float)
        with self._averaged(), autocast(self.feed.device, self.config):
            for batch in self.feed.heldout():
                for name, value in technique.loss(batch, technique.phases[-1].name).items():
                    totals[name] += value.item() * len(batch)
                rows += len(batch)
        if not rows:
            return
        means = {name: total / rows for name, total in totals.items()}
        self.heldout = means["loss"]
        self.journal.event("heldout", self.state.step, **means, rows=rows)
        self._examine({name: value for name, value in means.items() if name in SIGNS})
        if len(technique.phases) > 1:
            return
        self.improved = self.watchdog.improves(self.heldout)
        if (count := self.watchdog.overfitting) and count % OVERFIT == 0:
            self.journal.warn("overfitting: the held-out loss rises while the training loss falls")

    def _examine(self, findings: dict[str, float]) -> None:
        for warning in self.watchdog.examine(self.state.step, findings):
            self.journal.warn(warning)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Inside, the technique is in eval mode with the averaged weights, and needs no gradients."""
        self.state.technique.eval()
        try:
            with torch.no_grad(), self.state.ema.applied(), torch.compiler.set_stance("force_eager"):
                yield  # not compiled: a picture at a time has shapes of its own
        finally:
            self.state.technique.train()


def autocast(device: torch.device, config: TrainConfig) -> torch.autocast:
    """The precision in which losses are computed; the weights stay fp32. A processor that cannot multiply in bfloat16
    computes in float32 instead."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16" and fast_bfloat16(device))
