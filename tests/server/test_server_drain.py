"""A server that is told to stop: what was begun is ended, what was not is refused or kept, and the exit code is 0.

IMAGEWRIGHT_STOPS sets how often that is done under load.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import Process, check_pictures, client, no_parts, serve, states, steps, until

from imagewright.database import Database
from imagewright.server import jobs
from imagewright.store import Store

GENERATE = "/v1/images/generations"
TIMES = int(os.environ.get("IMAGEWRIGHT_STOPS", "1"))


def later(call: Callable[[], httpx.Response]) -> Callable[[], httpx.Response]:
    """The answer to a call that is made meanwhile."""
    threads = ThreadPoolExecutor(1)
    answer = threads.submit(call)
    threads.shutdown(wait=False)
    return lambda: answer.result(60)


def body(prompt: str, seed: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, **more}


def test_what_was_begun_is_ended_and_what_was_not_is_refused(tmp_path: Path, slow_log: Path) -> None:
    server = serve(tmp_path, "--slots", "1", "--drain", "20")
    with client(server) as one, client(server) as two, client(server) as three, client(server) as four:
        four.get("/health")
        begun = later(lambda: one.post(GENERATE, json=body("sleep=0.1", 1)))
        until(lambda: steps(slow_log))
        kept = two.post("/v1/jobs", json={"type": "image.generation", "request": body("a", 2)}).json()["id"]
        waits = later(lambda: three.post(GENERATE, json=body("a", 3)))
        until(lambda: len(four.get("/v1/jobs").json()["data"]) == 3)
        server.tell()
        refused = waits()
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "stopping"
        late = four.post(GENERATE, json=body("a", 4))
        assert late.status_code == 503 and "retry-after" in late.headers
        assert four.get("/health").status_code == 503
        assert begun().status_code == 200
    assert server.ended() == 0
    assert "Traceback" not in server.said and "rror" not in server.said, server.said
    assert {step.seed for step in steps(slow_log)} == {1}
    database = Database(f"sqlite:///{tmp_path}/imagewright.db")
    with database.read() as connection:
        found = jobs.get(connection, kept)
    assert found is not None and found.state == jobs.QUEUED and found.attempts == 0
    assert sorted(states(database)) == ["cancelled", "done", "queued"]
    database.close()


def test_what_does_not_end_in_time_is_put_back(tmp_path: Path, slow_log: Path) -> None:
    server = serve(tmp_path, "--slots", "2", "--drain", "2.5")
    with client(server) as api:
        given = {"type": "image.generation", "request": body("sleep=0.05", 1, num_inference_steps=500)}
        id = api.post("/v1/jobs", json=given).json()["id"]
        waits = later(lambda: httpx.post(server.url + GENERATE, json=body("sleep=0.05", 2, num_inference_steps=500)))
        until(lambda: {step.seed for step in steps(slow_log)} == {1, 2})
        begun = time.monotonic()
        server.tell()
        refused = waits()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
    assert server.ended() == 0 and 1 < time.monotonic() - begun < 5
    database = Database(f"sqlite:///{tmp_path}/imagewright.db")
    with database.read() as connection:
        job = jobs.get(connection, id)
    assert job is not None and (job.state, job.attempts) == (jobs.QUEUED, 0)
    assert sorted(states(database)) == ["cancelled", "queued"]
    database.close()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_ends_at_once_and_says_nothing(tmp_path: Path, sign: signal.Signals) -> None:
    server = serve(tmp_path)
    said = server.said
    with client(server) as api:
        assert api.get("/health").json()["status"] == "ok"
        begun = time.monotonic()
        server.tell(sign)
        assert server.ended() == 0 and time.monotonic() - begun < 5
    assert server.said == said


def test_a_second_signal_ends_it_now(tmp_path: Path, slow_log: Path) -> None:
    server = serve(tmp_path, "--drain", "60")
    with client(server) as api:
        given = {"type": "image.generation", "request": body("sleep=0.2", 1, num_inference_steps=500)}
        api.post("/v1/jobs", json=given)
        until(lambda: steps(slow_log))
        server.tell(signal.SIGINT)
        time.sleep(0.5)
        begun = time.monotonic()
        server.tell(signal.SIGINT)
        assert server.ended() == 0 and time.monotonic() - begun < 5
    assert "Traceback" not in server.said
    database = Database(f"sqlite:///{tmp_path}/imagewright.db")
    assert states(database) == ["queued"]
    database.close()


def test_whoever_follows_a_job_is_let_go(tmp_path: Path, slow_log: Path) -> None:
    server = serve(tmp_path, "--drain", "20")
    with client(server) as api:
        given = {"type": "image.generation", "request": body("sleep=0.1", 1, num_inference_steps=20)}
        id = api.post("/v1/jobs", json=given).json()["id"]
        with api.stream("GET", f"/v1/jobs/{id}/events") as answer:
            lines = answer.iter_lines()
            assert next(lines)
            server.tell()
            begun = time.monotonic()
            assert not any("completed" in line for line in lines) and time.monotonic() - begun < 1.5
    assert server.ended() == 0
    database = Database(f"sqlite:///{tmp_path}/imagewright.db")
    assert states(database) == ["done"]
    database.close()


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "imagewright", "serve", "--port", port, "--folder", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"port {port}" in done.stderr and "--port" in done.stderr


@pytest.mark.parametrize("_", range(TIMES))
def test_told_to_stop_under_load_nothing_is_lost(tmp_path: Path, _: int) -> None:
    server = serve(tmp_path, "--drain", "20")
    accepted: list[str] = []
    answers: list[int] = []
    stop = threading.Event()

    def load(number: int) -> None:
        with client(server) as api:
            for index in range(1000):
                if stop.is_set():
                    return
                try:
                    if index % 2:
                        answer = api.post(GENERATE, json=body("sleep=0.001", index))
                    else:
                        given = {"type": "image.generation", "request": body("sleep=0.001", index)}
                        answer = api.post("/v1/jobs", json=given)
                except httpx.TransportError:
                    return
                answers.append(answer.status_code)
                if answer.status_code == 202:
                    accepted.append(answer.json()["id"])

    threads = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1.5 if TIMES == 1 else random.uniform(0.1, 2))
    server.tell()
    assert server.ended() == 0
    stop.set()
    for thread in threads:
        thread.join()
    assert set(answers) <= {200, 202, 503}
    assert TIMES > 1 or (answers.count(200) > 3 and accepted)
    database = Database(f"sqlite:///{tmp_path}/imagewright.db")
    with database.read() as connection:
        found = [jobs.get(connection, id) for id in accepted]
    assert {job.state for job in found if job} <= {jobs.DONE, jobs.QUEUED} and None not in found
    assert states(database).count("done") >= answers.count(200)
    check_pictures(database, Store(database, str(tmp_path / "pictures")))
    assert no_parts(tmp_path / "pictures") == []
    database.close()


def test_a_worker_without_a_server_ends_in_order_too(tmp_path: Path) -> None:
    worker = Process(tmp_path / "log", "worker", "--folder", str(tmp_path), "--drain", "5")
    assert "password" not in worker.said
    worker.tell()
    assert worker.ended() == 0 and "Traceback" not in worker.said
