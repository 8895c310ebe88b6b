"""What it costs to decode uploads in other processes, and what hostile ones do.

python benchmarks/uploads.py cost              ms to decode in a process and in place, and to start one
python benchmarks/uploads.py mutants [N]       N changed pictures: crashes, slowest, memory of the decoders
python benchmarks/uploads.py bombs             the corpus of the test: slowest refusal, memory
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests" / "server"))

from test_server_uploads import bombs, mutants, peak, tried

from imagewright.pictures import encode
from imagewright.server import decoder as decoding
from imagewright.server.uploads import Decoder

SIDES = (64, 512, 1024, 2048)
REPEATS = 30


def cost() -> None:
    """Least and median times (ms); the least is what the work takes on an idle machine."""
    decoder = Decoder(1)
    for side in SIDES:
        for kind in ("png", "jpeg", "webp"):
            data = encode(photo_like(side), kind, 90)
            first = times(partial(decoder.decode, data), 1)[0]
            apart = times(partial(decoder.decode, data), REPEATS)
            here = times(partial(decoding.decoded, data, False, 4096), REPEATS)
            told = f"{side:5} {kind:4} {len(data) / 1000:8.0f} kB  first {first:6.0f}"
            for name, found in (("apart", apart), ("in place", here)):
                told += f"  {name} {found[0]:7.2f} {statistics.median(found):7.2f}"
            print(told)
    decoder.close()


def hostile(corpus: list[bytes]) -> None:
    """Each through one of two processes."""
    decoder = Decoder(2, recycle=len(corpus))  # all the same processes, for their peak
    with ThreadPoolExecutor(2) as threads:
        start = time.perf_counter()
        results = list(threads.map(partial(tried, decoder), corpus))
        seconds = time.perf_counter() - start
    outcomes = Counter("decoded" if whole else "refused" for whole, _ in results)
    slowest = max(seconds for _, seconds in results)
    print(f"{len(corpus):,} uploads in {seconds:.1f} s: {dict(outcomes)}, slowest {slowest * 1000:.0f} ms,")
    print(f"the decoders' peak memory {peak(decoder) / 2**20:.0f} MiB, ended {decoder.ended} of their processes")
    decoder.close()


def photo_like(side: int) -> Image.Image:
    """Waves and noise, RGB."""
    noise = np.random.default_rng(0).normal(0, 4, (side, side, 3))
    y, x = np.mgrid[:side, :side] / side
    waves = np.stack([128 + 100 * np.sin(9 * x + 5 * y), 255 * x, 255 * y], -1)
    return Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8))


def times(call: Callable[[], object], count: int) -> list[float]:
    """Milliseconds, the least first."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1000)
    return sorted(found)


if __name__ == "__main__":
    if sys.argv[1] == "cost":
        cost()
    elif sys.argv[1] == "bombs":
        hostile(list(bombs().values()))
    else:
        hostile(list(mutants(int(sys.argv[2]) if len(sys.argv) > 2 else 20_000)))
