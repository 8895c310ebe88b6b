"""Jobs over HTTP: given, followed, listed, cancelled; each client sees its own."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gatehouse import bearer, new_key
from processes import SLOW, steps, until
from served import data_url, drawn, events, failed, opened, served

Json = dict[str, Any]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[httpx.Client]:
    with served(tmp_path, default_model=SLOW) as client:
        yield client


def give(api: httpx.Client, prompt: str = "a fox", priority: int = 0, **request: Any) -> Json:
    body = {"type": "image.generation", "request": {"prompt": prompt, **request}, "priority": priority}
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def ended(api: httpx.Client, id: str, seconds: float = 20) -> Json:
    found: Json = {}

    def over() -> bool:
        found.update(api.get(f"/v1/jobs/{id}").json())
        return found["status"] not in ("queued", "in_progress")

    until(over, seconds)
    return found


def followed(api: httpx.Client, id: str, **headers: str) -> list[tuple[str, Json]]:
    with api.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(events(answer.iter_lines()))


def test_a_job_is_answered_at_once_and_done_later(api: httpx.Client) -> None:
    given = give(api, "sleep=0.02 fox", seed=3, model="gpt-image-1")
    assert given["object"] == "job" and given["type"] == "image.generation" and given["background"]
    assert given["status"] in ("queued", "in_progress") and given["result"] is None and given["error"] is None
    job = ended(api, given["id"])
    assert job["status"] == "completed" and job["model"] == "gpt-image-1" and job["served_by"] == SLOW
    assert job["created_at"] <= job["started_at"] <= job["completed_at"]
    alone = api.post(
        "/v1/images/generations", json={"prompt": "sleep=0.02 fox", "seed": 3, "model": "gpt-image-1"}
    ).json()
    assert set(alone) == set(job["result"]) and alone["usage"] == job["result"]["usage"]
    assert opened(alone["data"][0]).tobytes() == opened(job["result"]["data"][0]).tobytes()


def test_the_images_routes_give_jobs_too(api: httpx.Client) -> None:
    for how in ({"json": {"prompt": "a", "background": True}}, {"headers": {"prefer": "respond-async"}}):
        answer = api.post("/v1/images/generations", **{"json": {"prompt": "a"}, **how})  # type: ignore[arg-type]
        assert answer.status_code == 202
        assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
        assert ended(api, answer.json()["id"])["status"] == "completed"


def test_an_edit_can_be_a_job(tmp_path: Path) -> None:
    with served(tmp_path) as api:
        request = {"prompt": "blue", "images": [{"image_url": data_url(drawn())}], "response_format": "url"}
        answer = api.post("/v1/jobs", json={"type": "image.edit", "request": request})
        assert answer.status_code == 202, answer.text
        job = ended(api, answer.json()["id"])
        assert job["type"] == "image.edit" and job["status"] == "completed", job
        assert api.get(job["result"]["data"][0]["url"]).headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "type"),
        ({"type": "video"}, "type"),
        ({"type": "image.generation"}, "request"),
        ({"type": "image.generation", "request": {}}, "request.prompt"),
        ({"type": "image.generation", "request": {"prompt": "a", "n": 0}}, "request.n"),
        ({"type": "image.generation", "request": {"prompt": "a", "colour": 1}}, "request.colour"),
        ({"type": "image.generation", "request": {"prompt": "a", "output_format": "gif"}}, "request.output_format"),
        ({"type": "image.generation", "request": {"prompt": "a"}, "priority": 11}, "priority"),
        ({"type": "image.generation", "request": {"prompt": "a"}, "more": 1}, "more"),
        ({"type": "image.edit", "request": {"prompt": "a"}}, "request.images"),
    ],
)
def test_what_is_wrong_is_said_where_it_is(api: httpx.Client, body: Json, param: str) -> None:
    failed(api.post("/v1/jobs", json=body), 400, param=param)


def test_events_tell_of_progress_and_the_end(api: httpx.Client) -> None:
    id = give(api, "sleep=0.03")["id"]
    found = followed(api, id)
    assert [name for name, _ in found[:-1]] == ["job.progress"] * (len(found) - 1)
    done = [data["done"] for _, data in found[:-1]]
    assert done == sorted(set(done)) and len(done) > 3 and found[0][1]["total"] == 10
    name, data = found[-1]
    assert name == "job.completed" and data["job"] == api.get(f"/v1/jobs/{id}").json()


def test_whoever_comes_late_or_again_gets_what_there_is(api: httpx.Client) -> None:
    id = give(api, "sleep=0.2")["id"]
    with api.stream("GET", f"/v1/jobs/{id}/events") as answer:
        lines = answer.iter_lines()
        last = next(line[4:] for line in lines if line.startswith("id: "))
    assert last.endswith(".0")
    again = followed(api, id, **{"last-event-id": last})
    assert again[0][1].get("done", 99) > int(last.partition(".")[0])
    assert [name for name, _ in followed(api, id)] == ["job.completed"], "it had ended"


def test_previews_reach_also_those_who_come_later(api: httpx.Client) -> None:
    body = {"prompt": "sleep=0.15", "stream": True, "partial_images": 2, "seed": 1}
    with api.stream("POST", "/v1/images/generations", json=body) as answer:
        coming = events(answer.iter_lines())
        name, data = next(coming)
        assert name == "image_generation.partial_image" and data["partial_image_index"] == 0
        [job] = api.get("/v1/jobs").json()["data"]
        assert job["status"] == "in_progress"
        names = [name for name, _ in coming]
    assert names == ["image_generation.partial_image", "image_generation.completed"]


def test_cancelling_stops_the_work(api: httpx.Client, slow_log: Path) -> None:
    id = give(api, "sleep=0.1", num_inference_steps=100, seed=7)["id"]
    until(lambda: len(steps(slow_log)) > 2)
    answer = api.post(f"/v1/jobs/{id}/cancel")
    at = time.time()
    assert answer.status_code == 200 and answer.json()["id"] == id
    job = ended(api, id)
    assert job["status"] == "cancelled" and job["error"]["code"] == "cancelled" and job["result"] is None
    assert [step for step in steps(slow_log) if step.time > at + 0.25] == []
    assert api.post(f"/v1/jobs/{id}/cancel").json()["status"] == "cancelled"
    assert [name for name, _ in followed(api, id)] == ["job.cancelled"]


def test_what_waits_is_cancelled_at_once_and_what_is_done_stays(tmp_path: Path, slow_log: Path) -> None:
    with served(tmp_path, default_model=SLOW, slots=1) as api:
        first, second = give(api, "sleep=0.05"), give(api, "never", seed=99)
        assert second["status"] == "queued"
        assert api.post(f"/v1/jobs/{second['id']}/cancel").json()["status"] == "cancelled"
        assert ended(api, first["id"])["status"] == "completed"
        assert api.post(f"/v1/jobs/{first['id']}/cancel").json()["status"] == "completed"
    assert 99 not in {step.seed for step in steps(slow_log)}


def test_a_failed_job_says_why(api: httpx.Client) -> None:
    job = ended(api, give(api, "fail")["id"])
    assert job["status"] == "failed" and job["error"]["type"] == "server_error"
    assert "as the prompt says" not in json.dumps(job), "inner detail is not told"
    [(name, data)] = followed(api, job["id"])
    assert name == "job.failed" and data["job"]["error"] == job["error"]


def test_pages(api: httpx.Client) -> None:
    ids = [give(api, "a")["id"] for _ in range(5)]
    for id in ids:
        ended(api, id)
    first = api.get("/v1/jobs", params={"limit": 3}).json()
    assert [job["id"] for job in first["data"]] == ids[:1:-1] and first["has_more"]
    rest = api.get("/v1/jobs", params={"after": first["last_id"], "status": "completed"}).json()
    assert [job["id"] for job in rest["data"]] == ids[1::-1] and not rest["has_more"]
    assert api.get("/v1/jobs", params={"status": "failed"}).json()["data"] == []
    failed(api.get("/v1/jobs", params={"after": "job_x"}), 404)
    failed(api.get("/v1/jobs", params={"limit": 0}), 400)


def test_jobs_that_are_not_there(api: httpx.Client) -> None:
    for id in ("job_x", "x", "job_" + "a" * 99, "job_%F0%9F%A6%8A"):
        failed(api.get(f"/v1/jobs/{id}"), 404)
        failed(api.get(f"/v1/jobs/{id}/events"), 404)
        failed(api.post(f"/v1/jobs/{id}/cancel"), 404)


def test_each_client_sees_its_own_jobs_and_an_operator_all(tmp_path: Path) -> None:
    with served(tmp_path, default_model=SLOW, admin_key="operator") as api:
        database = api.app.state.database  # type: ignore[attr-defined]
        (_, anna), (_, bert) = new_key(database), new_key(database)
        body = {"type": "image.generation", "request": {"prompt": "a"}}
        id = api.post("/v1/jobs", json=body, headers=bearer(anna)).json()["id"]
        for path in ("", "/events"):
            failed(api.get(f"/v1/jobs/{id}{path}", headers=bearer(bert)), 404)
        failed(api.post(f"/v1/jobs/{id}/cancel", headers=bearer(bert)), 404)
        assert api.get("/v1/jobs", headers=bearer(bert)).json()["data"] == []
        for token in (anna, "operator"):
            assert [job["id"] for job in api.get("/v1/jobs", headers=bearer(token)).json()["data"]] == [id]
        failed(api.post("/v1/jobs", json={**body, "priority": 1}, headers=bearer(anna)), 403)
        assert api.post("/v1/jobs", json={**body, "priority": 1}, headers=bearer("operator")).status_code == 202
        failed(api.get("/v1/jobs"), 401)


def test_the_most_urgent_job_is_done_first(tmp_path: Path, slow_log: Path) -> None:
    with served(tmp_path, default_model=SLOW, slots=1) as api:
        give(api, "sleep=0.03", seed=0)
        ids = [give(api, "a", priority=priority, seed=10 + priority)["id"] for priority in (-5, 0, 5)]
        for id in ids:
            ended(api, id)
    assert [step.seed for step in steps(slow_log) if step.what == "begin"] == [0, 15, 10, 5]


def test_many_pictures_of_a_job_are_given_as_files(api: httpx.Client) -> None:
    job = ended(api, give(api, "a", n=3, seed=5, response_format="b64_json")["id"])
    files = [base64.b64decode(item["b64_json"]) for item in job["result"]["data"]]
    assert len(set(files)) == 3 and job["result"]["imagewright"]["job"] == job["id"]
