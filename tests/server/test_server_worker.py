"""The worker when things go wrong around it: no job is lost or done twice, and it goes on working."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from processes import SLOW, check_pictures, no_parts, steps, until
from served import failed, served

from imagewright import pictures
from imagewright.database import Database
from imagewright.server import jobs, worker
from imagewright.server.jobs import Job
from imagewright.server.worker import Worker
from imagewright.store import Store

GENERATE = "/v1/images/generations"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[httpx.Client]:
    with served(tmp_path, default_model=SLOW) as client:
        yield client


def parts(api: httpx.Client) -> tuple[Worker, Database, Store]:
    state = api.app.state  # type: ignore[attr-defined]
    return state.worker, state.database, state.store


def give(api: httpx.Client, prompt: str = "a", **request: Any) -> str:
    body = {"type": "image.generation", "request": {"prompt": prompt, **request}}
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def now(api: httpx.Client, id: str) -> Job:
    with parts(api)[1].read() as connection:
        job = jobs.get(connection, id)
    assert job is not None
    return job


def change(api: httpx.Client, id: str, **values: Any) -> None:
    with parts(api)[1].write() as connection:
        connection.execute(jobs.jobs.update().where(jobs.jobs.c.id == id).values(**values))


def impatient(database: Database) -> None:
    """Let SQLite give up a lock after a tenth of a second."""
    sa.event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=100"))
    database.engine.dispose()


def test_finished_work_waits_for_a_database_that_is_locked(api: httpx.Client, slow_log: Path) -> None:
    _, database, store = parts(api)
    id = give(api, "sleep=0.02")
    until(lambda: steps(slow_log))
    impatient(database)
    other = sqlite3.connect(str(database.url.database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    until(lambda: any(step.what == "end" for step in steps(slow_log)))
    refused = api.post(GENERATE, json={"prompt": "a"})
    failed(refused, 503, code="database_unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert api.get(f"/v1/jobs/{id}").json()["status"] == "in_progress"
    other.execute("ROLLBACK")
    until(lambda: now(api, id).state == jobs.DONE, 10)
    assert [step.what for step in steps(slow_log)].count("begin") == 1, "it was not drawn again"
    assert api.post(GENERATE, json={"prompt": "a"}).status_code == 200
    check_pictures(database, store)
    other.close()


def test_the_worker_survives_a_queue_that_cannot_be_read(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = sa.exc.OperationalError("SELECT", {}, Exception("gone"))
    calls = []

    def fail(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise broken

    with monkeypatch.context() as patch:
        for name in ("claim", "waiting", "beat", "lost"):
            patch.setattr(jobs, name, fail)
        until(lambda: len(calls) > 1)
        parts(api)[0].pools["local"].maybe = True
        id = give(api)
        time.sleep(0.2)
        assert now(api, id).state == jobs.QUEUED
    until(lambda: now(api, id).state == jobs.DONE, 10)


def test_a_full_disk_fails_the_job_and_nothing_else(
    api: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(pictures.os, "fsync", full)
        answer = api.post(GENERATE, json={"prompt": "a"})
        failed(answer, 507, code="storage_full")
        assert answer.headers["x-should-retry"] == "false"
    assert api.post(GENERATE, json={"prompt": "a"}).status_code == 200
    assert no_parts(tmp_path / "pictures") == []
    check_pictures(*parts(api)[1:])


def test_a_full_database_refuses_and_comes_back(api: httpx.Client) -> None:
    _, database, _ = parts(api)

    def small(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA max_page_count=1")  # as many as there are, that is

    sa.event.listen(database.engine, "connect", small)
    database.engine.dispose()
    answers = [api.post("/v1/jobs", json={"type": "image.generation", "request": {"prompt": "a" * 5000}}) for _ in "ab"]
    assert answers[-1].status_code == 507, answers[-1].text
    sa.event.remove(database.engine, "connect", small)
    database.engine.dispose()
    assert api.post(GENERATE, json={"prompt": "a"}).status_code == 200


def test_what_another_worker_got_is_not_delivered_here(api: httpx.Client, slow_log: Path) -> None:
    id = give(api, "sleep=0.05", num_inference_steps=200)
    until(lambda: steps(slow_log))
    change(api, id, worker="another")
    parts(api)[0].renew()
    begun = len(steps(slow_log))
    until(lambda: not parts(api)[0].does(id), 2)
    assert len(steps(slow_log)) <= begun + 2
    assert now(api, id).state == jobs.RUNNING and now(api, id).worker == "another"
    change(api, id, state=jobs.CANCELLED)


def test_work_that_ends_after_its_job_was_lost_enters_nothing(api: httpx.Client, slow_log: Path) -> None:
    id = give(api, "sleep=0.02")
    until(lambda: steps(slow_log))
    change(api, id, attempts=2)  # as if it had been taken back, and begun again
    until(lambda: not parts(api)[0].does(id), 5)
    assert any(step.what == "end" for step in steps(slow_log))
    assert now(api, id).state == jobs.RUNNING and now(api, id).result is None
    assert parts(api)[2].search(None)[0] == []


def test_an_engine_that_leaves_takes_nobody_with_it(api: httpx.Client) -> None:
    failed(api.post(GENERATE, json={"prompt": "exit"}), 500)
    failed(api.post(GENERATE, json={"prompt": "fail"}), 500)
    assert api.post(GENERATE, json={"prompt": "a"}).status_code == 200


def test_a_model_that_is_gone_is_said(api: httpx.Client, slow_log: Path) -> None:
    parts(api)[0].pools["local"].maybe = True  # so that it waits a moment
    with parts(api)[1].write() as connection:
        connection.execute(
            sa.text("CREATE TRIGGER gone AFTER INSERT ON jobs BEGIN UPDATE jobs SET model = 'gone'; END")
        )
    id = give(api)
    until(lambda: now(api, id).state == jobs.FAILED)
    error = now(api, id).error
    assert error is not None and error["status"] == 404 and "gone" in error["message"]
    assert steps(slow_log) == []


def test_a_picture_that_is_gone_is_said(tmp_path: Path) -> None:
    with served(tmp_path) as api:
        order = {"prompt": "a", "image": "0" * 64}
        job = Job(id="job_a", owner="local", kind="edit", asked=None, model="fake/painter", order=order)
        with parts(api)[1].write() as connection:
            jobs.add(connection, job, 10)
        until(lambda: now(api, "job_a").state == jobs.FAILED)
        error = now(api, "job_a").error
        assert error is not None and error["status"] < 500 and "icture" in error["message"]


def test_what_one_process_put_back_the_next_one_does(tmp_path: Path, slow_log: Path) -> None:
    with served(tmp_path, default_model=SLOW, drain=0.5, slots=1) as api:
        ids = [give(api, "sleep=0.05", num_inference_steps=60, seed=seed) for seed in (1, 2)]
        until(lambda: steps(slow_log))
        stopped = parts(api)[0]
    assert not stopped.stop(0) or not stopped.does(ids[0])
    with served(tmp_path, default_model=SLOW, slots=2) as api:
        until(lambda: [now(api, id).state for id in ids] == [jobs.DONE] * 2)
        assert [now(api, id).attempts for id in ids] == [1, 1]
        check_pictures(*parts(api)[1:])


def test_jobs_of_the_dead_are_taken_at_the_start_or_given_up(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/imagewright.db")
    database.create()
    dead = f"{jobs.worker_id().partition(':')[0]}:{os.getpid()}:dead"
    for id, attempts, cancel in (("job_a", 1, False), ("job_b", jobs.ATTEMPTS, False), ("job_c", 1, True)):
        order = {"prompt": "a", "seed": 1}
        job = Job(id=id, owner="local", kind="generate", asked=None, model=SLOW, order=order)
        with database.write() as connection:
            jobs.add(connection, job, 10, dead, 3600)
            values = {"attempts": attempts, "cancel": cancel, "worker": dead, "state": jobs.RUNNING}
            connection.execute(jobs.jobs.update().where(jobs.jobs.c.id == id).values(**values))
    database.close()
    with served(tmp_path, default_model=SLOW) as api:
        until(lambda: now(api, "job_a").state == jobs.DONE, 5)
        b, c = now(api, "job_b"), now(api, "job_c")
        assert b.state == jobs.FAILED and b.error is not None and "several times" in b.error["message"]
        assert c.state == jobs.CANCELLED and c.error is not None and c.error["code"] == "cancelled"


def test_a_job_whose_workers_died_is_done_alone(tmp_path: Path, slow_log: Path) -> None:
    with served(tmp_path, default_model=SLOW) as api:
        for seed in range(5):
            order = {"prompt": "sleep=0.01", "seed": seed}
            attempts = jobs.SUSPECT if seed == 2 else 0
            job = Job(id=f"job_{seed}", owner="local", kind="generate", asked=None, model=SLOW, order=order)
            with parts(api)[1].write() as connection:
                jobs.add(connection, replace(job, attempts=attempts), 10)
        until(lambda: all(now(api, f"job_{seed}").state == jobs.DONE for seed in range(5)))
    found = [(step.what, step.seed) for step in steps(slow_log) if step.what != "step"]
    begun = found.index(("begin", 2))
    assert found[begun + 1] == ("end", 2)
    assert {what for what, _ in found[:begun]} <= {"begin", "end"} and begun % 2 == 0


def test_what_is_old_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "TIDY", 0.2)
    with served(tmp_path, default_model=SLOW, keep_days=1e-5) as api:  # most of a second
        id = give(api)

        def is_gone() -> bool:
            with parts(api)[1].read() as connection:
                return jobs.get(connection, id) is None

        until(is_gone, 10)
        until(lambda: parts(api)[2].search(None)[0] == [], 5)


def test_as_many_jobs_at_once_as_the_engine_takes(tmp_path: Path, slow_log: Path) -> None:
    def most() -> int:
        level, highest = 0, 0
        for step in steps(slow_log):
            level += {"begin": 1, "end": -1}.get(step.what, 0)
            highest = max(highest, level)
        return highest

    for slots, coalesce, expected in ((None, True, 4), (2, True, 2), (None, False, 1)):
        slow_log.unlink(missing_ok=True)
        folder = tmp_path / f"{slots}{coalesce}"
        with served(folder, default_model=SLOW, slots=slots, coalesce=coalesce) as api:
            ids = [give(api, "sleep=0.01", seed=seed) for seed in range(6)]
            until(lambda: all(now(api, id).state == jobs.DONE for id in ids))  # noqa: B023
        assert most() == expected


def test_pictures_drawn_beside_others_are_those_drawn_alone(tmp_path: Path) -> None:
    """The model that ships: eight clients at once, and one after the other; the same pixels."""
    bodies = [
        {"prompt": f"a {colour} fox", "seed": seed, "num_inference_steps": 2, "response_format": "b64_json"}
        for seed, colour in enumerate(["red", "blue", "green", "pink", "grey", "black", "white", "orange"])
    ]  # fmt: skip

    def drawn(folder: str, at_once: int, **settings: Any) -> list[list[bytes]]:
        with served(tmp_path / folder, default_model=None, **settings) as api:

            def ask(body: dict[str, Any]) -> list[bytes]:
                data = api.post(GENERATE, json=body).json()["data"]
                return [pixels(item["b64_json"]) for item in data]

            with ThreadPoolExecutor(at_once) as threads:
                return list(threads.map(ask, bodies))

    together, alone = drawn("together", 8), drawn("alone", 1, coalesce=False)
    assert together == alone
    assert len({picture for found in alone for picture in found}) == 8


def pixels(file: str) -> bytes:
    """The decoded picture; its file holds the time too."""
    from base64 import b64decode
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(b64decode(file)), formats=("PNG",)) as image:
        return image.tobytes()


def test_default_seats_are_those_of_the_default_models_engine(tmp_path: Path) -> None:
    with served(tmp_path / "a", default_model=SLOW) as api:
        assert parts(api)[0].pools["local"].slots == 4
    with served(tmp_path / "b", default_model="gone") as api:
        assert parts(api)[0].pools["local"].slots >= 1


def test_overload_is_refused_politely(tmp_path: Path) -> None:
    """Ten times as many requests as can be done."""
    with served(tmp_path, default_model=SLOW, slots=1, queue=8) as api:
        _, database, _ = parts(api)
        answers: list[httpx.Response] = []
        health: list[float] = []
        open_jobs: list[int] = []
        ended = threading.Event()

        def ask(number: int) -> None:
            for _ in range(3):
                answers.append(api.post(GENERATE, json={"prompt": "sleep=0.01", "seed": number}))

        def look() -> None:
            while not ended.wait(0.02):
                begun = time.perf_counter()
                assert api.get("/health").status_code == 200
                health.append(time.perf_counter() - begun)
                with database.read() as connection:
                    open_jobs.append(len(jobs.listed(connection, None, states=jobs.OPEN, limit=100)))

        looking = threading.Thread(target=look)
        looking.start()
        with ThreadPoolExecutor(40) as threads:
            list(threads.map(ask, range(40)))
        ended.set()
        looking.join()
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 429} and codes.count(429) > codes.count(200) >= 8
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    assert {answer.json()["error"]["code"] for answer in refused} == {"queue_full"}
    assert max(open_jobs) <= 8 and api.app.state.hub.heard() == []  # type: ignore[attr-defined]
    assert sorted(health)[int(len(health) * 0.9)] < 0.25  # benchmarks/serving.py has the figure of a free machine
