"""Default deny: every route of the application as it runs says whom it lets in, and lets in nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from gatehouse import bearer
from served import data_url, drawn, failed, served
from starlette.responses import Response
from starlette.routing import Mount
from strangers import ADMIN, DRAW, TALK, Route, belongings, body_of, counts, new_key, routes

from imagewright.server.app import create_app
from imagewright.server.security import Operator, Public
from imagewright.server.settings import Settings

SEEN_BY_OPERATORS = ("job_id", "response_id")  # of others: the queue is theirs; pictures and files are not
PUBLIC = {
    ("GET", "/health"),
    ("GET", "/v1/openapi.json"),
    ("GET", "/v1/images/files/{name}"),
    ("HEAD", "/v1/images/files/{name}"),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server"), admin_key=ADMIN) as found:
        yield found


def undeclared(app: FastAPI) -> list[Route]:
    """The routes that do not say, once, whom they let in."""
    return [route for route in routes(app) if len(route.scopes) != 1]


def test_every_route_declares_its_scope(tmp_path: Path) -> None:
    app = create_app(Settings(folder=tmp_path))
    assert undeclared(app) == []
    assert len(routes(app)) > 40
    assert {(route.method, route.path) for route in routes(app) if route.scopes == ("public",)} == PUBLIC


def test_the_test_sees_a_route_that_declares_none(tmp_path: Path) -> None:
    app = create_app(Settings(folder=tmp_path))
    inner, outer = APIRouter(), APIRouter()

    @inner.get("/open")
    def _open() -> None: ...

    @inner.get("/both", dependencies=[Public])
    def _both(caller: Operator) -> None: ...

    outer.include_router(inner, prefix="/in")
    app.include_router(outer, prefix="/v1")
    app.add_api_route("/plain", _open, methods=["POST"])
    app.router.routes.append(Mount("/files", app=FastAPI()))
    app.router.add_route("/old", lambda request: Response())
    app.add_api_websocket_route("/socket", _open)
    found = {(route.method, route.path) for route in undeclared(app)}
    assert found == {
        *{("GET", "/v1/in/open"), ("GET", "/v1/in/both"), ("POST", "/plain"), ("GET", "/old"), ("HEAD", "/old")},
        *{("ANY", "/files"), ("ANY", "/socket")},
    }


def test_roles_routes_and_owners(client: httpx.Client) -> None:
    """The matrix: who is refused how, for things of their own and of others; and that nothing came of what was refused.

    What others own is not there (404) rather than forbidden, so that nobody can find out what there is.
    """
    app, wrong = client.app, list[str]()  # type: ignore[attr-defined]
    owner_id, owner = new_key(client)
    _, other = new_key(client)
    _, clerk = new_key(client, scopes=["admin"])
    things = belongings(client, owner) | {"key_id": new_key(client)[0]}
    before = counts(client)
    roles = {"nobody": None, "a wrong key": "sk-iw-wrong", "a clerk": clerk, "another": other, "operator": ADMIN}

    def ask(role: str, token: str | None, route: Route, wanted: set[int] | range) -> None:
        answer = client.request(
            route.method,
            route.at(**things),
            headers=bearer(token) if token else {},
            **body_of(route, things["file_id"]),
        )
        if answer.status_code not in wanted:
            wrong.append(f"{role}: {route.method} {route.path}: {answer.status_code}")
        elif answer.status_code >= 400 and route.method != "HEAD":
            failed(answer, answer.status_code)

    denied = [route for route in routes(app) if route.scopes != ("public",)]
    for route in denied:
        theirs = [name for name in route.objects if name not in ("model", "key_id")]
        ask("nobody", None, route, {401})
        ask("a wrong key", "sk-iw-wrong", route, {401})
        if route.scopes == ("admin",):
            ask("another", other, route, {403})
            ask("owner", owner, route, {403})
            continue
        ask("a clerk", clerk, route, {403})
        if theirs or route.path == "/v1/images/edits":
            ask("another", other, route, {404})
            if not set(theirs) & set(SEEN_BY_OPERATORS):
                ask("operator", ADMIN, route, {404})
    after = counts(client)
    assert wrong == []
    assert after == before, "something came of what was refused"
    for route in routes(app):
        for role, token in roles.items():
            if route.scopes == ("public",):
                ask(role, token, route, {200})
        if route.scopes == ("images",):
            ask("owner", owner, route, range(200, 300))
    for route in routes(app):
        if route.scopes == ("admin",):
            ask("operator", ADMIN, route, range(200, 300))
            ask("a clerk", clerk, route, range(200, 300))
    assert wrong == []
    assert client.get(f"/v1/admin/keys/{owner_id}", headers=bearer(ADMIN)).json()["disabled"] is False


def test_lists_hold_ones_own(client: httpx.Client) -> None:
    _, owner = new_key(client)
    _, other = new_key(client)
    things = belongings(client, owner)
    for path in ("/v1/files", "/v1/pictures", "/v1/jobs", "/v1/usage"):
        assert len(client.get(path, headers=bearer(owner)).json()["data"]) >= 1
        assert client.get(path, headers=bearer(other)).json()["data"] == []
        if path != "/v1/pictures":
            assert client.get(path, headers=bearer(ADMIN)).status_code == 200
    for path, thing in (("/v1/files", "file_id"), ("/v1/jobs", "job_id")):
        failed(client.get(path, params={"after": things[thing]}, headers=bearer(other)), 404)
    answer = client.get("/sdapi/v1/progress", headers=bearer(other)).json()
    assert answer["state"]["job"] == ""


def test_others_things_cannot_be_used(client: httpx.Client) -> None:
    """By their ids inside a body: not a file, not a picture, not a conversation."""
    _, owner = new_key(client)
    _, other = new_key(client)
    things = belongings(client, owner)
    for named in (things["file_id"], things["picture_id"]):
        edit = DRAW | {"images": [{"file_id": named}]}
        assert client.post("/v1/images/edits", json=edit, headers=bearer(owner)).status_code == 200
        failed(client.post("/v1/images/edits", json=edit, headers=bearer(other)), 404)
        mask = DRAW | {"images": [{"image_url": data_url(drawn())}], "mask": {"file_id": named}}
        failed(client.post("/v1/images/edits", json=mask, headers=bearer(other)), 404)
        job = {"type": "image.edit", "request": edit}
        failed(client.post("/v1/jobs", json=job, headers=bearer(other)), 404)
    talk = TALK | {"previous_response_id": things["response_id"], "input": "make it blue"}
    assert client.post("/v1/responses", json=talk, headers=bearer(owner)).status_code == 200
    for named in (things["response_id"], "resp_of_nobody"):
        asked = talk | {"previous_response_id": named}
        failed(client.post("/v1/responses", json=asked, headers=bearer(other)), 400, code="previous_response_not_found")


def test_an_idempotency_key_is_ones_own(client: httpx.Client) -> None:
    _, owner = new_key(client)
    _, other = new_key(client)
    same = {"idempotency-key": "the-same"}
    first = client.post("/v1/images/generations", json=DRAW, headers=bearer(owner, **same)).json()
    second = client.post("/v1/images/generations", json=DRAW, headers=bearer(other, **same)).json()
    assert first["imagewright"]["job"] != second["imagewright"]["job"]


def test_a_key_ends_at_once(client: httpx.Client) -> None:
    """A key that was used a moment ago, disabled or given a new token, opens nothing."""
    key, token = new_key(client)
    assert client.get("/v1/models", headers=bearer(token)).status_code == 200
    fresh = client.post(f"/v1/admin/keys/{key}/rotate", headers=bearer(ADMIN)).json()["token"]
    failed(client.get("/v1/models", headers=bearer(token)), 401, code="invalid_api_key")
    assert client.get("/v1/models", headers=bearer(fresh)).status_code == 200
    client.delete(f"/v1/admin/keys/{key}", headers=bearer(ADMIN))
    failed(client.get("/v1/models", headers=bearer(fresh)), 401, code="invalid_api_key")


def test_tokens_that_are_attacks(client: httpx.Client) -> None:
    """SQL, formats, other schemes, nothing: all are wrong keys."""
    _, token = new_key(client)
    found = [
        *("' OR '1'='1", "'; DROP TABLE keys; --", "%", "_", "sk-iw-%", "null", "None", "0", "{}", "..", "*"),
        *(
            "x" * 8000,
            token[:-1],
            token.upper(),
            token + "a",
            f"{token},{ADMIN}",
            "$(id)",
            "%00",
            "a' AND randomblob(1)",
            "Bearer",
        ),
    ]
    for attack in found:
        answer = client.get("/v1/models", headers={"authorization": f"Bearer {attack}"})
        assert answer.status_code == 401, attack
    for header in ("", "Bearer", token, f"Token {token}", "Basic !!!", "Basic Og==", "Digest a=b"):
        failed(client.get("/v1/models", headers={"authorization": header}), 401)
    for name in ("x-api-key", "api-key", "cookie", "x-forwarded-user", "proxy-authorization"):
        failed(client.get("/v1/models", headers={name: token if name != "cookie" else f"key={token}"}), 401)
    failed(client.get("/v1/models", params={"key": token, "access_token": token}), 401)
