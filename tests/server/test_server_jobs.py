"""The queue: what is accepted is done once, whoever dies, on both databases."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databases import database, postgres  # noqa: F401

from imagewright.database import Database
from imagewright.server import jobs
from imagewright.server.errors import ApiError
from imagewright.server.jobs import Job, QueueFull

GONE = ApiError(499, "gone", code="cancelled")


@pytest.fixture
def queue(database: Database) -> Database:  # noqa: F811
    database.create()
    return database


def claimed(queue: Database, worker: str, pool: str, lease: float) -> list[Job]:
    batch = jobs.claim(queue, worker, pool, lease)
    assert batch is not None
    return batch


def entered(queue: Database, id: str, **values: Any) -> Job:
    given = {"owner": "anna", "kind": "generate", "asked": None, "model": "m", "order": {"prompt": "a fox"}}
    with queue.write() as connection:
        return jobs.add(connection, Job(id=id, **{**given, **values}), 1000)


def now(queue: Database, id: str) -> Job:
    with queue.read() as connection:
        job = jobs.get(connection, id)
    assert job is not None
    return job


def finish(queue: Database, job: Job, state: str = jobs.DONE) -> bool:
    with queue.write() as connection:
        return jobs.finish(connection, job, state, result={})


def lost(queue: Database) -> list[str]:
    with queue.read() as connection:
        return jobs.lost(connection)


def take_back(queue: Database, ids: list[str] | None = None, worker: str | None = None) -> list[Job]:
    with queue.write() as connection:
        return jobs.take_back(connection, ids, worker)


def age(queue: Database, id: str, seconds: float) -> None:
    """Let a lease have ended `seconds` ago."""
    with queue.write() as connection:
        connection.execute(jobs.jobs.update().where(jobs.jobs.c.id == id).values(lease=time.time() - seconds))


def test_a_job_is_kept_as_it_was_accepted(queue: Database) -> None:
    order = {"prompt": 'a "fox"\0 \ud800 \N{FOX FACE}', "n": 2, "size": [64, 32]}
    given = entered(queue, "a", order=order, reply={"as": "url"}, plan={"targets": []}, priority=3, previews=2)
    assert now(queue, "a") == given
    with queue.read() as connection:
        assert jobs.get(connection, "a", "anna") and not jobs.get(connection, "a", "bert")


def test_the_most_urgent_comes_first_then_the_oldest(queue: Database) -> None:
    for index, priority in enumerate([0, 5, 0, 5, -5]):
        entered(queue, f"{index}", priority=priority)
    assert [job.id for _ in range(6) for job in claimed(queue, "w", "local", 60)] == ["1", "3", "0", "2", "4"]


def test_a_worker_takes_only_jobs_of_its_pool(queue: Database) -> None:
    entered(queue, "a", pool="hosted")
    assert claimed(queue, "w", "local", 60) == []
    with queue.read() as connection:
        assert jobs.waiting(connection) == ["hosted"]
    assert [job.id for job in claimed(queue, "w", "hosted", 60)] == ["a"]


def test_a_job_is_taken_as_it_is_accepted_unless_others_wait(queue: Database) -> None:
    def accepted(id: str) -> Job:
        job = Job(id=id, owner="anna", kind="generate", asked=None, model="m", order={})
        with queue.write() as connection:
            return jobs.add(connection, job, 10, "w", 60)

    first = accepted("a")
    assert (first.state, first.worker, first.attempts) == (jobs.RUNNING, "w", 1)
    assert now(queue, "a").state == jobs.RUNNING and not lost(queue)
    entered(queue, "b")
    assert accepted("c").state == now(queue, "c").state == jobs.QUEUED
    assert finish(queue, first)


def test_no_job_is_taken_twice_by_many_workers(queue: Database) -> None:
    for index in range(40):
        entered(queue, f"{index}")
    start = threading.Barrier(8)

    def work(number: int) -> list[str]:
        start.wait()
        taken = []
        while batch := claimed(queue, f"w{number}", "local", 60):
            taken += [job.id for job in batch]
        return taken

    with ThreadPoolExecutor(8) as threads:
        found = [id for taken in threads.map(work, range(8)) for id in taken]
    assert sorted(found, key=int) == [str(index) for index in range(40)]


def test_the_queue_never_holds_more_than_its_bound(queue: Database) -> None:
    start = threading.Barrier(8)

    def ask(number: int) -> int:
        start.wait()
        accepted = 0
        for index in range(5):
            job = Job(id=f"{number}-{index}", owner="anna", kind="generate", asked=None, model="m", order={})
            try:
                with queue.write() as connection:
                    jobs.add(connection, job, 10)
                accepted += 1
            except QueueFull as full:
                assert full.status == 429 and full.retry_after is not None and full.retry_after >= 1
        return accepted

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(ask, range(8))) == 10


def test_a_full_queue_says_when_to_come_back_by_its_pace(queue: Database) -> None:
    def retry_after() -> float:
        with pytest.raises(QueueFull) as full, queue.write() as connection:
            jobs.add(connection, Job(id="x", owner="a", kind="g", asked=None, model="m", order={}), 20)
        return full.value.seconds

    for index in range(20):
        entered(queue, f"{index}")
    assert retry_after() == jobs.PACE / 2  # nobody knows yet
    for index in range(100, 110):
        entered(queue, f"{index}")
        values = {"state": jobs.DONE, "finished": time.time() - 10}
        with queue.write() as connection:
            connection.execute(jobs.jobs.update().where(jobs.jobs.c.id == f"{index}").values(**values))
    assert retry_after() == pytest.approx(10, abs=0.5)  # one a second: half of 20


def test_only_the_worker_that_has_a_job_can_end_it_and_only_once(queue: Database) -> None:
    entered(queue, "a")
    [first] = claimed(queue, "w1", "local", 60)
    age(queue, "a", 1)
    assert lost(queue) == ["a"] and take_back(queue, ["a"]) == []
    [second] = claimed(queue, "w2", "local", 60)
    assert not finish(queue, first)
    assert finish(queue, second) and not finish(queue, second)
    assert now(queue, "a").worker == "w2"


def test_a_worker_that_got_its_lost_job_again_ends_it_once(queue: Database) -> None:
    entered(queue, "a")
    [first] = claimed(queue, "w", "local", 60)
    take_back(queue, ["a"])
    [second] = claimed(queue, "w", "local", 60)
    assert not finish(queue, first) and finish(queue, second)


def test_leases_are_renewed_for_what_is_at_work_only(queue: Database) -> None:
    for id in ("a", "b"):
        entered(queue, id)
        claimed(queue, "w", "local", 60)
        age(queue, id, 1)
    with queue.write() as connection:
        assert jobs.beat(connection, "w", ["a", "x"], 60) == {"a"}
        assert jobs.beat(connection, "v", ["a"], 60) == set()
    assert lost(queue) == ["b"]


def test_a_lease_from_before_the_clock_was_set_back_does_not_last(queue: Database) -> None:
    entered(queue, "a")
    claimed(queue, "w", "local", 60)
    age(queue, "a", -2 * jobs.FAR)
    assert lost(queue) == ["a"]


def test_a_job_that_takes_its_workers_down_is_given_up(queue: Database) -> None:
    entered(queue, "a")
    for _ in range(jobs.ATTEMPTS - 1):
        claimed(queue, "w", "local", 60)
        assert take_back(queue, ["a"]) == []
        age(queue, "a", 1)  # the pause is over
    claimed(queue, "w", "local", 60)
    [over] = take_back(queue, ["a"])
    assert over.id == "a" and finish(queue, over, jobs.FAILED)


def test_a_job_whose_workers_died_is_begun_alone(queue: Database) -> None:
    for id in ("a", "b", "c"):
        entered(queue, id)
    for _ in range(jobs.SUSPECT):
        assert [job.id for job in jobs.claim(queue, "w", "local", 60) or ()] == ["a"]
        take_back(queue, ["a"])
    pause = now(queue, "a").lease
    assert pause is not None and 0 < pause - time.time() <= jobs.PAUSE
    [other] = claimed(queue, "w", "local", 60)
    assert other.id == "b", "meanwhile another"
    take_back(queue, worker="w")
    age(queue, "a", 1)
    assert jobs.claim(queue, "w", "local", 60, busy=True) is None
    assert [job.id for job in jobs.claim(queue, "w", "local", 60) or ()] == ["a"]
    assert [job.id for job in jobs.claim(queue, "w", "local", 60, busy=True) or ()] == ["b"]
    assert [job.id for job in claimed(queue, "w", "local", 60)] == ["c"]
    assert jobs.claim(queue, "w", "local", 60, busy=True) == []


def test_to_be_put_back_is_no_attempt(queue: Database) -> None:
    entered(queue, "a")
    for _ in range(2 * jobs.ATTEMPTS):
        assert len(claimed(queue, "w", "local", 60)) == 1
        assert take_back(queue, worker="w") == []
    assert now(queue, "a").attempts == 0
    assert take_back(queue, worker="other") == []


def test_cancelling_ends_what_waits_and_marks_what_runs(queue: Database) -> None:
    for id in ("a", "b"):
        entered(queue, id)
    [running] = claimed(queue, "w", "local", 60)

    def cancel(id: str) -> bool:
        with queue.write() as connection:
            return jobs.cancel(connection, id, GONE)

    assert cancel("b") and now(queue, "b").state == jobs.CANCELLED
    assert now(queue, "b").error == GONE.to_json()
    assert not cancel("b") and not cancel("a")
    with queue.read() as connection:
        assert jobs.cancelled(connection, "w") == ["a"] and jobs.cancelled(connection, "v") == []
    assert [job.id for job in take_back(queue, worker="w")] == ["a"], "it must not be begun again"
    assert finish(queue, running)
    assert not cancel("a") and not now(queue, "b").is_open


def test_pages_hold_the_newest_first_and_nobody_elses(queue: Database) -> None:
    for index in range(7):
        entered(queue, f"{index}", created=100.0 + index // 2, owner="bert" if index == 3 else "anna")
    with queue.read() as connection:
        first = jobs.listed(connection, "anna", limit=4)
        second = jobs.listed(connection, "anna", limit=4, after=first[-1])
        assert [job.id for job in [*first, *second]] == ["6", "5", "4", "2", "1", "0"]
        assert len(jobs.listed(connection, None, limit=10)) == 7
        assert jobs.listed(connection, "anna", states=[jobs.DONE]) == []


def test_what_ended_long_ago_is_swept(queue: Database) -> None:
    for id in ("a", "b", "c"):
        entered(queue, id)
    [job] = claimed(queue, "w", "local", 60)
    finish(queue, job)
    with queue.write() as connection:
        assert jobs.sweep(connection, time.time() - 60) == 0
        assert jobs.sweep(connection, time.time() + 60) == 1
        assert {job.id for job in jobs.listed(connection, None)} == {"b", "c"}


def test_a_worker_is_gone_when_its_process_is(tmp_path: Path) -> None:
    here = jobs.worker_id()
    host, _, _ = here.rsplit(":", 2)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = f"{host}:{child.pid}:abcd"
    assert not jobs.is_gone(here) and not jobs.is_gone(other)
    child.communicate(b"\n")
    assert jobs.is_gone(other)
    assert jobs.is_gone(f"{host}:{os.getpid()}:abcd"), "an earlier process had this one's number"
    assert not jobs.is_gone(f"elsewhere:{child.pid}:abcd")
    assert host == socket.gethostname()


def test_on_one_machine_nobody_waits_for_the_lease_of_the_dead(tmp_path: Path) -> None:
    queue = Database(f"sqlite:///{tmp_path}/q.db")
    queue.create()
    entered(queue, "a")
    claimed(queue, jobs.worker_id(), "local", 60)
    assert lost(queue) == []
    with queue.write() as connection:
        connection.execute(sa.update(jobs.jobs).values(worker=f"{socket.gethostname()}:{os.getpid()}:dead"))
    assert lost(queue) == ["a"]
    queue.close()
