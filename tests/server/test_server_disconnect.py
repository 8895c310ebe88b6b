"""Clients that go away: the work stops within a second, and nobody pays for it.

IMAGEWRIGHT_DISCONNECTS sets how many.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gatehouse import key_row, new_key
from processes import SLOW, states, steps, until
from served import served

from imagewright.server import jobs, usage

TIMES = int(os.environ.get("IMAGEWRIGHT_DISCONNECTS", "10"))
STEP = 0.05


@pytest.fixture
def api(tmp_path: Path) -> Iterator[httpx.Client]:
    prices = {SLOW: {"image": 0.01}}
    with served(tmp_path, default_model=SLOW, admin_key="operator", prices=prices, slots=2) as client:
        yield client


def left(api: httpx.Client, token: str, body: dict[str, Any], seconds: float, cut: bool = False) -> float:
    """Send a request and go away after `seconds`, perhaps in the middle of its body; when that was."""
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection((api.base_url.host, api.base_url.port or 0)) as connection:
        connection.sendall(head.encode() + (data[:-5] if cut else data))
        time.sleep(seconds)
    return time.time()


def test_the_work_stops_when_its_client_goes_away(api: httpx.Client, slow_log: Path) -> None:
    database = api.app.state.database  # type: ignore[attr-defined]
    caller, token = new_key(database, budget=1_000_000)
    chance, went = random.Random(3), {}
    for seed in range(TIMES):
        body = {"prompt": f"sleep={STEP}", "seed": seed, "num_inference_steps": 200, "stream": bool(seed % 2)}
        went[seed] = left(api, token, body, chance.uniform(0, 0.4))
    until(lambda: not set(states(database)) & set(jobs.OPEN), 5)
    time.sleep(2 * STEP)
    done = steps(slow_log)
    for seed, at in went.items():
        after = [step.time - at for step in done if step.seed == seed and step.time > at]
        assert len(after) <= 1 + 1 or max(after) < 1, f"{len(after)} steps, {max(after):.2f} s"
    assert not any(step.what == "end" for step in done)
    assert any(step.what == "step" for step in done)
    assert set(states(database)) == {jobs.CANCELLED} and len(states(database)) == TIMES
    key = key_row(database, caller)
    assert (key.reserved, key.spent) == (0, 0)
    with database.read() as connection:
        assert {row.status for row in connection.execute(usage.usage.select())} == {499}


def test_who_leaves_in_the_middle_of_the_request_has_asked_for_nothing(api: httpx.Client) -> None:
    database = api.app.state.database  # type: ignore[attr-defined]
    _, token = new_key(database)
    left(api, token, {"prompt": "a"}, 0.05, cut=True)
    assert states(database) == []


def test_who_waits_in_the_queue_leaves_it(api: httpx.Client, slow_log: Path) -> None:
    database = api.app.state.database  # type: ignore[attr-defined]
    caller, token = new_key(database, budget=1_000_000)
    headers = {"authorization": f"Bearer {token}"}
    slow = {"prompt": "sleep=0.05", "num_inference_steps": 30}
    for _ in range(2):
        api.post("/v1/jobs", json={"type": "image.generation", "request": slow}, headers=headers)
    left(api, token, {"prompt": "a", "seed": 77}, 0.1)
    until(lambda: jobs.CANCELLED in states(database), 1)
    until(lambda: states(database).count(jobs.DONE) == 2)
    assert 77 not in {step.seed for step in steps(slow_log)}
    key = key_row(database, caller)
    assert (key.reserved, key.spent) == (0, 20_000)


def test_who_leaves_while_the_order_is_accepted_leaves_nothing_behind(api: httpx.Client, slow_log: Path) -> None:
    database = api.app.state.database  # type: ignore[attr-defined]
    _, token = new_key(database)
    with database.write():  # so that accepting takes its time
        left(api, token, {"prompt": "sleep=0.05", "seed": 1, "num_inference_steps": 200}, 0.2)
        time.sleep(0.2)
    until(lambda: states(database) == [jobs.CANCELLED], 5)
    assert len(steps(slow_log)) < 20
