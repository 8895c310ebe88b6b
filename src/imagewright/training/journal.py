"""What a run says while it goes: JSON lines in `log.jsonl`, a progress bar, TensorBoard if installed, events.

Every line of the log has `event` and `step`. Numbers are means over the steps since the last line.
"""

from __future__ import annotations

import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from imagewright.errors import ImagewrightError

Event = dict[str, Any]
LOG_EVERY = 10  # steps
SAY_EVERY = 30.0  # seconds, where there is no terminal to draw a bar on


class Journal:
    """Writes the log of the run folder `out`; a silent one (other ranks) writes nothing."""

    def __init__(self, out: Path, on_event: Callable[[Event], None] | None, *, silent: bool = False) -> None:
        self.silent, self.on_event = silent, on_event
        self.path = out / "log.jsonl"
        self._sums: defaultdict[str, list[float]] = defaultdict(list)
        self._pictures, self._since, self._said = 0, time.perf_counter(), time.perf_counter()
        self._latest = 0
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
        )
        self._task = self._bar.add_task("starting", total=1.0)
        self._board: Any = None

    def __enter__(self) -> Journal:
        if not self.silent:
            _mend(self.path)
            self._file = self.path.open("a", encoding="utf-8")
            self._board = _tensorboard(self.path.parent / "tensorboard")
            if self._console.is_terminal:
                self._bar.start()
            self._since = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.silent:
            return
        if isinstance(error, ImagewrightError):
            self.event("error", self._latest, message=str(error))
        self._bar.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def event(self, name: str, step: int, **values: Any) -> None:
        """Write one line, tell `on_event`, and put numbers on the board."""
        if self.silent:
            return
        self._latest = step
        line = {"event": name, "step": step, **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._board is not None:
            for key, value in values.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{name}/{key}", value, step)
        if "message" in values:
            self._console.print(f"{name}: {values['message']}", style="yellow", highlight=False, soft_wrap=True)
        if self.on_event is not None:
            self.on_event(line)

    def warn(self, message: str) -> None:
        """Say that something may be wrong."""
        self.event("warning", self._latest, message=message)

    def picture(self, step: int, path: Path) -> None:
        """Say that the sample grid `path` was made."""
        self.event("sample", step, path=str(path))
        if self._board is not None and path.is_file():
            import numpy as np
            from PIL import Image

            with Image.open(path, formats=("PNG",)) as image:
                self._board.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def step(self, step: int, pictures: int, elapsed: float, done: float, values: Mapping[str, float]) -> None:
        """Take in the numbers of one step; `done` is the share of the run behind it, in [0, 1]."""
        if self.silent:
            return
        self._pictures += pictures
        for key, value in values.items():
            self._sums[key].append(value)
        if step % LOG_EVERY and step > LOG_EVERY:
            return
        now = time.perf_counter()
        rate = self._pictures / max(1e-9, now - self._since)
        means = {key: sum(v) / len(v) for key, v in self._sums.items()}
        self.event("step", step, **means, pictures_per_second=round(rate, 2), elapsed=round(elapsed, 3))
        self._sums.clear()
        self._pictures, self._since = 0, now
        losses = "  ".join(f"{k} {v:.4f}" for k, v in means.items() if k.endswith("loss"))
        text = f"step {step}  {losses}  {rate:.0f} pictures/s"
        self._bar.update(self._task, completed=done, description=text)
        if not self._console.is_terminal and now - self._said > SAY_EVERY:
            left = elapsed / max(done, 1e-9) * (1 - done)
            self._console.print(f"{text}  {done:.0%}  {left / 60:.0f} min left", highlight=False, soft_wrap=True)
            self._said = now


def read_log(path: Path) -> Iterator[Event]:
    """The events of a `log.jsonl`, oldest first."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _mend(path: Path) -> None:
    """Cut off a last line that a crash left half written."""
    if path.exists():
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            path.write_bytes(whole)


def _tensorboard(folder: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
        return SummaryWriter(str(folder))
    except ImportError:
        return None
