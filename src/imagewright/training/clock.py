"""How far a run is, in steps and in its budget of minutes."""

from __future__ import annotations

import time

from imagewright.training.config import TrainConfig

FORECAST = 50  # steps after which the end of the budget is foretold
SPARE = 0.95  # of the minutes left, which the steps of a cooldown are to take


class Clock:
    """Counts the seconds of a run over all resumes; `earlier` are those before this one."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.earlier, self._began = 0.0, time.perf_counter()
        self._saved = self._began
        self._taken, self._mark = 0, (self._began, 0)

    @property
    def here(self) -> float:
        """Seconds since this process took the run up."""
        return time.perf_counter() - self._began

    @property
    def elapsed(self) -> float:
        """Seconds over all resumes."""
        return self.earlier + self.here

    def is_over(self) -> bool:
        """Whether the minutes are used up."""
        return self.config.minutes is not None and self.elapsed >= 60 * self.config.minutes

    def done(self, step: int) -> float:
        """The share of the run that is behind, in [0, 1]."""
        by_time = self.elapsed / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(1.0, max(step / self.config.steps, by_time))

    def wants_checkpoint(self) -> bool:
        """Whether the last one (or the start) is `checkpoint_minutes` ago; if so, counts anew from now."""
        now = time.perf_counter()
        wanted = now - self._saved >= 60 * self.config.checkpoint_minutes
        if wanted:
            self._saved = now
        return wanted

    def end(self, step: int) -> int:
        """After a step: the one at which a cooldown ends that begins now (see `fit`); 0 if it does not begin yet."""
        config, now = self.config, time.perf_counter()
        self._taken += 1
        if self._taken == FORECAST:  # the first ones, in which blocks are compiled, tell nothing
            self._mark = now, step
        if config.minutes is None or self._taken < 2 * FORECAST:
            return 0
        left = 60 * config.minutes - self.elapsed
        if left > 60 * config.minutes * config.cooldown and step < (1 - config.cooldown) * config.steps:
            return 0
        pace = (now - self._mark[0]) / (step - self._mark[1])  # seconds a step
        return min(config.steps, step + max(1, int(SPARE * left / pace)))

    def forecast(self, first: int, step: int) -> str | None:
        """FORECAST steps after `first`: a warning, if the minutes will end before the schedule does."""
        config = self.config
        if step != first + FORECAST or config.minutes is None or config.schedule == "constant" or config.fit:
            return None
        last = step + int((60 * config.minutes - self.elapsed) / (self.here / FORECAST))
        if last >= config.steps:
            return None
        return f"the minutes end near step {last} of {config.steps}, before the schedule does"
