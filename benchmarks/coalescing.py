"""Several requests at once through the embedded engine, against one after the other on all cores.

    python benchmarks/coalescing.py [--models stickers-diffusion ...] [--concurrent 1 8 32] [--rounds 5]

Prints pictures a second, and the cores' time a picture takes. The two ways take turns, round by round, and the best
round of each counts, because a shared machine only ever makes a round slower. The pictures made together are compared
with those that each request gets alone: they must be the same, byte for byte.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import imagewright.blas  # noqa: F401 - before numpy, as on the command line
from imagewright.engines.embedded import EmbeddedEngine, ExportedModel
from imagewright.engines.engine import ModelInfo
from imagewright.engines.lanes import Seats, all_of, cores
from imagewright.request import ImageRequest
from imagewright.watch import Watch


class OneByOne(EmbeddedEngine):
    """One picture at a time, each on all cores."""

    def __init__(self) -> None:
        super().__init__(lanes=1)
        self.concurrency = 1
        self.models_open: dict[str, ExportedModel] = {}

    def load(self, model: ModelInfo) -> ExportedModel:
        if model.name not in self.models_open:
            self.models_open[model.name] = ExportedModel(super().load(model).folder, Seats(1), cores())
        return self.models_open[model.name]


@dataclass
class Way:
    """One way to make pictures, with the seconds of each round and the cores' seconds."""

    engine: EmbeddedEngine
    seconds: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)

    def round(self, requests: list[ImageRequest]) -> list[bytes]:
        """The pictures' bytes."""
        start, before = time.perf_counter(), _work()
        made = all_of(self.engine.generate_many(requests, [Watch()] * len(requests)))
        self.seconds.append(time.perf_counter() - start)
        self.work.append(_work() - before)
        return [image.tobytes() for result in made for image in result]


def _work() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(requests: list[ImageRequest], rounds: int, label: str) -> None:
    """Print one line for each way, and how much faster the second is."""
    ways = {"one by one": Way(OneByOne()), "together": Way(EmbeddedEngine())}
    same = Way(EmbeddedEngine(lanes=1)).round(requests) == ways["together"].round(requests)
    ways["one by one"].round(requests)
    for way in ways.values():  # in which models were loaded
        way.seconds, way.work = [], []
    for _ in range(rounds):
        for way in ways.values():
            way.round(requests)
    count = sum(request.n for request in requests)
    first, second = (count / min(way.seconds) for way in ways.values())
    work = [1000 * median(way.work) / count for way in ways.values()]
    print(
        f"{label}: {first:6.1f} -> {second:6.1f} pictures/s ({second / first:.2f}x), "
        f"{work[0]:.0f} -> {work[1]:.0f} ms of core a picture, {'identical' if same else 'DIFFERENT'} pixels, "
        f"{_memory()} MB",
        flush=True,
    )


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[model.name for model in EmbeddedEngine().models()])
    parser.add_argument("--concurrent", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{cores()} cores, load {os.getloadavg()[0]:.1f}")
    of: Callable[[str, int, int], ImageRequest] = lambda model, seed, n: ImageRequest(  # noqa: E731
        prompt=f"a red fox, number {seed}", model=model, seed=seed, n=n
    )
    for model in arguments.models:
        for count in arguments.concurrent:
            measure([of(model, seed, 1) for seed in range(count)], arguments.rounds, f"{model}, {count:2d} requests")
        measure([of(model, 1, 4)], arguments.rounds, f"{model}, one of 4  ")


if __name__ == "__main__":
    main()
