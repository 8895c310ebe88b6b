"""/v1/files, and /v1/pictures: the caller's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from io import BytesIO

import httpx
import pytest
from PIL import Image
from served import drawn, failed, png, served


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server")) as client:
        yield client


def uploaded(api: httpx.Client, data: bytes, name: str = "a.png", purpose: str = "vision") -> httpx.Response:
    return api.post("/v1/files", data={"purpose": purpose}, files={"file": (name, data)})


def test_a_file_is_kept_shown_listed_and_deleted(api: httpx.Client) -> None:
    before = {one["id"] for one in api.get("/v1/files").json()["data"]}
    shown = uploaded(api, png(drawn()), "../../été\u202e.png").json()
    assert shown["object"] == "file" and shown["filename"] == "été_.png" and shown["purpose"] == "vision"
    assert shown["expires_at"] > shown["created_at"] > time.time() - 60
    assert api.get(f"/v1/files/{shown['id']}").json() == shown
    assert {one["id"] for one in api.get("/v1/files").json()["data"]} == before | {shown["id"]}
    assert api.delete(f"/v1/files/{shown['id']}").json() == {"id": shown["id"], "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        failed(api.request(method, f"/v1/files/{shown['id']}{path}"), 404, code="not_found")


def test_what_comes_back_are_the_pixels_and_nothing_else_of_the_file(api: httpx.Client) -> None:
    picture = drawn(mode="RGBA")
    hostile = png(picture) + b"<script>alert(1)</script>"
    content = api.get(f"/v1/files/{uploaded(api, hostile, 'a.html').json()['id']}/content")
    back = Image.open(BytesIO(content.content), formats=["PNG"])
    assert back.tobytes() == picture.tobytes() and back.mode == "RGBA"
    assert b"script" not in content.content
    assert content.headers["content-type"] == "image/png"
    assert content.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert content.headers["x-content-type-options"] == "nosniff"


def test_files_are_listed_in_pages(api: httpx.Client) -> None:
    for seed in range(3):
        uploaded(api, png(drawn((4, 4), seed=seed)), purpose="user_data")
    every = api.get("/v1/files", params={"purpose": "user_data"}).json()
    assert len(every["data"]) == 3 and every["has_more"] is False
    pages, after = [], None
    while True:
        params = {"purpose": "user_data", "limit": 2, **({"after": after} if after else {})}
        page = api.get("/v1/files", params=params).json()
        pages += page["data"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert pages == every["data"]
    upwards = api.get("/v1/files", params={"purpose": "user_data", "order": "asc"}).json()["data"]
    assert upwards == pages[::-1]
    failed(api.get("/v1/files", params={"after": "file-nobodys"}), 404)
    failed(api.get("/v1/files", params={"limit": 0}), 400, param="limit")


def test_what_is_no_picture_is_refused(api: httpx.Client) -> None:
    failed(uploaded(api, b"%PDF-1.7"), 400, param="file", code="invalid_image")
    failed(uploaded(api, b""), 400, param="file")
    failed(uploaded(api, png(drawn()), purpose="fine-tune"), 400, param="purpose")
    failed(api.post("/v1/files", data={"purpose": "vision"}), 400, param="file")


def test_own_pictures_are_found_by_words_seed_and_model(api: httpx.Client) -> None:
    wishes = [("a red fox", 11, "fake/painter"), ("a blue fox", 12, "fake/painter"), ("a red hat", 13, "fake/blocks")]
    for prompt, seed, model in wishes:
        api.post("/v1/images/generations", json={"prompt": prompt, "seed": seed, "model": model}).raise_for_status()

    def prompts(**params: object) -> list[str]:
        found = api.get("/v1/pictures", params={"since": start, **params})  # type: ignore[dict-item]
        return [one["prompt"] for one in found.json()["data"]]

    start = time.time() - 60
    assert prompts(prompt="fox") == ["a blue fox", "a red fox"]
    assert prompts(prompt="red") == ["a red hat", "a red fox"]
    assert prompts(seed=12) == ["a blue fox"]
    assert prompts(model="blocks") == ["a red hat"]
    assert prompts(until=start) == []
    first = api.get("/v1/pictures", params={"limit": 2}).json()
    second = api.get("/v1/pictures", params={"limit": 2, "after": first["next"]}).json()
    assert [one["seed"] for one in first["data"] + second["data"]][:3] == [13, 12, 11]
    failed(api.get("/v1/pictures", params={"after": "nonsense"}), 400)

    shown = first["data"][0]
    assert shown["record"]["seed"] == 13 and shown["model"] == "fake/blocks"
    assert httpx.get(shown["url"]).content == api.get(f"/v1/pictures/{shown['id']}/content").content
    assert api.get(f"/v1/pictures/{shown['id']}").json()["record"] == shown["record"]
    assert api.delete(f"/v1/pictures/{shown['id']}").json()["deleted"] is True
    failed(api.get(f"/v1/pictures/{shown['id']}"), 404)
    failed(httpx.get(shown["url"]), 404)
