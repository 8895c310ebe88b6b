"""GET /v1/models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import failed, served

MODELS = {"gpt-image-2": "fake/painter", "team/fast": "stickers-gan"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server"), models=MODELS) as client:
        yield client


def test_models_are_listed_as_openai_does_with_what_they_can(api: httpx.Client) -> None:
    body = api.get("/v1/models").json()
    assert body["object"] == "list"
    models = {model["id"]: model for model in body["data"]}
    assert {"stickers-diffusion", "painter", *MODELS} <= set(models) and len(models) == len(body["data"])
    assert "dall-e-3" not in models  # accepted, but only the configured ones are listed
    shown = models["gpt-image-2"]
    assert (shown["object"], shown["owned_by"], type(shown["created"])) == ("model", "fake", int)
    assert shown["imagewright"]["name"] == "painter" and shown["imagewright"]["capabilities"]["mask"] is True


def test_one_model_is_shown_also_where_its_id_has_slashes(api: httpx.Client) -> None:
    for name in ("painter", "fake/painter", "team/fast", "gpt-image-2"):
        assert api.get(f"/v1/models/{name}").json()["id"] == name
    assert api.get("/v1/models/team%2Ffast").json()["id"] == "team/fast"
    failed(api.get("/v1/models/nope"), 404, param="model", code="model_not_found")
    failed(api.get("/v1/models/a/b/c"), 404, code="model_not_found")
    failed(api.post("/v1/models"), 405)


def test_no_model_tells_where_it_lies(api: httpx.Client) -> None:
    text = api.get("/v1/models").text
    assert "assets" not in text and str(Path.home()) not in text


def test_a_key_sees_its_models_only(tmp_path: Path) -> None:
    with served(tmp_path, admin_key="sk-admin", models=MODELS) as api:
        admin = {"authorization": "Bearer sk-admin"}
        made = api.post("/v1/admin/keys", json={"name": "a", "models": ["team/*"]}, headers=admin).json()
        theirs = {"authorization": f"Bearer {made['token']}"}
        assert [model["id"] for model in api.get("/v1/models", headers=theirs).json()["data"]] == ["team/fast"]
        failed(api.get("/v1/models/painter", headers=theirs), 404)
        failed(api.get("/v1/models"), 401)
