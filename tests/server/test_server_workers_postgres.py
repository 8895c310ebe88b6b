"""A server that does not work and two workers on one Postgres: each job is done once, whichever worker dies."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from databases import postgres, restart_postgres, start_postgres, stop_postgres  # noqa: F401
from processes import SLOW, Process, check_pictures, client, no_parts, running, states, steps, until

from imagewright.database import Database
from imagewright.server import jobs
from imagewright.store import Store

GENERATE = "/v1/images/generations"


@pytest.fixture
def place(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:  # noqa: F811
    """The options that say where jobs and pictures are. A worker that says nothing is given up after three seconds."""
    (tmp_path / "config.toml").write_text("[server]\nlease = 3.0\n")
    monkeypatch.setenv("IMAGEWRIGHT_CONFIG", str(tmp_path / "config.toml"))
    database = Database(postgres)
    with database.write() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    database.close()
    yield ["--database", postgres, "--folder", str(tmp_path), "--pictures", str(tmp_path / "shared"), "-m", SLOW]


def give(api: httpx.Client, seed: int, prompt: str = "sleep=0.003", **more: Any) -> str:
    given = {"type": "image.generation", "request": {"prompt": prompt, "seed": seed, **more}}
    answer = api.post("/v1/jobs", json=given)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_sixty_jobs_two_workers_one_of_them_killed(
    postgres: str,  # noqa: F811
    place: list[str],
    tmp_path: Path,
    slow_log: Path,
) -> None:
    log = tmp_path / "log"
    with (
        running(log, "serve", "--port", "0", "--no-work", *place) as server,
        running(tmp_path / "log1", "worker", *place, "--slots", "2") as first,
        running(tmp_path / "log2", "worker", *place, "--slots", "2") as second,
        client(server) as api,
    ):
        ids = [give(api, seed) for seed in range(60)]
        until(lambda: {step.process for step in steps(slow_log)} >= {first.process.pid, second.process.pid})
        until(lambda: sum(step.what == "end" for step in steps(slow_log)) > 15)
        first.kill()
        waited = api.post(GENERATE, json={"prompt": "a", "seed": 100, "model": "gpt-image-1"})  # by the other
        assert waited.status_code == 200 and waited.json()["data"][0]["b64_json"]
        until(lambda: all(api.get(f"/v1/jobs/{id}").json()["status"] == "completed" for id in ids), 60)
    database = Database(postgres)
    check_pictures(database, Store(database, str(tmp_path / "shared")))
    assert states(database) == [jobs.DONE] * 61
    assert [path for path in no_parts(tmp_path / "shared") if path.suffix != ".part"] == []
    database.close()


def test_what_waits_elsewhere_is_seen_stopped_and_drained_here(
    place: list[str], tmp_path: Path, slow_log: Path
) -> None:
    log = tmp_path / "log"
    with (
        running(log, "serve", "--port", "0", "--no-work", *place) as server,
        running(tmp_path / "log1", "worker", *place, "--slots", "1", "--drain", "20") as worker,
        client(server) as api,
    ):
        id = give(api, 1, "sleep=0.1", num_inference_steps=300)
        until(lambda: steps(slow_log))
        low, high = give(api, 2, "a"), api.post("/v1/jobs", json=_urgent(3)).json()["id"]
        with api.stream("GET", f"/v1/jobs/{id}/events") as answer:
            assert any(line.startswith("event: job.progress") for line in answer.iter_lines())
        at = time.time()
        assert api.post(f"/v1/jobs/{id}/cancel").status_code == 200
        until(lambda: api.get(f"/v1/jobs/{id}").json()["status"] == "cancelled", 5)
        assert max(step.time for step in steps(slow_log) if step.seed == 1) < at + 1
        until(lambda: api.get(f"/v1/jobs/{low}").json()["status"] == "completed")
        assert api.get(f"/v1/jobs/{high}").json()["status"] == "completed"
        assert [step.seed for step in steps(slow_log) if step.what == "begin"] == [1, 3, 2], "the urgent one first"
        body = {"prompt": "sleep=0.1", "seed": 4, "stream": True, "partial_images": 2}
        with api.stream("POST", GENERATE, json=body) as answer:
            names = [line[7:] for line in answer.iter_lines() if line.startswith("event: ")]
        assert names == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
        last = give(api, 5, "sleep=0.05")
        until(lambda: 5 in {step.seed for step in steps(slow_log)})
        worker.tell(signal.SIGTERM)
        assert worker.ended() == 0
        assert api.get(f"/v1/jobs/{last}").json()["status"] == "completed", "it was begun, so it was ended"


def _urgent(seed: int) -> dict[str, Any]:
    return {"type": "image.generation", "request": {"prompt": "a", "seed": seed}, "priority": 5}


def test_a_postgres_that_starts_again_loses_nothing(tmp_path: Path, slow_log: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="iw-pg-"))
    url = start_postgres(folder)
    if url is None:
        pytest.skip("Postgres is not installed")
    place = ["--database", url, "--folder", str(tmp_path), "--pictures", str(tmp_path / "shared"), "-m", SLOW]
    with (
        running(tmp_path / "log", "serve", "--port", "0", "--no-work", *place) as server,
        running(tmp_path / "log1", "worker", *place) as worker,
        client(server) as api,
    ):
        ids = [give(api, seed, "sleep=0.02") for seed in range(20)]
        until(lambda: sum(step.what == "end" for step in steps(slow_log)) > 3)
        restart_postgres(folder)

        def done() -> bool:
            answers = [api.get(f"/v1/jobs/{id}") for id in ids]
            assert {answer.status_code for answer in answers} <= {200, 503}
            return all(answer.status_code == 200 and answer.json()["status"] == "completed" for answer in answers)

        until(done, 60)
        assert api.post(GENERATE, json={"prompt": "a"}).status_code == 200
        assert "Traceback" not in worker.said + server.said
    database = Database(url)
    check_pictures(database, Store(database, str(tmp_path / "shared")))
    database.close()
    stop_postgres(folder)


def test_a_database_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="cannot be opened"):
        Process(tmp_path / "log", "worker", "--database", "postgresql://someone:secret@127.0.0.1:1/none")
    said = (tmp_path / "log").read_text()
    assert "secret" not in said and "Traceback" not in said
