"""The training loop that the four techniques share.

A step is a pure function of (weights, seed, step): its data comes from `source.batch(seed, step, ...)`, its
noise from the batch's `Draws`, its dropout from a generator seeded here. So a run that was killed goes on bit
for bit where its last checkpoint left it, with no random state saved. Give the same call again to resume.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from imagewright.data.batch import Batch
from imagewright.errors import TrainingError
from imagewright.models.technique import Phase, Technique
from imagewright.training import distributed
from imagewright.training.accelerator import allow_many_graphs, later, make_ready
from imagewright.training.checkpoint import CheckpointStore, read_config
from imagewright.training.clock import Clock
from imagewright.training.config import TrainConfig
from imagewright.training.distributed import World
from imagewright.training.feed import Feed, Source
from imagewright.training.interrupt import stop_signals
from imagewright.training.journal import Event, Journal
from imagewright.training.observe import Checkup, Observer, Preview, autocast
from imagewright.training.optim import lr_scale
from imagewright.training.state import TrainState, check_same, describe
from imagewright.training.watchdog import Watchdog, memory_errors

__all__ = ["Preview", "Source", "TrainReport", "train"]


@dataclass(frozen=True)
class TrainReport:
    """How a run ended. `reason`: steps, minutes, overfitting, interrupted; `seconds` over all resumes; last losses."""

    step: int
    seconds: float
    reason: str
    checkpoint: Path
    losses: Mapping[str, float]
    heldout: float | None


def train(
    technique: Technique,
    source: Source,
    config: TrainConfig,
    out: Path,
    *,
    on_event: Callable[[Event], None] | None = None,
    preview: Preview | None = None,
    checkup: Checkup | None = None,
    facts: Mapping[str, Any] = {},
) -> TrainReport:
    """Train `technique` on the device it is on, writing the run folder `out`; go on from its checkpoint.

    `preview` draws a sheet every `sample_every` steps, and `checkup` looks for what the watchdog should know.
    `facts`: further JSON values for config.json, such as `condition` and `first_stage`.
    Raises DivergedError, CheckpointError (another model, no intact checkpoint, disk full), TrainingError.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = next(technique.parameters()).device
    make_ready(device)
    with (
        distributed.join(device) as world,
        _alone(out, world),
        Journal(out, on_event, silent=world.rank > 0) as journal,
        Feed(source, config.seed, world.rows(config.batch), config.batch, device) as feed,
        memory_errors(config.batch),
        stop_signals() as stopping,
    ):
        run = _Run(technique, feed, config, out, world, journal, preview, checkup, facts)
        run.resume()
        return run.go(stopping)


class _Run:
    def __init__(
        self,
        technique: Technique,
        feed: Feed,
        config: TrainConfig,
        out: Path,
        world: World,
        journal: Journal,
        preview: Preview | None,
        checkup: Checkup | None,
        facts: Mapping[str, Any],
    ) -> None:
        if config.batch < world.size:
            raise TrainingError(f"A batch of {config.batch} cannot feed {world.size} processes.", "Raise it.")
        self.technique, self.feed, self.config, self.out = technique, feed, config, out
        self.world, self.journal = world, journal
        self.clock = Clock(config)
        self.state = TrainState(technique, config)
        self.store = CheckpointStore(out, config.keep)
        self.watchdog = Watchdog(family=technique.family)
        samples = out / "samples"
        self.observer = Observer(self.state, feed, config, journal, self.watchdog, samples, preview, checkup)
        data = feed.source
        origin = {"manifest_hash": getattr(data, "manifest_hash", None), "styles": getattr(data, "styles", {})}
        self.description = describe(technique, config, {**origin, **facts})
        self.share = (feed.rows[1] - feed.rows[0]) / config.batch
        self.lag = 0 if feed.device.type == "cpu" else 1
        self.readings: deque[tuple[int, list[str], Callable[[], list[float]]]] = deque()
        self.last: dict[str, float] = {}
        self.cooling: dict[str, Any] = {}

    def go(self, stopping: threading.Event) -> TrainReport:
        """Train until the steps or the minutes are over, or someone asks to stop."""
        self.technique.train()
        if self.config.compile:
            self._compile()
        first, unsaved = self.state.step, self.watchdog.last_good is None
        while not (reason := self._reason_to_stop(stopping)):
            self._one_step()
            self._read(self.lag)
            if self.config.fit:
                self._fit()
            unsaved = True
            if self.world.rank == 0:
                self.observer.look()
            if warning := self.clock.forecast(first, self.state.step):
                self.journal.warn(warning)
            if self.clock.wants_checkpoint() or self.observer.improved:
                self._save()
                unsaved = False
        if unsaved:
            self._save()
        if reason == "overfitting":
            self.journal.warn(f"stopped, {self.watchdog.overfit}. {self.watchdog.places()}")
        path, seconds = self.store.path(self.state.step), self.clock.elapsed
        self.journal.event("stop", self.state.step, reason=reason, elapsed=seconds, checkpoint=str(path))
        return TrainReport(self.state.step, seconds, reason, path, self.last, self.observer.heldout)

    def _one_step(self) -> None:
        step = self.state.step
        seed = (self.config.seed * 0x9E3779B1 + step) * 0x2545F4914F6CDD1D + self.world.rank + 1
        torch.manual_seed(seed % 2**63)
        batch = self.feed.batch(step)
        values: dict[str, Tensor] = {}
        for phase in self.technique.phases:
            if step % phase.interval == 0:
                values |= self._one_phase(phase, batch, lr_scale(step, self.config))
        self.state.ema.update(step)
        self.state.step += 1
        stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        self.readings.append((self.state.step, list(values), later(self.world.mean(stacked, self.share))))

    def _one_phase(self, phase: Phase, batch: Batch, scale: float) -> dict[str, Tensor]:
        optimizers = self.state.optimizers[phase.name]
        with self.state.only(optimizers.parameters):
            with autocast(self.feed.device, self.config):
                losses = self.technique.loss(batch, phase.name)
            torch.autograd.backward(losses["loss"])
        self.world.average_gradients(optimizers.parameters, self.share)
        norm = torch.nn.utils.clip_grad_norm_(optimizers.parameters, self.config.clip or float("inf"))
        optimizers.step(scale)
        prefix = "" if phase.name == "main" else f"{phase.name}/"
        return {f"{prefix}{name}": value for name, value in {**losses, "grad_norm": norm}.items()}

    def _read(self, lag: int) -> None:
        """Look at the numbers of all steps but the last `lag`, which a GPU may still be computing."""
        while len(self.readings) > lag:
            step, names, numbers = self.readings.popleft()
            self.last = dict(zip(names, numbers(), strict=True))
            self.watchdog.observe(step, self.last)
            lr = self.config.lr * lr_scale(step - 1, self.config)
            values = {**self.last, "lr": lr, "data_seconds": self.feed.waited}
            self.journal.step(step, self.config.batch, self.clock.elapsed, self.clock.done(step), values)

    def _fit(self) -> None:
        """Begin the cooldown when the minutes ask for it, in all processes by the clock of the first."""
        step = self.state.step
        if end := self.world.first(self.clock.end(step)):
            self._cool({"steps": end, "cooldown": (end - step) / end, "fit": False})
            self.journal.event("cooldown", step, until=end)

    def _cool(self, schedule: Mapping[str, Any]) -> None:
        self.cooling = dict(schedule)
        self.config = self.clock.config = replace(self.config, **schedule)

    def _save(self) -> None:
        self._read(lag=0)
        self.watchdog.check_tensors(self.state.step, self.state.tensors())
        path = self.store.path(self.state.step)
        if self.watchdog.well:
            self.watchdog.last_good, self.store.spared = str(path), {path.name}
        if self.world.rank > 0:
            return
        extra = {"elapsed": self.clock.elapsed, "watchdog": self.watchdog.state(), "cooling": self.cooling}
        self.store.save(self.state.snapshot(self.description, extra))
        self.journal.event("checkpoint", self.state.step, path=str(path))
        if self.observer.improved:
            self.store.mark_best(path)
            self.watchdog.best = str(path)

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one; then make all processes alike."""
        path, faults = self.store.newest()
        changed = []
        if path is not None:
            changed = check_same(read_config(path), self.description, self.out)
            extra = self.state.restore(path)
            self.watchdog.load(extra["watchdog"], self.store.folder)
            self.watchdog.last_good = self.watchdog.last_good or str(path)
            self.store.spared = {Path(self.watchdog.last_good).name}
            self.watchdog.best = str(best) if (best := self.store.best()) else None
            self.clock.earlier = extra["elapsed"]
            if cooling := extra.get("cooling"):
                self._cool(cooling)
        self.world.check_same(self.state.step)
        if self.world.rank == 0:
            self.store.tidy(path)
        self.world.broadcast([*self.technique.state_dict().values(), *self.state.ema.tensors.values()])
        self.journal.event("start", self.state.step, **self.description)
        for fault in faults:
            self.journal.warn(f"damaged checkpoint set aside: {fault}")
        if changed:
            self.journal.event("changed", self.state.step, message="; ".join(changed))

    def _reason_to_stop(self, stopping: threading.Event) -> str:
        if self.state.step >= self.config.steps:
            return "steps"
        if self.world.any(stopping.is_set()):
            return "interrupted"
        if self.world.any(bool(self.watchdog.overfit)):
            return "overfitting"
        return "minutes" if self.world.any(self.clock.is_over()) else ""

    def _compile(self) -> None:
        compile_ = getattr(self.technique, "compile_", None)
        if compile_ is None:
            self.journal.warn("this technique cannot be compiled; going on without")
        else:
            allow_many_graphs()
            compile_()


@contextmanager
def _alone(out: Path, world: World) -> Iterator[None]:
    """Keep other runs out of the folder `out`. Raises TrainingError if one is there."""
    lock = FileLock(out / ".lock", timeout=0)
    try:
        if world.rank == 0:
            lock.acquire()
        yield
    except Timeout as error:
        raise TrainingError(f"Another process is training in {out}.", "Wait for it or stop it.") from error
    finally:
        lock.release()
