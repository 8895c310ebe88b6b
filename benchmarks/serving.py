"""What a server on this machine does: pictures a second, with and without drawing several at once; and overload.

python benchmarks/serving.py pictures [SECONDS] [STEPS ...]   1, 8 and 32 clients of the model that ships
python benchmarks/serving.py requests [SECONDS]               the same with an engine that draws in no time
python benchmarks/serving.py overload [SECONDS]               ten times as many requests as can be done

Each server is a process of its own; its cores' time is what the system counted for it.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "server"))

from processes import SLOW, Process, client

CLIENTS = (1, 8, 32)
GENERATE = "/v1/images/generations"


def pictures(seconds: float, steps: list[int | None]) -> None:
    """Pictures a second, in the default number of steps and in four."""
    for count in steps:
        for way in ("--coalesce", "--one-by-one"):
            with serving(way) as server:
                body = {"prompt": "a red fox", **({"num_inference_steps": count} if count else {})}
                for clients in CLIENTS:
                    told = load(server, body, clients, seconds)
                    print(f"{count or 'default':>8} steps  {way:13} {clients:3} clients  {told}")


def requests(seconds: float) -> None:
    """Requests a second, and what one costs, where drawing costs nothing."""
    with serving("-m", SLOW) as server:
        for clients in CLIENTS:
            body = {"prompt": "a red fox", "num_inference_steps": 1}
            print(f"{clients:3} clients  {load(server, body, clients, seconds)}")


def overload(seconds: float) -> None:
    """Ten requests offered for each that can be done; how long /health takes meanwhile, and what memory does."""
    with serving("-m", SLOW, "--slots", "1") as server:
        load(server, {"prompt": "a", "num_inference_steps": 1}, 8, 3)
        before = memory(server)
        health: list[float] = []
        ended = threading.Event()

        def look() -> None:
            with client(server) as api:
                while not ended.wait(0.05):
                    begun = time.perf_counter()
                    assert api.get("/health").status_code == 200
                    health.append(time.perf_counter() - begun)

        looking = threading.Thread(target=look)
        looking.start()
        body = {"prompt": "sleep=0.01", "num_inference_steps": 10}  # ten a second
        codes: Counter[int] = Counter()
        waits: list[int] = []
        told = offered(server, body, 100, seconds, codes, waits)
        ended.set()
        looking.join()
        slow = sorted(health)
        print(f"offered {told / seconds:.0f} a second for {seconds:.0f} s: {dict(codes)}, Retry-After {set(waits)}")
        print(
            f"/health: median {statistics.median(slow) * 1000:.1f} ms, p99 {slow[int(len(slow) * 0.99)] * 1000:.1f} ms"
            f" of {len(slow)}; memory {before:.1f} -> {memory(server):.1f} MB"
        )


@contextmanager
def serving(*options: str) -> Iterator[Process]:
    """A server with data of its own."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "tests" / "server" / "slow_engine")
    with tempfile.TemporaryDirectory() as folder:
        process = Process(Path(folder) / "log", "serve", "--port", "0", "--folder", folder, *options)
        try:
            yield process
        finally:
            process.tell()
            process.ended()


def load(server: Process, body: dict[str, Any], clients: int, seconds: float) -> str:
    """What `clients` that ask again as soon as they have their answer get in `seconds`."""
    took: list[float] = []
    until = time.perf_counter() + seconds

    def ask(number: int) -> None:
        with client(server) as api:
            seed = number * 100_000
            while time.perf_counter() < until:
                seed, begun = seed + 1, time.perf_counter()
                answer = api.post(GENERATE, json={**body, "seed": seed, "response_format": "b64_json"})
                assert answer.status_code == 200, answer.text
                took.append(time.perf_counter() - begun)

    with client(server) as api:  # models are loaded, keys are made
        api.post(GENERATE, json=body)
    used, begun = work(server), time.perf_counter()
    together(ask, clients)
    elapsed, used = time.perf_counter() - begun, work(server) - used
    slow = sorted(took)
    return (
        f"{len(took) / elapsed:7.2f} a second, median {statistics.median(slow) * 1000:6.0f} ms, slowest"
        f" {slow[-1] * 1000:6.0f} ms, {used / len(took) * 1000:6.1f} ms of the cores each"
    )


def offered(
    server: Process, body: dict[str, Any], rate: float, seconds: float, codes: Counter[int], waits: list[int]
) -> int:
    """Send `rate` requests a second, whatever becomes of them."""
    begun, sent, lock = time.perf_counter(), 0, threading.Lock()

    def ask(number: int) -> None:
        nonlocal sent
        with client(server) as api:
            while True:
                with lock:
                    due, sent = begun + sent / rate, sent + 1
                if due > begun + seconds:
                    return
                time.sleep(max(0.0, due - time.perf_counter()))
                answer = api.post(GENERATE, json=body)
                codes[answer.status_code] += 1
                if answer.status_code == 429:
                    waits.append(int(answer.headers["retry-after"]))

    together(ask, 300)  # more than the queue holds
    return sent


def together(ask: Any, clients: int) -> None:
    """Run `ask` in as many threads."""
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def work(server: Process) -> float:
    """Seconds of the cores that a process has used."""
    values = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def memory(server: Process) -> float:
    """Megabytes of memory that a process holds."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else "pictures"
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
    if what == "pictures":
        pictures(seconds, [int(count) or None for count in sys.argv[3:]] or [4, None])
    else:
        {"requests": requests, "overload": overload}[what](seconds)
