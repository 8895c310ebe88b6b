"""What the tests of security share: the routes of an application as it runs, a call for each, and requests by hand."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from gatehouse import bearer
from served import data_url, drawn, png

from imagewright.server.security import Scope

ADMIN = "the-operators-own-key-0123456789"
DRAW = {"prompt": "a fox", "response_format": "url"}
TALK = {"model": "imagewright", "input": "draw a red circle", "tools": [{"type": "image_generation"}]}


@dataclass(frozen=True)
class Route:
    """A method of a path, and the scopes that it declares."""

    method: str
    path: str
    scopes: tuple[str, ...]

    @property
    def objects(self) -> list[str]:
        """The parameters in its path."""
        return re.findall(r"{(\w+)", self.path)

    def at(self, **named: str) -> str:
        """Its path with these objects."""
        return re.sub(r"{(\w+)[^}]*}", lambda found: named[found[1]], self.path)


def routes(app: FastAPI) -> list[Route]:
    """Every route of an application as it runs, whatever kind it is."""
    found = []
    for context in iter_route_contexts(app.routes):
        dependant = getattr(context, "dependant", None)
        scopes = tuple(_scopes(dependant)) if dependant is not None else ()
        for method in sorted(context.methods or ("ANY",)):
            found.append(Route(method, str(context.path), scopes))
    return sorted(found, key=lambda route: (route.method == "DELETE", "rotate" in route.path, route.path, route.method))


def _scopes(dependant: Any) -> list[str]:
    own = [dependant.call.name] if isinstance(dependant.call, Scope) else []
    return [*own, *(name for inner in dependant.dependencies for name in _scopes(inner))]


def body_of(route: Route, file: str = "") -> dict[str, Any]:
    """A body that a route takes: what httpx is given."""
    picture, form = data_url(drawn()), {"image": ("x.png", png(drawn()), "image/png")}
    bodies: dict[tuple[str, str], dict[str, Any]] = {
        ("POST", "/v1/images/generations"): {"json": DRAW},
        ("POST", "/v1/images/edits"): {
            "json": DRAW | {"images": [{"file_id": file} if file else {"image_url": picture}]}
        },
        ("POST", "/v1/images/variations"): {"files": form, "data": {"prompt": "a fox"}},
        ("POST", "/v1/files"): {"files": {"file": form["image"]}, "data": {"purpose": "vision"}},
        ("POST", "/v1/jobs"): {"json": {"type": "image.generation", "request": DRAW}},
        ("POST", "/v1/responses"): {"json": TALK},
        ("POST", "/v1/admin/keys"): {"json": {"name": "one more"}},
        ("PATCH", "/v1/admin/keys/{key_id}"): {"json": {"name": "renamed"}},
        ("POST", "/sdapi/v1/txt2img"): {"json": {"prompt": "a fox", "width": 64, "height": 64}},
        ("POST", "/sdapi/v1/img2img"): {"json": {"prompt": "a fox", "init_images": [picture]}},
        ("POST", "/sdapi/v1/png-info"): {"json": {"image": picture}},
        ("POST", "/sdapi/v1/options"): {"json": {}},
    }
    return bodies.get((route.method, route.path), {})


def new_key(client: httpx.Client, **values: Any) -> tuple[str, str]:
    """The id and the token of a new key."""
    made = client.post("/v1/admin/keys", json={"name": "somebody", **values}, headers=bearer(ADMIN)).json()
    return made["id"], made["token"]


def belongings(client: httpx.Client, token: str) -> dict[str, str]:
    """One of each thing that a key may own, by the name that routes have for it."""
    client.headers["authorization"] = f"Bearer {token}"
    drawn_ = client.post("/v1/images/generations", json=DRAW).json()
    file = client.post("/v1/files", files={"file": ("x.png", png(drawn()))}, data={"purpose": "vision"}).json()
    said = client.post("/v1/responses", json=TALK).json()
    del client.headers["authorization"]
    return {
        "picture_id": drawn_["imagewright"]["pictures"][0],
        "job_id": drawn_["imagewright"]["job"],
        "name": drawn_["data"][0]["url"].rpartition("/")[2],
        "file_id": file["id"],
        "response_id": said["id"],
        "model": "fake/painter",
    }


def counts(client: httpx.Client) -> dict[str, int]:
    """How many rows each table has."""
    import sqlalchemy as sa

    from imagewright.database import metadata

    with client.app.state.database.read() as connection:  # type: ignore[attr-defined]
        return {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
        }


def raw(client: httpx.Client, request: bytes, seconds: float = 10.0) -> bytes:
    """What the server answers to these bytes, until it closes or nothing more comes."""
    with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=seconds) as connection:
        connection.sendall(request)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except (TimeoutError, ConnectionResetError):
        pass
    return found


def status(answer: bytes) -> int:
    """The status of an answer."""
    assert answer.startswith(b"HTTP/1.1 "), answer[:80]
    return int(answer[9:12])
