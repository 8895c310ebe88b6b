"""What the store of pictures costs: searches among many rows, saves, and kills while it saves.

python benchmarks/store.py search [ROWS]     ms of each kind of search, on SQLite and on a Postgres of its own
python benchmarks/store.py save [N]          ms to save and enter a picture of 30 kB
python benchmarks/store.py kill [N]          kill -9 a saving process N times: torn files, rows without files
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from databases import start_postgres, stop_postgres

from imagewright.database import Database
from imagewright.store import Row, Store, new_id

WORDS = [f"{start}{middle}{end}" for start in "bcdfglmnprst" for middle in ("a", "e", "io", "ou") for end in "lnrstkm"]
REPEATS = 20


def search(count: int) -> None:
    """Median and slowest time (ms) of each kind of search among `count` rows."""
    for name, store in stores():
        fill(store, count)
        for what, ask in searches(store, count).items():
            ask()
            times = [timed(ask) for _ in range(REPEATS)]
            print(f"{name:9} {count:>8,} rows  {what:24} {statistics.median(times):7.2f}  slowest {max(times):7.2f} ms")


def searches(store: Store, count: int) -> dict[str, Callable[[], object]]:
    """Each kind of search among `count` rows."""
    after = store.search("anna", limit=min(1000, count - 1))[1]
    return {
        "newest": lambda: store.search("anna"),
        "a page later": lambda: store.search("anna", after=after),
        "a rare word": lambda: store.search("anna", prompt="rare"),
        "a common word": lambda: store.search("anna", prompt=WORDS[0]),
        "the start of many words": lambda: store.search("anna", prompt="b"),
        "three words": lambda: store.search("anna", prompt=" ".join(WORDS[:3])),
        "no such word": lambda: store.search("anna", prompt="nothing"),
        "model and seed": lambda: store.search("anna", model="m1", seed=count // 2 // 2 * 2 + 1),
        "best tenth": lambda: store.search("anna", min_score=0.9),
        "a word and a day": lambda: store.search("anna", prompt=WORDS[0], since=1000, until=2000),
        "everybody's, a word": lambda: store.search(None, prompt=WORDS[0]),
    }


def save(count: int) -> None:
    """Median time (ms) to save a file of 30 kB and to enter its row, each in a transaction of its own."""
    for name, store in stores():
        saving, entering = [], []
        for index in range(count):
            data = os.urandom(30_000)
            saving.append(timed(partial(store.save, data)))
            entering.append(timed(partial(enter, store, [row_of(index, store.save(data))])))
        print(f"{name:9} save {statistics.median(saving):6.2f} ms  enter {statistics.median(entering):6.2f} ms")


def kill(count: int) -> None:
    """As the test does, more often."""
    from test_store import kill_while_saving

    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/test.db")
        database.create()
        start = time.perf_counter()
        entered = kill_while_saving(Store(database, f"{folder}/pictures"), Path(folder), count)
        seconds = time.perf_counter() - start
        torn = len(list(Path(folder).rglob("*.part")))
        print(f"{count} kills, {entered} pictures entered, all whole; {torn} writes were cut; {seconds:.1f} s")


@contextmanager
def folders() -> Iterator[Path]:
    """A short path: a socket's name must fit."""
    with tempfile.TemporaryDirectory(prefix="iw-") as folder:
        yield Path(folder)


def stores() -> Iterator[tuple[str, Store]]:
    """An empty store on SQLite, then one on Postgres where that is installed."""
    with folders() as folder:
        yield "sqlite", created(f"sqlite:///{folder}/test.db", folder)
        server = folder / "server"
        server.mkdir()
        folder.chmod(0o755)
        url = start_postgres(server)
        if url is not None:
            try:
                yield "postgres", created(url, folder)
            finally:
                stop_postgres(server)


def created(url: str, folder: Path) -> Store:
    database = Database(url)
    database.create()
    return Store(database, str(folder / "pictures"))


def fill(store: Store, count: int) -> None:
    """Rows of one owner, the worst case, with prompts of 20 words; one in 1,000 has the word `rare`."""
    random.seed(0)
    digest = store.save(b"picture")
    start = time.perf_counter()
    for first in range(0, count, 1000):
        enter(store, [row_of(index, digest) for index in range(first, min(first + 1000, count))])
    print(f"{count:,} rows entered in {time.perf_counter() - start:.1f} s")
    if not store.database.is_sqlite:  # as autovacuum does within a minute
        with store.database.write() as connection:
            connection.exec_driver_sql("ANALYZE pictures")


def row_of(index: int, digest: str) -> Row:
    words = random.choices(WORDS, k=20) + (["rare"] if index % 1000 == 7 else [])
    return Row(
        id=new_id(),
        digest=digest,
        media_type="image/png",
        width=512,
        height=512,
        bytes=7,
        owner="anna",
        created=float(index),
        model=f"m{index % 2}",
        prompt=" ".join(words),
        seed=index,
        score=random.random(),
        record='{"version":1}' + " " * 1000,
    )


def enter(store: Store, rows: list[Row]) -> None:
    with store.database.write() as connection:
        store.enter(connection, rows)


def timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else {"search": 10_000, "save": 100, "kill": 200}[sys.argv[1]]
    {"search": search, "save": save, "kill": kill}[sys.argv[1]](count)
