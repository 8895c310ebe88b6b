"""Draw several pictures, let judges score them, and keep the best: a bounded number of tries, each one told.

A try uses the next seed. The record of the picture that is kept has its own seed, so it can be made again alone, its
scores, and what was rejected and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from typing import Any, Protocol

from PIL import Image

from imagewright.errors import ModelNotFoundError, RequestError, UnsupportedError
from imagewright.refine import judge, realism
from imagewright.request import MAX_SEED, Adjustment, ImageRequest, ImageResult, joined
from imagewright.watch import Watch

TRIES = 8  # where a bar is set and no number of tries

Draw = Callable[[ImageRequest, Watch], ImageResult]


class Judge(Protocol):
    """Gives a picture a score in [0, 1]; `name` is what the score is called (match, realism)."""

    @property
    def name(self) -> str:
        """What the score is called."""

    def score(self, picture: Image.Image, prompt: str) -> float:
        """How good the picture is, in [0, 1]."""


Judges = Callable[[], Sequence[Judge]]  # called when they are needed, because loading them takes time


class Match:
    """The probability that a picture fits its prompt, from the judges that ship."""

    name = "match"

    def __init__(self, judges: judge.Judges) -> None:
        self.judges = judges

    def score(self, picture: Image.Image, prompt: str) -> float:
        """In [0, 1]."""
        return float(self.judges.match([picture], [prompt])[0])


@cache
def shipped_judges() -> tuple[Judge, ...]:
    """The judges that come with the package, of realism only where a GAN does. Raises ModelNotFoundError,
    ModelCorruptError."""
    match = Match(judge.Judges())
    try:
        return match, realism.Realism()
    except ModelNotFoundError:
        return (match,)


@dataclass(frozen=True)
class Try:
    """One picture that was drawn: its scores by judge, and the judges whose bar it missed."""

    result: ImageResult
    scores: Mapping[str, float]
    missed: Mapping[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[bool, float]:
        """What is compared: whether it reaches every bar, then the product of its scores."""
        return not self.missed, prod(self.scores.values())

    @property
    def seed(self) -> int | None:
        """The seed that makes the picture alone."""
        seed: int | None = self.result.records[0]["seed"]
        return seed

    def told(self) -> dict[str, Any]:
        """For the record, if another was chosen: seed, scores and the reason."""
        misses = [f"{name} {self.scores[name]:.2f} is below {bar:g}" for name, bar in self.missed.items()]
        scores = {name: round(score, 4) for name, score in self.scores.items()}
        return {"seed": self.seed, "scores": scores, "reason": ", ".join(misses) or "another scores higher"}


def most_tries(request: ImageRequest) -> int:
    """How often each picture of `request` may be drawn."""
    bars = request.min_match is not None or request.min_realism is not None
    return max(request.best_of, request.max_tries or TRIES) if bars else request.best_of


def tries(record: Mapping[str, Any]) -> int:
    """How often the picture of a record was drawn until it was chosen."""
    steps = record.get("refine") or ()
    return next((int(step["tried"]) for step in steps if step["step"] == "choose"), 1)


def choose(draw: Draw, request: ImageRequest, judges: Judges, watch: Watch = Watch()) -> ImageResult:
    """The pictures of `request`, each the best of `best_of`; drawn on, up to `max_tries`, until one reaches the bars
    (`min_match`, `min_realism`). Without any of these: simply drawn.

    If none reaches them the best is returned, with an Adjustment that says so. Raises UnsupportedError where no judge
    can tell what a bar is about, RequestError for a trace, which follows one picture only.
    """
    asked = {"match": request.min_match, "realism": request.min_realism}
    bars = {name: bar for name, bar in asked.items() if bar is not None}
    plain = request.best_of == 1 and not bars
    if watch.tracing and (request.n > 1 or not plain):
        raise RequestError("A trace follows one picture.", "Make them first, then trace the one you like by its seed.")
    if plain:
        return draw(request, watch)
    panel = judges()
    missing = sorted(set(bars) - {one.name for one in panel})
    if missing or not panel:
        raise UnsupportedError(f"No judge of {missing[0] if missing else 'pictures'} is at hand.", "Do without.")
    panel = [one for one in panel if one is panel[0] or one.name in bars]  # the first ranks, others where asked
    most = most_tries(request)
    chosen: list[ImageResult] = []
    for index in range(request.n):
        progress = _progress(watch, index * most, request.n * most)
        attempts = _attempts(draw, replace(request, n=1), most, progress)
        tried: list[Try] = []
        for result in attempts:
            tried.append(_judged(result, request.prompt, panel, bars))
            if len(tried) >= request.best_of and not all(one.missed for one in tried):
                break
        chosen.append(_best(tried))
        request = replace(request, seed=_next(tried[-1].seed))
    return joined(chosen)


def _attempts(draw: Draw, request: ImageRequest, tries: int, progress: Callable[[int], Watch]) -> Iterator[ImageResult]:
    for index in range(tries):
        result = draw(request, progress(index))
        yield result
        request = replace(request, seed=_next(result.records[0]["seed"]))


def _next(seed: int | None) -> int | None:
    return None if seed is None else (seed + 1) % MAX_SEED


def _progress(watch: Watch, before: int, total: int) -> Callable[[int], Watch]:
    """A watch for each try, that tells `watch` of it as a part of the whole."""

    def of(index: int) -> Watch:
        def told(done: int, steps: int) -> None:
            watch.told((before + index) * steps + done, total * steps)

        return Watch(told, say=watch.say, stop=watch.stop)

    return of


def _judged(result: ImageResult, prompt: str, panel: Sequence[Judge], bars: Mapping[str, float]) -> Try:
    scores = {one.name: one.score(result[0], prompt) for one in panel}
    return Try(result, scores, {name: bar for name, bar in bars.items() if scores[name] < bar})


def _best(tried: Sequence[Try]) -> ImageResult:
    """The result of the best try; its record says what the choice was made from."""
    best = max(tried, key=lambda one: one.rank)
    step = {
        "step": "choose",
        "tried": len(tried),
        "scores": best.told()["scores"],
        "rejected": [one.told() for one in tried if one is not best],
    }
    reason = f"none of {len(tried)} tries reached it; seed {best.seed} is the best of them"
    unmet = [Adjustment(f"min_{name}", bar, round(best.scores[name], 4), reason) for name, bar in best.missed.items()]
    made = best.result
    return replace(
        made,
        records=({**made.records[0], "refine": [step]},),
        adjustments=(*made.adjustments, *unmet),
        seconds=sum(one.result.seconds for one in tried),
    )
