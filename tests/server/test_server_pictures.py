"""Whatever strangers send, what browsers get of it is a picture that this server encoded, or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from served import data_url, drawn, failed, png, served

from imagewright.server.pictures import SERVED

SCRIPTS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "\r\nSet-Cookie: a=b\r\n\r\n<html>",
    "\u202egnp.exe\u2066",
    "\x1b[31mred\x1b]0;title\x07",
    '=HYPERLINK("http://x","y")',
    "'; DROP TABLE pictures; --",
    "\x01\x7f\ufffe",
    "../../../etc/passwd%00.png",
]
AROUND = ["a fox {}", "]]>{}", "{}" * 20, "é{}\u3042\U0001f98a"]
TYPES = ["image/png", "text/html", "image/svg+xml", "application/xhtml+xml", "text/javascript"]
MARKUP = b"<!DOCTYPE html><script>alert(1)</script>"
FILES = [
    MARKUP,
    b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'/>",
    b"GIF89a/*" + MARKUP,
    b"%PDF-1.7 " + MARKUP,
    b"alert(1)",
    b"\x89PNG\r\n\x1a\n" + MARKUP,
    png(drawn()) + MARKUP,
    png(drawn(), "JPEG", comment=MARKUP),
    png(drawn(), "WEBP", xmp=MARKUP),
]
NO_PICTURES = 7  # of these, the first


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(tmp_path_factory.mktemp("server")) as client:
        yield client


def check(answer: httpx.Response) -> None:
    """That a browser can take an answer for nothing but what it is."""
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "set-cookie" not in answer.headers
    if answer.headers["content-type"] in SERVED:
        assert MARKUP not in answer.content and answer.headers["content-security-policy"].startswith("sandbox")
    else:
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("around", AROUND)
def test_hostile_words_come_back_as_words(api: httpx.Client, around: str) -> None:
    for script in SCRIPTS:
        words = around.format(*[script] * around.count("{}"))
        body = {"prompt": words, "negative_prompt": words, "size": "1x1", "model": "gpt-image-2"}
        made = api.post("/v1/images/generations", json=body)
        check(made)
        assert made.status_code == 200, made.text
        told = json.loads(made.headers["x-imagewright-adjustments"])
        assert told[-1]["field"] == "negative_prompt"
        shown = api.get(f"/v1/pictures/{made.json()['imagewright']['pictures'][0]}")
        check(shown)
        assert shown.json()["prompt"] == words
        check(httpx.get(shown.json()["url"]))
        check(api.get("/v1/pictures", params={"prompt": script, "limit": 1}))
        check(api.get(f"/v1/images/files/{httpx.QueryParams({'': words})}"))


@pytest.mark.parametrize("number", range(len(FILES)))
def test_hostile_files_come_back_as_pictures_or_not_at_all(api: httpx.Client, number: int) -> None:
    for media_type in TYPES:
        part = ("x.html", FILES[number], media_type)
        kept = api.post("/v1/files", data={"purpose": "vision"}, files={"file": part})
        edited = api.post("/v1/images/edits", data={"prompt": "a", "response_format": "url"}, files={"image": part})
        check(kept)
        check(edited)
        if number < NO_PICTURES:
            failed(kept, 400, code="invalid_image")
            failed(edited, 400, code="invalid_image")
            continue
        shown = api.get(f"/v1/files/{kept.json()['id']}/content")
        check(shown)
        assert shown.headers["content-type"] == "image/png"
        check(httpx.get(edited.json()["data"][0]["url"]))


def test_a_picture_that_a_page_shows_is_sent_whole_or_not_at_all(api: httpx.Client) -> None:
    url = api.post("/v1/images/generations", json={"prompt": "a"}).json()["data"][0]["url"]
    whole = httpx.get(url)
    for headers in ({"range": "bytes=0-3"}, {"if-none-match": '"other"'}, {"accept": "text/html"}):
        assert httpx.get(url, headers=headers).content == whole.content
    image = {"image_url": url.replace("127.0.0.1", "localhost"), "file_id": None}
    again = api.post("/v1/images/edits", json={"prompt": "a", "images": [{"image_url": url}]})
    assert again.status_code == 200
    failed(api.post("/v1/images/edits", json={"prompt": "a", "images": [image]}), 400)  # not the name asked by
    other = {"image_url": data_url(drawn()), "file_id": None}
    assert api.post("/v1/images/edits", json={"prompt": "a", "images": [other]}).status_code == 200
