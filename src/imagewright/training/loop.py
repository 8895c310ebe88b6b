"""The training loop that the four techniques share.

A step is a pure function of (weights, seed, step): its data comes from `source.batch(seed, step, ...)`, its noise
from the batch's `Draws`, its dropout from a generator seeded here. So a run that was killed goes on bit for bit
where its last checkpoint left it, with no random state saved. Give the same call again to resume.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from imagewright import __version__
from imagewright.data.batch import Batch
from imagewright.errors import CheckpointError, TrainingError
from imagewright.models.technique import Phase, Technique
from imagewright.training import distributed
from imagewright.training.checkpoint import CheckpointStore, Snapshot, load_snapshot, read_config
from imagewright.training.config import TrainConfig
from imagewright.training.distributed import World
from imagewright.training.ema import Ema
from imagewright.training.journal import Event, Journal
from imagewright.training.optim import build_optimizers, lr_scale
from imagewright.training.watchdog import Watchdog, memory_errors

HELDOUT_ROWS = 512  # at most
Preview = Callable[[Technique, int, Path], None]  # (technique with averaged weights, step, PNG to write)


class Source(Protocol):
    """Where batches come from. Its attribute `manifest_hash` (str), if any, goes into every checkpoint."""

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        """Rows [start, stop) of the `total` of step `step`: a pure function of its arguments."""

    def heldout(self, start: int, stop: int, seed: int) -> Batch | None:
        """Held-out rows [start, stop), always the same; fewer at the end of the set, None beyond it."""


@dataclass(frozen=True)
class TrainReport:
    """How a run ended. `reason`: steps, minutes or interrupted; `seconds` over all resumes; the last losses."""

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
) -> TrainReport:
    """Train `technique` on the device it is on, writing the run folder `out`; go on if that has a checkpoint.

    Raises DivergedError, CheckpointError (another model, no intact checkpoint, disk full) and TrainingError.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = next(technique.parameters()).device
    with (
        memory_errors(config.batch),
        distributed.join(device) as world,
        Journal(out, on_event, silent=world.rank > 0) as journal,
        stop_signals() as stopping,
    ):
        run = _Run(technique, source, config, out, world, journal, preview)
        run.resume()
        return run.go(stopping)


class _Run:
    def __init__(
        self,
        technique: Technique,
        source: Source,
        config: TrainConfig,
        out: Path,
        world: World,
        journal: Journal,
        preview: Preview | None,
    ) -> None:
        if config.batch < world.size:
            raise TrainingError(
                f"A batch of {config.batch} cannot feed {world.size} processes.", "Use a larger batch."
            )
        self.technique, self.source, self.config, self.out = technique, source, config, out
        self.world, self.journal, self.preview = world, journal, preview
        self.optimizers = {p.name: build_optimizers(technique, p.name, config) for p in technique.phases}
        self.trainable = [p for p in technique.parameters() if p.requires_grad]
        self.names: dict[Tensor, str] = {p: name for name, p in technique.named_parameters()}
        self.ema = Ema(technique, config.ema)
        self.store = CheckpointStore(out, config.keep)
        self.watchdog = Watchdog()
        self.start, self.stop = world.rows(config.batch)
        self.share = (self.stop - self.start) / config.batch
        self.step, self.earlier, self.began = 0, 0.0, time.perf_counter()
        self.readings: deque[tuple[int, list[str], Tensor]] = deque()
        self.last: dict[str, float] = {}
        self.heldout: float | None = None

    @property
    def elapsed(self) -> float:
        return self.earlier + time.perf_counter() - self.began

    @property
    def done(self) -> float:
        """The share of the run that is behind, in [0, 1]."""
        by_time = self.elapsed / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(1.0, max(self.step / self.config.steps, by_time))

    def go(self, stopping: threading.Event) -> TrainReport:
        self.technique.train()
        if self.config.compile:
            self._compile()
        saved_at, saved_step = time.perf_counter(), self.step if self.watchdog.last_good else -1
        reason = ""
        while not reason:
            reason = self._reason_to_stop(stopping)
            if reason:
                break
            self._one_step()
            self._read(lag=0 if self.world.device.type == "cpu" else 1)
            self._now_and_then()
            if time.perf_counter() - saved_at >= 60 * self.config.checkpoint_minutes:
                self._save()
                saved_at, saved_step = time.perf_counter(), self.step
        if saved_step != self.step:
            self._save()
        path = Path(self.watchdog.last_good or "")
        self.journal.event("stop", self.step, reason=reason, elapsed=self.elapsed, checkpoint=str(path))
        return TrainReport(self.step, self.elapsed, reason, path, self.last, self.heldout)

    def _one_step(self) -> None:
        config, step = self.config, self.step
        torch.manual_seed(
            ((config.seed * 0x9E3779B1 + step) * 0x2545F4914F6CDD1D + self.world.rank + 1) % 2**63
        )
        batch = to_device(
            self.source.batch(config.seed, step, self.start, self.stop, config.batch), self.world.device
        )
        scale = lr_scale(step, config)
        values: dict[str, Tensor] = {}
        for phase in self.technique.phases:
            if step % phase.interval == 0:
                values |= self._one_phase(phase, batch, scale)
        self.ema.update(step)
        self.step += 1
        stacked = torch.stack([v.detach().float().reshape(()) for v in values.values()])
        self.readings.append((self.step, list(values), self.world.mean(stacked, self.share)))

    def _one_phase(self, phase: Phase, batch: Batch, scale: float) -> dict[str, Tensor]:
        optimizers = self.optimizers[phase.name]
        if len(self.technique.phases) > 1:  # the other phases' parameters need no gradient now
            for p in self.trainable:
                p.requires_grad_(False)
            for p in optimizers.parameters:
                p.requires_grad_(True)
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses = self.technique.loss(batch, phase.name)
        torch.autograd.backward(losses["loss"])
        self.world.average_gradients(optimizers.parameters, self.share)
        norm = torch.nn.utils.clip_grad_norm_(optimizers.parameters, self.config.clip or float("inf"))
        optimizers.step(scale)
        for p in self.trainable:
            p.requires_grad_(True)
        prefix = "" if phase.name == "main" else f"{phase.name}/"
        return {f"{prefix}{name}": value for name, value in {**losses, "grad_norm": norm}.items()}

    def _read(self, lag: int) -> None:
        """Look at the numbers of all steps but the last `lag`, which a GPU may still be computing."""
        while len(self.readings) > lag:
            step, names, stacked = self.readings.popleft()
            self.last = dict(zip(names, stacked.tolist(), strict=True))
            self.watchdog.observe(step, self.last)
            lr = self.config.lr * lr_scale(step - 1, self.config)
            self.journal.step(step, self.config.batch, self.elapsed, self.done, {**self.last, "lr": lr})

    def _now_and_then(self) -> None:
        if self.world.rank > 0:
            return
        if self.config.heldout_every and self.step % self.config.heldout_every == 0:
            self._evaluate()
        if (
            self.preview is not None
            and self.config.sample_every
            and self.step % self.config.sample_every == 0
        ):
            path = self.out / "samples" / f"step-{self.step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            with self._averaged():
                self.preview(self.technique, self.step, path)
            self.journal.picture(self.step, path)

    def _evaluate(self) -> None:
        """The loss of the last phase on the held-out rows with the averaged weights."""
        total, rows = 0.0, 0
        with (
            self._averaged(),
            torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"),
        ):
            while rows < HELDOUT_ROWS:
                batch = self.source.heldout(rows, min(rows + self.config.batch, HELDOUT_ROWS), 0)
                if batch is None or len(batch) == 0:
                    break
                losses = self.technique.loss(
                    to_device(batch, self.world.device), self.technique.phases[-1].name
                )
                total += losses["loss"].item() * len(batch)
                rows += len(batch)
        if rows:
            self.heldout = total / rows
            self.journal.event("heldout", self.step, loss=self.heldout, rows=rows)
            if self.watchdog.overfitting(self.heldout):
                self.journal.event(
                    "warning",
                    self.step,
                    message="the held-out loss rises while the training loss falls: overfitting",
                )

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        self.technique.eval()
        try:
            with torch.no_grad(), self.ema.applied():
                yield
        finally:
            self.technique.train()

    def _reason_to_stop(self, stopping: threading.Event) -> str:
        if self.step >= self.config.steps:
            return "steps"
        late = self.config.minutes is not None and self.elapsed >= 60 * self.config.minutes
        if self.world.any(stopping.is_set()):
            return "interrupted"
        return "minutes" if self.world.any(late) else ""

    def _compile(self) -> None:
        compile_ = getattr(self.technique, "compile_", None)
        if compile_ is None:
            self.journal.event(
                "warning", self.step, message="this technique cannot be compiled; going on without"
            )
        else:
            compile_()

    def _save(self) -> None:
        self._read(lag=0)
        optimizer = {
            f"{phase}|{name}": tensor
            for phase, optimizers in self.optimizers.items()
            for name, tensor in optimizers.state_tensors(self.names).items()
        }
        everything = [*self.technique.state_dict().values(), *self.ema.tensors.values(), *optimizer.values()]
        self.watchdog.check_tensors(self.step, everything)
        path = self.store.folder / f"step-{self.step:08d}"
        if self.world.rank == 0:
            state = {"elapsed": self.elapsed, "watchdog": self.watchdog.state()}
            config = describe(self.technique, self.source, self.config)
            self.store.save(Snapshot(self.step, config, self.technique, self.ema.tensors, optimizer, state))
            self.journal.event("checkpoint", self.step, path=str(path))
        self.watchdog.last_good = str(path)

    def resume(self) -> None:
        """Go on from the newest intact checkpoint, if there is one; then make all processes alike."""
        path, faults = self.store.newest()
        if path is not None:
            self._check_same(read_config(path))
            ema, optimizer, state = load_snapshot(path, self.technique)
            self.ema.load(ema)
            for phase, optimizers in self.optimizers.items():
                own = {
                    k.removeprefix(f"{phase}|"): v for k, v in optimizer.items() if k.startswith(f"{phase}|")
                }
                optimizers.load_tensors(own, self.names)
            self.watchdog.load(state["watchdog"])
            self.watchdog.last_good = str(path)
            self.step, self.earlier = state["step"], state["elapsed"]
        self.world.barrier()
        if self.world.rank == 0 and path is not None:
            self.store.set_aside(path)
            self.store.publish(path)
        self.world.broadcast([*self.technique.state_dict().values(), *self.ema.tensors.values()])
        for fault in faults:
            self.journal.event("warning", self.step, message=f"damaged checkpoint set aside: {fault}")
        self.journal.event("start", self.step, **describe(self.technique, self.source, self.config))

    def _check_same(self, saved: Mapping[str, Any]) -> None:
        """Another model or optimiser cannot go on from `saved`; other dials may change, and are said."""
        now = describe(self.technique, self.source, self.config)
        wrong = differences(saved["model"], now["model"], "model.")
        wrong += [
            d for d in differences(saved["train"], now["train"], "train.") if d.startswith("train.muon:")
        ]
        if wrong:
            raise CheckpointError(
                f"{self.out} holds another run: {'; '.join(wrong)}.",
                "Use the same model options or another folder.",
            )
        changed = differences(saved["train"], now["train"], "train.")
        changed += differences({"data": saved["manifest_hash"]}, {"data": now["manifest_hash"]})
        if changed:
            self.journal.event(
                "warning", saved["step"], message=f"going on with changes: {'; '.join(changed)}"
            )


def describe(technique: Technique, source: Source, config: TrainConfig) -> dict[str, Any]:
    """What `config.json` holds, as plain JSON values."""
    model = {"type": type(technique.config).__name__, **dataclasses.asdict(technique.config)}
    found = {
        "format": 1,
        "model": model,
        "train": config.to_dict(),
        "manifest_hash": getattr(source, "manifest_hash", None),
        "software": {
            "imagewright": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for each key whose values differ."""
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return [f"{prefix}{k}: {old.get(k)} -> {new.get(k)}" for k in keys]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` with its tensors on `device`; its draws stay on the CPU."""
    if device.type == "cpu":
        return batch

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(
                value, **{f.name: move(getattr(value, f.name)) for f in dataclasses.fields(value)}
            )
        return value

    return dataclasses.replace(
        batch, **{f.name: move(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
    )


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second acts at once, as usual."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        stopping.set()
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield stopping
    finally:
        restore()
