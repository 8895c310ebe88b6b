"""The usage log: one row for each order, whatever became of it, and not a word of what was asked for."""

from __future__ import annotations

import json
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from databases import database, postgres  # noqa: F401
from gatehouse import CENT, Paid, bearer, entered, gateway, new_key, server
from typer.testing import CliRunner

from imagewright.cli import app as cli
from imagewright.database import Database
from imagewright.errors import ModerationError
from imagewright.server import usage
from imagewright.server.usage import Bill

GENERATE = "/v1/images/generations"
WORDS = "a very secret fox"


def act(request: Any, watch: Any) -> dict[str, Any]:
    """Refuses wolves."""
    if "wolf" in request.prompt:
        raise ModerationError("No wolves.", status=400)
    return {"cost": 0.02, "usage": {"input_tokens": 7, "output_tokens": 100}}


def test_every_order_has_a_row_and_nobody_reads_the_words(tmp_path: Path) -> None:
    with server(tmp_path, Paid("alpha", act)) as client:
        _, token = new_key(client.app.state.database)  # type: ignore[attr-defined]
        _, other = new_key(client.app.state.database)  # type: ignore[attr-defined]
        body = {"prompt": WORDS, "n": 2, "size": "16x16", "quality": "low"}
        done = client.post(GENERATE, json=body, headers=bearer(token))
        assert done.status_code == 200, done.text
        bad = client.post(GENERATE, json={"prompt": "a secret wolf"}, headers=bearer(token))
        assert bad.status_code == 400
        refused, row = client.get("/v1/usage", headers=bearer(token)).json()["data"]
        wanted = {"images": 2, "n": 2, "size": "16x16", "quality": "low", "cost": 0.02, "status": 200, "error": None}
        wanted |= {"tokens_in": 7, "tokens_out": 100, "model": "alpha/m", "kind": "generate"}
        assert {name: row[name] for name in wanted} == wanted
        assert row["request_id"] == done.headers["x-request-id"]
        assert (refused["status"], refused["error"], refused["cost"]) == (400, "moderation_blocked", 0)
        [total] = client.get("/v1/usage?by=model", headers=bearer(token)).json()["data"]
        assert (total["requests"], total["failed"], total["images"], total["cost"]) == (2, 1, 2, 0.02)
        assert client.get("/v1/usage", headers=bearer(other)).json()["data"] == []
        for wrong in ("by=prompt", "since=x", "limit=0", "limit=99999", "key=1"):
            assert client.get(f"/v1/usage?{wrong}", headers=bearer(token)).status_code == 400, wrong
    rows = sqlite3.connect(tmp_path / "imagewright.db").execute("SELECT * FROM usage").fetchall()
    assert len(rows) == 2 and "secret" not in str(rows)


def test_the_operator_sees_all(tmp_path: Path) -> None:
    with server(tmp_path, Paid("alpha"), admin_key="operator") as client:
        keys = [new_key(client.app.state.database, name=name) for name in ("anna", "bob")]  # type: ignore[attr-defined]
        for _, token in keys:
            assert client.post(GENERATE, json={"prompt": "x"}, headers=bearer(token)).status_code == 200
        url = "/v1/admin/usage"
        by_key = client.get(f"{url}?by=key", headers=bearer("operator")).json()["data"]
        assert {row["key"] for row in by_key} == {caller.key_id for caller, _ in keys}
        assert {row["unpriced"] for row in by_key} == {1}
        one = client.get(f"{url}?key={keys[0][0].key_id}", headers=bearer("operator")).json()["data"]
        assert [row["key"] for row in one] == [keys[0][0].key_id]
        assert client.get(url, headers=bearer(keys[0][1])).status_code == 403


def test_sums_by_day_model_and_key(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    database.create()
    found = gateway(Paid("alpha"))
    caller, _ = new_key(database)
    begin = datetime(2026, 11, 20, 23, 0, tzinfo=UTC).timestamp()
    for hours, cost in ((0, CENT), (2, None), (3, 3 * CENT)):
        now = begin + hours * 3600
        monkeypatch.setattr("time.time", lambda now=now: now)
        job = entered(found, database, caller)
        with database.write() as connection:
            found.settle(connection, job, Bill(images=1, seconds=0.5, cost=cost, tokens=(1, 2)))
    with database.read() as connection:
        by_day = usage.totals(connection, "day", since=0.0)
        assert [(row["day"], row["requests"], row["cost"]) for row in by_day] == [
            ("2026-11-20", 1, CENT),
            ("2026-11-21", 2, 3 * CENT),
        ]
        assert [row["unpriced"] for row in by_day] == [0, 1]
        [by_model] = usage.totals(connection, "model", caller.key_id)
        assert (by_model["seconds"], by_model["tokens_out"]) == (1.5, 6)
        assert usage.totals(connection, "key", since=begin + 3600, until=begin + 2.5 * 3600)[0]["requests"] == 1
        assert usage.totals(connection, "key", "key_of_nobody") == []
        assert len(usage.rows(connection, limit=2)) == 2


def test_usage_on_the_command_line(tmp_path: Path) -> None:
    with server(tmp_path, Paid("alpha", act)) as client:
        client.post(GENERATE, json={"prompt": WORDS})
        time.sleep(0.01)

    def run(*words: str) -> str:
        done = CliRunner().invoke(cli, ["usage", *words, "--folder", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert json.loads(run("--json"))["usage"][0]["cost"] == 0.02
    assert "$0.0200" in run("--by", "day", "--since", "1")
    assert "alpha" not in run("--since", "2099-01-01")
    assert "alpha/m" in run("--since", "2020-01-01") and WORDS not in run()
    for wrong in (["--since", "soon"], ["--by", "prompt"]):
        assert CliRunner().invoke(cli, ["usage", *wrong, "--folder", str(tmp_path)]).exit_code != 0
