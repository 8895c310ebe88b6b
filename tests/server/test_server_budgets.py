"""Budgets and rates: whatever happens at the same time, no key gets more than it has, and none loses anything."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import database, postgres  # noqa: F401
from gatehouse import CENT, Paid, bearer, entered, gateway, key_row, new_key, server

from imagewright.database import Database
from imagewright.errors import ProviderError
from imagewright.server import allowance, jobs, keys, usage
from imagewright.server.admin import to_json
from imagewright.server.errors import ApiError
from imagewright.server.gateway import Gateway
from imagewright.server.jobs import Job
from imagewright.server.security import Caller
from imagewright.server.usage import Bill

PRICES = {"alpha/m": {"image": 0.01}}
ROUNDS = int(os.environ.get("IMAGEWRIGHT_BUDGET_ROUNDS", "3"))
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()  # a Sunday
DAY = 86_400


@pytest.fixture
def tables(database: Database) -> Database:  # noqa: F811
    database.create()
    return database


def ended(found: Gateway, database: Database, job: Job, bill: Bill) -> bool:  # noqa: F811
    """End a job as its worker does; False where somebody else did."""
    state = jobs.DONE if bill.status == 200 else jobs.FAILED
    with database.write() as connection:
        if not jobs.finish(connection, job, state, cost=bill.cost):
            return False
        found.settle(connection, job, bill)
    return True


def cancel(found: Gateway, database: Database, job: Job) -> None:  # noqa: F811
    """Cancel a job that nobody has begun."""
    with database.write() as connection:
        assert jobs.cancel(connection, job.id, ApiError(499, "Cancelled.", code="cancelled"))
        found.settle(connection, job, usage.CANCELLED)


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_200_requests_at_the_limit_never_overspend(tables: Database, turn: int) -> None:
    dice = random.Random(turn)
    found = gateway(Paid("alpha"), prices=PRICES)
    budget = dice.randrange(20, 60) * CENT
    caller, _ = new_key(tables, budget=budget, period="total")
    other = Database(tables.url.render_as_string(hide_password=False))  # as another process has it
    fates = [dice.choice(["done", "done", "cheap", "failed", "cancelled"]) for _ in range(200)]

    def one(index: int, fate: str) -> tuple[str, int]:
        base = (tables, other)[index % 2]
        try:
            job = entered(found, base, caller, begun=fate != "cancelled")
        except ApiError as error:
            assert (error.status, error.code, error.retry) == (429, "insufficient_quota", False)
            return "refused", 0
        now = key_row(base, caller)
        assert now.spent + now.reserved <= budget
        if fate == "cancelled":
            cancel(found, base, job)
            return fate, 0
        cost = {"done": job.reserved, "cheap": dice.randrange(job.reserved), "failed": 0}[fate]
        ended(found, base, job, Bill(images=1, cost=cost, status=500 if fate == "failed" else 200))
        return fate, cost

    with ThreadPoolExecutor(64) as threads:
        told = list(threads.map(one, range(200), fates))
    other.close()
    key = key_row(tables, caller)
    assert key.reserved == 0
    assert key.spent == sum(cost for _, cost in told) <= budget
    accepted = [fate for fate, _ in told if fate != "refused"]
    assert len(accepted) * CENT >= budget  # nobody was refused while there was enough
    with tables.read() as connection:
        [total] = usage.totals(connection, "key")
    assert (total["requests"], total["cost"]) == (len(accepted), key.spent)


def test_the_keys_row_alone_holds_the_budget(tables: Database) -> None:
    """Without the lock that those who add to the queue of Postgres share."""
    caller, _ = new_key(tables, budget=20 * CENT, requests=1000)

    def one(number: int) -> bool:
        job = Job(
            id=f"job_{number}", owner=caller.key_id, kind="generate", asked=None, model="m", order={}, reserved=CENT
        )
        try:
            with tables.write() as connection:
                allowance.take(connection, caller, job)
        except ApiError:
            return False
        return True

    with ThreadPoolExecutor(64) as threads:
        assert sum(threads.map(one, range(200))) == 20
    assert key_row(tables, caller).reserved == 20 * CENT


def test_the_last_cent_can_be_spent_and_no_more(tables: Database) -> None:
    found = gateway(Paid("alpha"), prices=PRICES)
    caller, _ = new_key(tables, budget=3 * CENT)
    first, second = (entered(found, tables, caller) for _ in range(2))
    with pytest.raises(ApiError, match=r"0\.01 are free.*may cost \$0\.02"):
        entered(found, tables, caller, n=2)
    third = entered(found, tables, caller)
    with pytest.raises(ApiError):
        entered(found, tables, caller)
    for job in (first, second, third):
        assert ended(found, tables, job, Bill(cost=CENT))
    assert key_row(tables, caller).spent == 3 * CENT
    with pytest.raises(ApiError):
        entered(found, tables, caller)


def test_a_dearer_bill_than_the_estimate_counts_in_full(tables: Database) -> None:
    found = gateway(Paid("alpha"), prices=PRICES)
    caller, _ = new_key(tables, budget=2 * CENT)
    ended(found, tables, entered(found, tables, caller), Bill(cost=5 * CENT))
    assert key_row(tables, caller).spent == 5 * CENT
    with pytest.raises(ApiError):
        entered(found, tables, caller)


def test_a_job_is_settled_once(tables: Database) -> None:
    found = gateway(Paid("alpha"), prices=PRICES)
    caller, _ = new_key(tables, budget=9 * CENT)
    job = entered(found, tables, caller, begun=False)
    cancel(found, tables, job)
    with tables.write() as connection:
        assert not jobs.finish(connection, job, jobs.DONE, cost=CENT)
    key = key_row(tables, caller)
    assert (key.spent, key.reserved) == (0, 0)
    with pytest.raises(sa.exc.IntegrityError), tables.write() as connection:
        found.settle(connection, job, Bill(cost=CENT))


@pytest.mark.parametrize(("period", "seconds"), [("day", DAY / 2), ("week", DAY), ("month", 9 * DAY), ("total", None)])
def test_a_budget_begins_anew_with_its_period(
    tables: Database, period: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = NOON
    monkeypatch.setattr("time.time", lambda: now)
    found = gateway(Paid("alpha"), prices=PRICES)
    caller, _ = new_key(tables, budget=2 * CENT, period=period)
    ended(found, tables, entered(found, tables, caller), Bill(cost=CENT))
    entered(found, tables, caller)  # still at work when the period ends
    with pytest.raises(ApiError):
        entered(found, tables, caller)
    now += 300 * DAY if seconds is None else seconds
    if seconds is None:
        with pytest.raises(ApiError):
            entered(found, tables, caller)
        return
    assert to_json(key_row(tables, caller))["spent"] == 0  # also before the first order of the new period
    entered(found, tables, caller)
    with pytest.raises(ApiError):  # what is at work still counts
        entered(found, tables, caller)
    assert key_row(tables, caller).spent == 0


def test_rates_fill_evenly(tables: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    now = NOON
    monkeypatch.setattr("time.time", lambda: now)
    found = gateway(Paid("alpha"))
    caller, _ = new_key(tables, requests=6)
    for _ in range(6):
        entered(found, tables, caller)
    with pytest.raises(ApiError) as refused:
        entered(found, tables, caller)
    assert (refused.value.status, refused.value.code, refused.value.retry) == (429, "rate_limit_exceeded", None)
    assert refused.value.headers() == {"retry-after": "10"}
    now += 10
    entered(found, tables, caller)
    with pytest.raises(ApiError):
        entered(found, tables, caller)
    now += 3600
    for _ in range(6):
        entered(found, tables, caller)


def test_pictures_are_counted_one_by_one(tables: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    now = NOON
    monkeypatch.setattr("time.time", lambda: now)
    found = gateway(Paid("alpha"))
    caller, _ = new_key(tables, images=5)
    entered(found, tables, caller, n=3)
    with pytest.raises(ApiError) as refused:
        entered(found, tables, caller, n=3)
    assert refused.value.headers() == {"retry-after": "12"}
    entered(found, tables, caller, n=2)
    with pytest.raises(ApiError, match="6 were asked for") as refused:
        entered(found, tables, caller, n=6)
    assert refused.value.headers() == {"x-should-retry": "false"}


def test_rates_hold_between_threads(tables: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: NOON)
    found = gateway(Paid("alpha"))
    caller, _ = new_key(tables, requests=17)

    def one(_: int) -> bool:
        try:
            entered(found, tables, caller)
        except ApiError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(one, range(60))) == 17


def test_work_at_the_same_time_is_bounded(tables: Database) -> None:
    found = gateway(Paid("alpha"))
    caller, _ = new_key(tables, parallel=3)
    open_jobs: list[Job] = []

    def one(_: int) -> None:
        try:
            open_jobs.append(entered(found, tables, caller))
        except ApiError as error:
            assert error.headers() == {"retry-after": "1"}

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(40)))
    assert len(open_jobs) == 3
    ended(found, tables, open_jobs[0], Bill())
    entered(found, tables, caller)
    with pytest.raises(ApiError):
        entered(found, tables, caller)


@pytest.mark.parametrize("change", [{"disabled": True}, {"expires": 1.0}])
def test_a_key_that_is_gone_accepts_nothing_even_if_a_process_still_knows_it(
    tables: Database, change: dict[str, object]
) -> None:
    found = gateway(Paid("alpha"))
    caller, _ = new_key(tables)
    with tables.write() as connection:
        keys.change(connection, caller.key_id, change)
    with pytest.raises(ApiError) as refused:
        entered(found, tables, caller)
    assert refused.value.status == 401


def test_callers_without_a_key_have_no_bounds(tables: Database) -> None:
    found = gateway(Paid("alpha"))
    job = entered(found, tables, Caller("local"))
    assert ended(found, tables, job, Bill(cost=None))


@pytest.mark.parametrize(
    ("money", "text"), [(0, "0.00"), (1, "0.000001"), (CENT, "0.01"), (1_500_000, "1.50"), (12_345_678, "12.345678")]
)
def test_money_is_told_to_the_last_unit(money: int, text: str) -> None:
    assert allowance.dollars(money) == text


def test_over_http_the_money_and_the_rates_are_told(tmp_path: Path) -> None:
    def act(request: object, watch: object) -> dict[str, float]:
        if alpha.calls == 2:
            raise ProviderError("It is down.", status=503, retryable=True)
        return {"cost": 0.004}

    alpha = Paid("alpha", act)
    with server(tmp_path, alpha, prices=PRICES) as client:
        database_of_it: Database = client.app.state.database  # type: ignore[attr-defined]
        caller, token = new_key(database_of_it, budget=CENT + 4000, requests=60, images=60)
        body = {"prompt": "a fox", "response_format": "b64_json"}
        good = client.post("/v1/images/generations", json=body, headers=bearer(token))
        assert good.status_code == 200, good.text
        told = {name: value for name, value in good.headers.items() if name.startswith(("x-rate", "x-imagewright"))}
        assert told["x-imagewright-estimate"] == "0.01"
        assert told["x-imagewright-cost"] == "0.004"
        assert told["x-ratelimit-limit-requests"] == told["x-ratelimit-limit-images"] == "60"
        assert told["x-ratelimit-remaining-requests"] == "59"
        assert told["x-ratelimit-reset-requests"] == "1s"
        bad = client.post("/v1/images/generations", json=body, headers=bearer(token))
        assert bad.status_code == 502
        key = key_row(database_of_it, caller)
        assert (key.spent, key.reserved) == (4000, 0)
        client.post("/v1/images/generations", json=body, headers=bearer(token))
        refused = client.post("/v1/images/generations", json=body, headers=bearer(token))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        assert refused.headers["x-should-retry"] == "false"
        assert alpha.calls == 3
