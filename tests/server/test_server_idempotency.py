"""Idempotency-Key: a retry makes nothing twice, pays nothing twice, and gets the same bytes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from databases import database, postgres  # noqa: F401
from gatehouse import CENT, Paid, bearer, entered, gateway, key_row, new_key, server
from httpx import Response

from imagewright.database import Database
from imagewright.errors import ProviderError
from imagewright.server import idempotency, jobs
from imagewright.server.errors import ApiError
from imagewright.server.idempotency import Once
from imagewright.server.security import EVERYBODY

GENERATE = "/v1/images/generations"
BODY = {"prompt": "a fox", "response_format": "b64_json"}
PRICES = {"alpha/m": {"image": 0.01}}


def test_20_at_once_are_one_job_and_one_charge(tmp_path: Path) -> None:
    go = threading.Event()

    def act(request: Any, watch: Any) -> dict[str, Any]:
        go.wait(5)
        return {}

    alpha = Paid("alpha", act)
    with server(tmp_path, alpha, prices=PRICES) as client:
        database_of_it: Database = client.app.state.database  # type: ignore[attr-defined]
        caller, token = new_key(database_of_it, budget=5 * CENT)
        headers = bearer(token, **{"Idempotency-Key": "abc"})

        def one(_: int) -> Response:
            return client.post(GENERATE, json=BODY, headers=headers)

        with ThreadPoolExecutor(20) as threads:
            asked = [threads.submit(one, index) for index in range(20)]
            while sum(each.done() for each in asked) < 19:
                time.sleep(0.01)
            go.set()
            answers = [each.result() for each in asked]
        [first] = [answer for answer in answers if answer.status_code == 200]
        for answer in answers:
            if answer is not first:
                assert (answer.status_code, answer.json()["error"]["code"]) == (409, "idempotency_key_in_use")
                assert answer.headers["retry-after"] == "1"
        with ThreadPoolExecutor(20) as threads:
            assert {answer.content for answer in threads.map(one, range(20))} == {first.content}
        assert alpha.calls == 1
        assert (key_row(database_of_it, caller).spent, key_row(database_of_it, caller).reserved) == (CENT, 0)

    with server(tmp_path, alpha, prices=PRICES) as client:  # started again
        assert client.post(GENERATE, json=BODY, headers=headers).content == first.content
        changed = client.post(GENERATE, json={**BODY, "prompt": "a wolf"}, headers=headers)
        assert (changed.status_code, changed.headers["x-should-retry"]) == (422, "false")
        assert alpha.calls == 1


def test_a_failure_is_repeated_as_it_was_and_not_done_again(tmp_path: Path) -> None:
    def act(request: Any, watch: Any) -> dict[str, Any]:
        raise ProviderError("It is down.", status=503)

    alpha = Paid("alpha", act)
    with server(tmp_path, alpha) as client:
        answers = [client.post(GENERATE, json=BODY, headers={"Idempotency-Key": "x"}) for _ in range(3)]
    assert {(answer.status_code, answer.content) for answer in answers} == {(502, answers[0].content)}
    assert alpha.calls == 1


def test_a_refusal_holds_no_key(tmp_path: Path) -> None:
    with server(tmp_path, Paid("alpha"), prices=PRICES) as client:
        caller, token = new_key(client.app.state.database, budget=0)  # type: ignore[attr-defined]
        headers = bearer(token, **{"Idempotency-Key": "x"})
        assert client.post(GENERATE, json=BODY, headers=headers).status_code == 429
        with client.app.state.database.write() as connection:  # type: ignore[attr-defined]
            from imagewright.server import keys

            keys.change(connection, caller.key_id, {"budget": CENT})
        assert client.post(GENERATE, json=BODY, headers=headers).status_code == 200
        assert client.post(GENERATE, json=BODY, headers=headers).status_code == 200  # though nothing is left


def test_keys_are_the_callers_own_and_bodies_are_compared_by_what_they_say(tmp_path: Path) -> None:
    alpha = Paid("alpha")
    with server(tmp_path, alpha) as client:
        tokens = [new_key(client.app.state.database)[1] for _ in range(2)]  # type: ignore[attr-defined]
        for token in tokens:
            told = bearer(token, **{"Idempotency-Key": "x", "content-type": "application/json"})
            one = client.post(GENERATE, content=b'{"prompt": "a", "n": 1}', headers=told)
            same = client.post(GENERATE, content=b'{"n":1,"prompt":"\\u0061"}', headers=told)
            assert (one.status_code, same.content) == (200, one.content)
        assert alpha.calls == 2
        for wrong in ("", "x" * 256, "\xe4"):
            headers = {"authorization": f"Bearer {tokens[0]}", "Idempotency-Key": wrong.encode("latin-1")}
            assert client.post(GENERATE, json=BODY, headers=headers).status_code == 400


def once(name: str = "x", digest: str = "d") -> Once:
    return Once(name, digest)


def test_one_of_many_threads_gets_the_job(database: Database) -> None:  # noqa: F811
    database.create()
    found = gateway(Paid("alpha"))
    first = entered(found, database, EVERYBODY)

    def one(index: int) -> str:
        job = jobs.Job(id=f"job_{index}", owner="local", kind="generate", asked=None, model="m", order={})
        try:
            with database.write() as connection:
                if (known := idempotency.earlier(connection, database.insert, once(), job)) is not None:
                    return known.id
                jobs.add(connection, job, 1000)
                return "new"
        except ApiError as error:
            return str(error.code)

    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(one, range(40)))
    assert sorted(set(told)) == ["idempotency_key_in_use", "new"] and told.count("new") == 1
    assert first.id not in told


def test_after_a_day_a_key_is_free_again(database: Database) -> None:  # noqa: F811
    database.create()
    found = gateway(Paid("alpha"))
    now = time.time()
    jobs_of_days = [entered(found, database, EVERYBODY, begun=False) for _ in range(2)]
    with database.write() as connection:
        for job, then in zip(jobs_of_days, (now, now + idempotency.KEPT + 1), strict=True):
            assert idempotency.earlier(connection, database.insert, once(digest=job.id), job, then) is None
        with pytest.raises(ApiError) as refused:
            idempotency.earlier(connection, database.insert, once(digest="other"), jobs_of_days[0], now + 1)
        assert refused.value.status == 422


def test_a_job_in_the_background_is_given_again_while_it_is_at_work(database: Database) -> None:  # noqa: F811
    database.create()
    job = jobs.Job(id="job_a", owner="local", kind="generate", asked=None, model="m", order={}, background=True)
    with database.write() as connection:
        assert idempotency.earlier(connection, database.insert, once(), job) is None
        jobs.add(connection, job, 1000)
    with database.write() as connection:
        again = idempotency.earlier(connection, database.insert, once(), job)
    assert again is not None and again.id == "job_a" and again.is_open
