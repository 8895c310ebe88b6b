"""Virtual keys: only a hash is kept, what is gone is gone at once, and nobody does more than a key allows."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest
from gatehouse import Paid, bearer, new_key, server
from typer.testing import CliRunner

from imagewright.cli import app as cli
from imagewright.database import Database
from imagewright.errors import RequestError
from imagewright.server import keys
from imagewright.server.errors import ApiError
from imagewright.server.keys import Keys
from imagewright.server.settings import Settings

GENERATE = "/v1/images/generations"
BODY = {"prompt": "a fox", "response_format": "b64_json"}


@pytest.fixture
def tables(tmp_path: Path) -> Database:
    found = Database(f"sqlite:///{tmp_path}/test.db")
    found.create()
    return found


def asked(found: Keys, token: str | None) -> str:
    """Whose token it is."""
    return asyncio.run(found.caller(token)).key_id


def test_a_token_is_kept_as_a_hash_only(tables: Database, tmp_path: Path) -> None:
    _, token = new_key(tables)
    assert token.startswith("sk-iw-") and len(token) > 40
    tables.close()
    stored = "\n".join(sqlite3.connect(tmp_path / "test.db").iterdump())
    assert "key_" in stored
    assert token not in stored and token[:16] not in stored
    assert token not in repr(keys.keys)


def test_without_any_key_everybody_on_this_machine_is_served_until_there_is_one(tables: Database) -> None:
    found = Keys(tables, Settings(folder=Path()))
    assert asked(found, None) == "local"
    assert asked(found, "sk-anything") == "local"
    caller, token = new_key(tables)
    found.forget()
    assert asked(found, token) == caller.key_id
    for wrong in (None, "", "sk-anything", token[:-1], token + "x", token.upper(), "' OR 1=1 --", "key_%"):
        with pytest.raises(ApiError) as refused:
            asked(found, wrong)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")


def test_a_key_made_elsewhere_counts_within_seconds(tables: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Keys(tables, Settings(folder=Path()))
    assert asked(found, None) == "local"
    new_key(tables)
    monkeypatch.setattr(keys, "FRESH", 0.0)
    found._none_until = 0.0  # its seconds are over
    with pytest.raises(ApiError):
        asked(found, None)


def test_the_operators_key_does_everything(tables: Database) -> None:
    found = Keys(tables, Settings(folder=Path(), admin_key="a long random text"))
    assert asyncio.run(found.caller("a long random text")).is_admin
    for wrong in (None, "a long random tex", "ä long random text"):
        with pytest.raises(ApiError):
            asked(found, wrong)


@pytest.mark.parametrize("change", [{"disabled": True}, {"expires": 1.0}])
def test_a_key_that_is_taken_away_is_gone_at_once(tables: Database, change: dict[str, object]) -> None:
    caller, token = new_key(tables)
    found = Keys(tables, Settings(folder=Path()))
    assert asked(found, token) == caller.key_id
    with tables.write() as connection:
        keys.change(connection, caller.key_id, change)
    found.forget()
    with pytest.raises(ApiError):
        asked(found, token)


def test_rotation_gives_a_new_token_to_the_same_key(tables: Database) -> None:
    caller, old = new_key(tables, budget=5, name="anna")
    with tables.write() as connection:
        key, token = keys.rotate(connection, caller.key_id)
    assert (key.id, key.name, key.budget) == (caller.key_id, "anna", 5)
    found = Keys(tables, Settings(folder=Path()))
    assert asked(found, token) == caller.key_id
    with pytest.raises(ApiError):
        asked(found, old)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": " "},
        {"name": "x" * 201},
        {"scopes": ("images", "root")},
        {"period": "year"},
        {"requests": 0},
        {"parallel": -1},
        {"budget": -1},
        {"budget": 10**16},
    ],
)
def test_a_key_that_makes_no_sense_is_refused(tables: Database, wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError), tables.write() as connection:
        keys.create(connection, **{"name": "anna", **wrong})


def test_what_known_tokens_are_remembered_is_bounded(tables: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "CACHED", 3)
    found = Keys(tables, Settings(folder=Path()))
    for _ in range(7):
        caller, token = new_key(tables)
        assert asked(found, token) == caller.key_id
    assert len(found._found) <= 3


def test_keys_over_http(tmp_path: Path) -> None:
    with server(tmp_path, Paid("alpha"), Paid("beta"), admin_key="operator") as client:
        operator = bearer("operator")
        asked_for = {"name": "anna", "models": ["beta/*"], "budget": 1.5, "period": "day", "requests": 10}
        made = client.post("/v1/admin/keys", json=asked_for, headers=operator)
        assert made.status_code == 201, made.text
        key, token = made.json(), made.json()["token"]
        assert {name: key[name] for name in asked_for} == asked_for
        anna = bearer(token)

        assert client.post(GENERATE, json=BODY).status_code == 401
        assert client.post(GENERATE, json=BODY, headers=bearer("sk-iw-wrong")).status_code == 401
        refused = client.post(GENERATE, json={**BODY, "model": "alpha/m"}, headers=anna)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
        unpriced = client.post(GENERATE, json={**BODY, "model": "beta/m"}, headers=anna)
        assert (unpriced.status_code, unpriced.json()["error"]["code"]) == (400, "price_unknown")

        url = f"/v1/admin/keys/{key['id']}"
        changed = client.patch(url, json={"budget": None, "models": None}, headers=operator)
        assert (changed.json()["budget"], changed.json()["models"], changed.json()["requests"]) == (None, None, 10)
        assert client.post(GENERATE, json={**BODY, "model": "alpha/m"}, headers=anna).status_code == 200

        listed = client.get("/v1/admin/keys", headers=operator).json()["data"]
        assert [one["id"] for one in listed] == [key["id"]]
        assert token not in json.dumps(listed) and client.get(url, headers=operator).json() == listed[0]

        again = client.post(f"{url}/rotate", headers=operator).json()
        assert client.post(GENERATE, json=BODY, headers=anna).status_code == 401
        assert client.post(GENERATE, json=BODY, headers=bearer(again["token"])).status_code == 200
        assert client.delete(url, headers=operator).json()["disabled"]
        assert client.post(GENERATE, json=BODY, headers=bearer(again["token"])).status_code == 401


@pytest.mark.parametrize("scopes", [["images"], ["admin"], ["images", "admin"]])
def test_scopes_say_which_routes_a_key_opens(tmp_path: Path, scopes: list[str]) -> None:
    with server(tmp_path, Paid("alpha"), admin_key="operator") as client:
        key = client.post("/v1/admin/keys", json={"name": "anna", "scopes": scopes}, headers=bearer("operator")).json()
        mine = bearer(key["token"])
        may_make, may_manage = "images" in scopes, "admin" in scopes
        routes = [("POST", "/v1/admin/keys"), ("GET", "/v1/admin/keys"), ("GET", "/v1/admin/usage")]
        routes += [("PATCH", f"/v1/admin/keys/{key['id']}"), ("GET", f"/v1/admin/keys/{key['id']}")]
        for method, url in routes:
            body = {"name": "mallory"} if method in ("POST", "PATCH") else None
            status = client.request(method, url, json=body, headers=mine).status_code
            assert status in ((200, 201) if may_manage else (403,)), (method, url)
        assert client.get("/v1/usage", headers=mine).status_code == (200 if may_make else 403)
        assert client.post(GENERATE, json=BODY, headers=mine).status_code == (200 if may_make else 403)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "x", "budget": -1},
        {"name": "x", "budget": "5"},
        {"name": "x", "digest": "00"},
        {"name": "x", "spent": 0},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["public"]},
        {"name": "x", "requests": 1.5},
    ],
)
def test_bodies_that_make_no_key(tmp_path: Path, body: dict[str, object]) -> None:
    with server(tmp_path, Paid("alpha")) as client:
        refused = client.post("/v1/admin/keys", json=body)
        assert refused.status_code == 400, refused.text
        assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
        assert client.get("/v1/admin/keys").json()["data"] == []


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    def run(*words: str) -> dict[str, object]:
        done = CliRunner().invoke(cli, [*words, "--folder", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if "--json" in words else {"text": done.stdout.strip()}

    made = run("keys", "create", "anna", "--budget", "2.5", "--period", "month", "--models", "alpha/*,x", "--json")
    assert (made["budget"], made["period"], made["models"]) == (2.5, "month", ["alpha/*", "x"])
    token = run("keys", "create", "bob", "--requests", "3", "--days", "1")["text"]
    with server(tmp_path, Paid("alpha")) as client:
        assert client.post(GENERATE, json=BODY).status_code == 401
        assert client.post(GENERATE, json=BODY, headers=bearer(str(token))).status_code == 200
    listed = run("keys", "list", "--json")["keys"]
    assert isinstance(listed, list) and [key["name"] for key in listed] == ["anna", "bob"]
    assert str(token) not in json.dumps(listed)
    changed = run("keys", "rotate", listed[1]["id"], "--json")
    assert changed["token"] != token
    run("keys", "disable", listed[1]["id"])
    table = str(run("keys", "list")["text"])
    assert "disabled" in table and "$2.50 month" in table and "3 requests/min" in table
    assert CliRunner().invoke(cli, ["keys", "disable", "key_none", "--folder", str(tmp_path)]).exit_code != 0
