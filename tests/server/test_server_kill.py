"""kill -9 of a serving process under load: what was accepted is done after the next start, once, and is whole.

IMAGEWRIGHT_KILLS sets how often (benchmarks/kills.py does it 50 times, with the shipped models too).
"""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from processes import Process, check_pictures, client, no_parts, serve, states, steps, until

from imagewright.database import Database
from imagewright.errors import OutputError
from imagewright.server import jobs
from imagewright.store import Store

KILLS = int(os.environ.get("IMAGEWRIGHT_KILLS", "5"))


class Load:
    """Clients that order pictures from a server until it is gone; what it accepted is in `jobs` and `pictures`."""

    def __init__(self, clients: int = 3, **request: object) -> None:
        self.clients, self.request = clients, request
        self.jobs: list[str] = []
        self.pictures: list[str] = []  # ids, of answers that came whole
        self.others: list[tuple[int, str]] = []
        self._seed = 0

    def run(self, server: Process, seconds: float) -> None:
        """Order for a while, then kill the server at once."""
        threads = [threading.Thread(target=self._order, args=(server, number)) for number in range(self.clients)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        server.kill()
        for thread in threads:
            thread.join()

    def _order(self, server: Process, number: int) -> None:
        with client(server) as api:
            while True:
                self._seed += 1
                body = {"prompt": "a red fox", "seed": self._seed, **self.request}
                try:
                    if number % 2:
                        answer = api.post("/v1/images/generations", json=body)
                    else:
                        answer = api.post("/v1/jobs", json={"type": "image.generation", "request": body})
                except httpx.TransportError:
                    return
                if answer.status_code == 202:
                    self.jobs.append(answer.json()["id"])
                    time.sleep(0.05)
                elif answer.status_code == 200:
                    self.pictures += answer.json()["imagewright"]["pictures"]
                else:
                    self.others.append((answer.status_code, answer.text))
                    time.sleep(0.05)


def check(folder: Path, load: Load) -> int:
    """Nothing accepted is lost, nothing is there twice or in part; how many jobs were begun more than once."""
    database = Database(f"sqlite:///{folder}/imagewright.db")
    store = Store(database, str(folder / "pictures"))
    check_pictures(database, store)
    with database.read() as connection:
        found = {id: jobs.get(connection, id) for id in load.jobs}
        again = connection.execute(
            sa.select(sa.func.count()).select_from(jobs.jobs).where(jobs.jobs.c.attempts > 1)
        ).scalar_one()
    assert {job.state for job in found.values() if job is not None} <= {jobs.DONE}
    assert None not in found.values()
    for id in load.pictures:
        assert store.load(store.get(id, None).digest)
    assert set(states(database)) <= {jobs.DONE}
    assert {code for code, _ in load.others} <= {429}, load.others
    database.close()
    return int(again)


def whole_at_once(folder: Path) -> None:
    """Right after a kill: what is under a picture's name is that picture."""
    database = Database(f"sqlite:///{folder}/imagewright.db")
    store = Store(database, str(folder / "pictures"))
    for path in (folder / "pictures").rglob("*"):
        if path.is_file() and len(path.name) == 64:
            store.load(path.name)
    database.close()


def idle(folder: Path) -> bool:
    database = Database(f"sqlite:///{folder}/imagewright.db")
    found = states(database)
    database.close()
    return not set(found) & set(jobs.OPEN)


def test_what_was_accepted_is_done_whenever_the_server_is_killed(tmp_path: Path) -> None:
    load, chance = Load(), random.Random(5)
    for _ in range(KILLS):
        load.run(serve(tmp_path), chance.uniform(0.05, 2))
        whole_at_once(tmp_path)
    server = serve(tmp_path)
    until(lambda: idle(tmp_path), 120)  # one that was there at several kills pauses first
    server.kill()
    check(tmp_path, load)
    assert load.jobs and load.pictures
    assert [path for path in no_parts(tmp_path / "pictures") if path.suffix != ".part"] == []


def test_a_job_that_was_begun_is_begun_again_at_once(tmp_path: Path, slow_log: Path) -> None:
    server = serve(tmp_path)
    request = {"prompt": "sleep=0.05", "seed": 1, "num_inference_steps": 30}
    with client(server) as api:
        api.post("/v1/jobs", json={"type": "image.generation", "request": request})
        until(lambda: steps(slow_log))
    server.kill()
    server = serve(tmp_path)
    until(lambda: len([step for step in steps(slow_log) if step.what == "begin"]) == 2, 5)  # a lease lasts 15 s
    until(lambda: idle(tmp_path))
    server.kill()
    load = Load()
    assert check(tmp_path, load) == 1


def test_the_checks_find_what_a_naive_writer_leaves(tmp_path: Path) -> None:
    """As if files were written in place, and rows entered twice: each check must fail."""
    server = serve(tmp_path)
    with client(server) as api:
        for seed in range(2):
            assert api.post("/v1/images/generations", json={"prompt": "a", "seed": seed}).status_code == 200
    server.kill()
    load = Load()
    assert check(tmp_path, load) == 0
    whole_at_once(tmp_path)
    [first, _] = [path for path in (tmp_path / "pictures").rglob("*") if len(path.name) == 64]
    data = first.read_bytes()
    first.write_bytes(data[: len(data) // 2])
    with pytest.raises(OutputError, match="damaged"):
        whole_at_once(tmp_path)
    first.write_bytes(data)
    database = Database(f"sqlite:///{tmp_path}/imagewright.db")
    with database.write() as connection:
        connection.execute(sa.text("UPDATE jobs SET state = 'running' WHERE id = (SELECT min(id) FROM jobs)"))
    with pytest.raises(AssertionError):
        check(tmp_path, load)
    with database.write() as connection:
        connection.execute(sa.text("UPDATE jobs SET state = 'done'"))
    check(tmp_path, load)
    load.jobs.append("job_of_nobody")
    with pytest.raises(AssertionError):
        check(tmp_path, load)
    load.jobs.clear()
    columns = "digest, media_type, width, height, bytes, owner, model, engine, prompt, seed, score, created, expires"
    with database.write() as connection:
        connection.execute(
            sa.text(
                f"INSERT INTO pictures (id, {columns}, kind, parents, job, record, words) "
                f"SELECT 'img_twice', {columns}, kind, parents, job, record, words FROM pictures LIMIT 1"
            )
        )
    with pytest.raises(AssertionError):
        check(tmp_path, load)
    database.close()
