"""The store: bytes that are whole or not there, rows that never lack them, and a search that is quick."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import sqlalchemy as sa
from databases import database, postgres  # noqa: F401
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagewright import store as stores
from imagewright.database import Database
from imagewright.errors import OutputError, RequestError
from imagewright.store import NotFoundError, Row, Store, new_id

HOUR = 3600.0


def row_of(digest: str, **changes: Any) -> Row:
    """A row with what a test does not care for."""
    values: dict[str, Any] = {"media_type": "image/png", "width": 64, "height": 64, "bytes": 5}
    return Row(**{"id": new_id(), "digest": digest, "owner": "anna", "created": time.time(), **values, **changes})


def entered(store: Store, *rows: Row) -> list[Row]:
    """The rows, in the database."""
    with store.database.write() as connection:
        store.enter(connection, rows)
    return list(rows)


def aged(folder: Path, seconds: float = 2 * HOUR) -> None:
    """Make every file of a store as old as that."""
    for path in folder.rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Store:  # noqa: F811
    database.create()
    return Store(database, str(tmp_path / "pictures"))


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Store]:
    """A store on SQLite, where the database does not matter."""
    database = Database(f"sqlite:///{tmp_path}/test.db")  # noqa: F811
    database.create()
    yield Store(database, str(tmp_path / "pictures"))
    database.close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "pictures").rglob("*") if path.is_file())


def test_bytes_come_back_by_their_hash(local: Store, tmp_path: Path) -> None:
    digest = local.save(b"hello")
    assert digest == hashlib.sha256(b"hello").hexdigest()
    assert local.load(digest) == b"hello"
    assert local.load(local.save(b"")) == b""
    assert (tmp_path / "pictures" / digest[:2] / digest).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("digest", ["", "0" * 64, "../../etc/passwd", "A" * 64, "0" * 63 + "\n", "0" * 65])
def test_what_is_not_there_is_not_found(local: Store, digest: str) -> None:
    with pytest.raises(NotFoundError):
        local.load(digest)


def test_a_picture_is_written_once(local: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = local.save(b"hello")
    monkeypatch.setattr(stores, "save_atomic", lambda *_, **__: pytest.fail("written again"))
    assert local.save(b"hello") == digest


def test_a_file_of_another_size_is_mended(local: Store, tmp_path: Path) -> None:
    digest = local.save(b"hello")
    path = tmp_path / "pictures" / digest[:2] / digest
    path.write_bytes(b"hel")
    assert local.load(local.save(b"hello")) == b"hello"
    path.write_bytes(b"hellO")
    with pytest.raises(OutputError, match="damaged"):
        local.load(digest)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace", "open", "fdopen"])
def test_a_failing_disk_leaves_no_part_of_a_file(
    local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(f"imagewright.pictures.os.{call}", fails)
        with pytest.raises(OutputError):
            local.save(b"hello")
    assert files(tmp_path) in ([], [hashlib.sha256(b"hello").hexdigest()])  # the name may be there, never a part
    assert local.load(local.save(b"hello")) == b"hello"


def test_a_row_needs_its_file(store: Store) -> None:
    digest = store.save(b"hello")
    with pytest.raises(OutputError, match="no file"):
        entered(store, row_of(digest), row_of("0" * 64))
    assert store.search(None)[0] == []
    row = entered(store, row_of(digest, prompt="a \0 cat \ud800", seed=2**40, score=0.5, parents=("img_1",), job="j"))[
        0
    ]
    assert store.get(row.id, "anna") == replace(row, prompt="a \ufffd cat ?")
    assert store.of_job("j") == [store.get(row.id, None)]
    with store.database.write() as connection:
        store.enter(connection, [])


def test_rows_are_part_of_the_callers_transaction(store: Store) -> None:
    row = row_of(store.save(b"hello"))
    with pytest.raises(ZeroDivisionError), store.database.write() as connection:
        store.enter(connection, [row])
        assert store.search("anna", connection=connection)[0] == [row]
        raise ZeroDivisionError
    with pytest.raises(NotFoundError):
        store.get(row.id, "anna")


def test_one_owner_does_not_see_anothers(store: Store) -> None:
    row = entered(store, row_of(store.save(b"hello")))[0]
    for reach in (store.get, store.forget):
        with pytest.raises(NotFoundError):
            reach(row.id, "bert")
    assert store.search("bert")[0] == []
    assert store.search("anna")[0] == store.search(None)[0] == [store.get(row.id, None)]
    store.forget(row.id, "anna")
    with pytest.raises(NotFoundError):
        store.forget(row.id, "anna")


def test_a_search_finds_by_every_field(store: Store) -> None:
    digest = store.save(b"hello")
    prompts = ["A red cat", "two cats, one dog", "Scatter", "ÉCOLE à Paris", "猫の写真", "state-of-the-art_x 3d1e5"]
    rows = entered(
        store,
        *(
            row_of(digest, prompt=p, created=float(i), seed=i, model=f"m{i % 2}", score=i / 10)
            for i, p in enumerate(prompts)
        ),
    )
    entered(store, row_of(digest, prompt="A red cat", kind="input"), row_of(digest, prompt="cat", expires=1.0))

    def found(**conditions: Any) -> list[int]:
        return [rows.index(row) for row in store.search("anna", **conditions)[0]]

    assert found() == [5, 4, 3, 2, 1, 0]
    assert found(prompt="CAT") == [1, 0]
    assert found(prompt="cat dog") == [1]
    assert found(prompt="école") == [3]
    assert found(prompt="猫") == found(prompt="写真") == [4]
    assert found(prompt="art x") == found(prompt="3D1") == [5]
    assert found(prompt="' OR 1=1 --\" * NEAR ( :* & !") == found(prompt="!?") == found(prompt="") == []
    assert found(model="m1") == [5, 3, 1]
    assert found(seed=4) == [4]
    assert found(since=1, until=3) == [2, 1]
    assert found(min_score=0.35) == [5, 4]
    assert found(prompt="cat", model="m1") == [1]
    assert len(store.search("anna", kinds=("output", "input"))[0]) == 7


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": 10**9}, {"after": "yesterday"}, {"prompt": " ".join(map(str, range(65)))}]
)
def test_a_wrong_search_says_so(local: Store, wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        local.search("anna", **wrong)


def test_pages_hold_every_row_once(store: Store) -> None:
    digest = store.save(b"hello")
    rows = entered(store, *(row_of(digest, created=1000.1 + i // 3) for i in range(25)))
    seen: list[Row] = []
    after = None
    while True:
        page, after = store.search("anna", limit=4, after=after)
        seen += page
        if len(seen) == 8:  # what comes meanwhile does not shift the pages
            entered(store, row_of(digest))
        if after is None:
            break
    assert len(seen) == 25 and set(seen) == set(rows)
    assert [row.created for row in seen] == sorted((row.created for row in rows), reverse=True)


def test_a_thousand_rows_are_searched_quickly(store: Store) -> None:
    digest, names = store.save(b"hello"), ["cat", "dog", "fox", "owl", "hat", "sun"]
    random.seed(0)
    entered(store, *(row_of(digest, prompt=" ".join(random.choices(names, k=30)) + f" {i}") for i in range(1000)))
    for words in ("cat dog", "999", "nothing"):
        start = time.perf_counter()
        store.search("anna", prompt=words)
        assert time.perf_counter() - start < 0.1  # s; benchmarks/store.py has 10,000


def test_a_very_long_prompt_is_stored_and_found(store: Store) -> None:
    prompt = " ".join(f"word{i}" for i in range(6000)) + " " + "x" * 9000
    row = entered(store, row_of(store.save(b"hello"), prompt=prompt))[0]
    assert store.search("anna", prompt="word5999")[0] == store.search("anna", prompt="x" * 9000)[0] == [row]


def test_sweeping_takes_rows_that_expired_and_files_that_nobody_has(store: Store, tmp_path: Path) -> None:
    kept, gone, shared = (store.save(data) for data in (b"kept", b"gone", b"shared"))
    row = entered(store, row_of(kept), row_of(gone, expires=time.time() - 1), row_of(shared, expires=1.0))[0]
    entered(store, row_of(shared))
    (tmp_path / "pictures" / kept[:2] / ".12.part").write_bytes(b"torn")
    assert store.sweep() == (2, 0)  # all files are young
    aged(tmp_path / "pictures")
    young = store.save(b"young")
    assert store.sweep() == (0, 1)
    assert files(tmp_path) == sorted([kept, shared, young])
    assert store.load(store.get(row.id, None).digest) == b"kept"


def test_saving_again_begins_the_hour_again(local: Store, tmp_path: Path) -> None:
    digest = local.save(b"hello")
    aged(tmp_path / "pictures")
    local.save(b"hello")
    assert local.sweep() == (0, 0)
    aged(tmp_path / "pictures")
    assert local.sweep() == (0, 1)
    with pytest.raises(OutputError):
        entered(local, row_of(digest))


STEPS = st.tuples(st.sampled_from(["save", "enter", "forget", "age", "sweep", "torn", "die"]), st.integers(0, 2))


@settings(max_examples=60, deadline=None)
@example([("save", 0), ("age", 0), ("sweep", 0)], [("enter", 0)])
@example([("save", 0), ("age", 0), ("sweep", 0), ("enter", 0)], [])
@example([("save", 0), ("age", 0), ("sweep", 0), ("enter", 0)], [("save", 0)])
@example([("save", 0), ("enter", 0), ("forget", 0), ("age", 0), ("die", 0), ("enter", 0)], [])
@given(st.lists(STEPS, min_size=3, max_size=14), st.lists(STEPS, max_size=3))
def test_no_row_without_its_file(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], between: list[tuple[str, int]]
) -> None:
    """Whatever follows on what, also inside of a sweep: between its look and its removal, and where it dies."""
    folder = tmp_path_factory.mktemp("any")
    database = Database(f"sqlite:///{folder}/test.db")  # noqa: F811
    database.create()
    store = Store(database, str(folder / "pictures"))
    data = [b"zero", b"one", b"two"]

    class Killed(BaseException):
        pass

    def step(name: str, which: int) -> None:
        digest = hashlib.sha256(data[which]).hexdigest()
        if name == "save":
            store.save(data[which])
        elif name == "enter":
            try:
                entered(store, row_of(digest, id=f"img_{which}_{len(store.search(None)[0])}_{new_id()}"))
            except OutputError:
                assert not store._files.exists(digest)
        elif name == "forget":
            for row in store.search(None, limit=1)[0]:
                store.forget(row.id, None)
        elif name == "age":
            aged(folder / "pictures")
        elif name == "torn":
            with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
                patched.setattr("imagewright.pictures.os.replace", _raising(Killed))
                store.save(data[which] + b"!")
        elif name == "die":
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(store._files, "remove", _raising(Killed))
                with suppress(Killed):
                    store.sweep()
        else:
            sweep()

    def sweep() -> None:
        look = stores._unused
        rest = iter(between)

        def interrupted(connection: sa.Connection, digests: Any) -> list[str]:
            found = look(connection, digests)
            if not connection.get_execution_options().get("writes"):  # the first look: others may write after it
                connection.rollback()
                for other in rest:
                    if other[0] not in ("sweep", "die"):
                        step(*other)
            return found

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(stores, "_unused", interrupted)
            store.sweep()

    for name, which in steps:
        step(name, which)
        for row in store.search(None)[0]:
            assert store.load(row.digest) in data
    database.close()


def _raising(error: type[BaseException]) -> Any:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    return fails


SAVER = """
import os, sys, time
from imagewright.database import Database
from imagewright.store import Row, Store, new_id
database = Database(f"sqlite:///{sys.argv[1]}/test.db")
store = Store(database, sys.argv[1] + "/pictures")
print("ready", flush=True)
while True:
    rows = []
    for _ in range(2):
        data = os.urandom(200_000)
        rows.append(Row(id=new_id(), digest=store.save(data), media_type="image/png", width=1, height=1,
                        bytes=len(data), owner="anna", created=time.time()))
    with database.write() as connection:
        store.enter(connection, rows)
"""


def kill_while_saving(store: Store, folder: Path, kills: int) -> int:
    """Start a process that saves and kill it, again and again; the pictures that were entered, all whole."""
    chance = random.Random(kills)
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            process.wait()
    for path in (folder / "pictures").rglob("*"):
        if path.is_file() and path.suffix != ".part":
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, "a torn file"
    with store.database.read() as connection:
        digests = connection.execute(sa.select(stores.pictures.c.digest)).scalars().all()
        assert connection.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"
    for digest in digests:
        assert len(store.load(digest)) == 200_000
    return len(digests)


@pytest.mark.skipif(os.name == "nt", reason="no kill -9")
def test_killed_while_saving(local: Store, tmp_path: Path) -> None:
    entered_before_a_kill = kill_while_saving(local, tmp_path, 10)  # benchmarks/store.py: 200
    aged(tmp_path / "pictures")
    local.sweep()
    assert len(files(tmp_path)) == entered_before_a_kill > 0


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_store_at_a_url(local: Store, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "memory":
        store = Store(local.database, "memory://pictures-of-a-test/")
        system = fsspec.filesystem("memory")
    else:
        system = fsspec.filesystem("file")
        store = Store(local.database, str(tmp_path))
        store._files = stores._Remote(system, str(tmp_path / "remote"))
    kept, gone = store.save(b"kept"), store.save(b"gone")
    entered(store, row_of(kept))
    assert store.load(kept) == b"kept" and store.load(store.save(b"kept")) == b"kept"
    with pytest.raises(NotFoundError):
        store.load("0" * 64)
    with pytest.raises(OutputError):
        entered(store, row_of("0" * 64))
    assert store.sweep() == (0, 0)
    with monkeypatch.context() as later:
        later.setattr(store, "_clock", lambda: time.time() + 2 * HOUR)
        assert store.sweep() == (0, 1)
    with pytest.raises(NotFoundError):
        store.load(gone)
    with monkeypatch.context() as broken:
        broken.setattr(type(system), "pipe_file", _raising(ConnectionResetError))
        with pytest.raises(OutputError, match="ConnectionResetError"):
            store.save(b"never")
    with pytest.raises(NotFoundError):
        store.load(hashlib.sha256(b"never").hexdigest())


def test_a_remote_move_that_fails_leaves_nothing(local: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("file")
    remote = stores._Remote(system, str(tmp_path / "remote"))
    monkeypatch.setattr(type(system), "mv", _raising(TimeoutError))
    with pytest.raises(OutputError):
        remote.write("a" * 64, b"data")
    assert [path for path in (tmp_path / "remote").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("url", ["nothing-of-that-name://bucket", "/proc/nowhere/pictures"])
def test_a_store_that_cannot_be_opened(local: Store, url: str) -> None:
    with pytest.raises(OutputError):
        Store(local.database, url)
