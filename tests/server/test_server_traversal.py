"""Clients send no paths: whatever they send, no file is opened that is not the server's own, and none is served."""

from __future__ import annotations

import itertools
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import drawn, png, served
from strangers import ADMIN, DRAW, TALK, status

from imagewright.config import default_path

CANARY = b"canary-in-a-file-outside"
_opened: list[str] | None = None  # what is opened while somebody looks
_lock = threading.Lock()


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir"):
        path = arguments[0]
        if isinstance(path, str | bytes):
            _opened.append(path.decode("utf-8", "replace") if isinstance(path, bytes) else path)


_installed = False


@contextmanager
def looking() -> Iterator[list[str]]:
    """All paths that this process opens, lists, removes or makes meanwhile."""
    global _opened, _installed
    with _lock:
        if not _installed:  # it can never be taken away again, so it does nothing most of the time
            sys.addaudithook(_audit)
            _installed = True
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    (folder / "secret.png").write_bytes(CANARY)
    with served(folder / "data", admin_key=ADMIN) as found:
        found.headers["authorization"] = f"Bearer {ADMIN}"
        yield found


def names(outside: Path) -> list[str]:
    """What attackers write for a file: up and away, absolute, encoded once and twice, of other systems, by URL."""
    ups = [
        "../",
        "..\\",
        "%2e%2e/",
        "%2e%2e%2f",
        "..%2f",
        "..%5c",
        "%252e%252e%252f",
        "....//",
        "..;/",
        ".%00./",
        "..%c0%af",
    ]
    ups += ["..%ef%bc%8f", "\u2025/", "..%u2215", "%uff0e%uff0e/", ".../", "..//", "./../", "..%00/"]
    files = ["etc/passwd", "proc/self/environ", "secret.png", "imagewright.db", "config.toml", "windows/win.ini"]
    deep = [up * count + file for up, count, file in itertools.product(ups, (1, 2, 5, 12), files)]
    plain = [
        *(
            "/etc/passwd",
            "//etc/passwd",
            "/proc/self/mem",
            "/dev/stdin",
            "/dev/zero",
            "~/.ssh/id_rsa",
            "~root/x",
            "$HOME/x",
        ),
        *(
            str(outside),
            f"file://{outside}",
            f"file:{outside}",
            "file:///etc/passwd",
            "C:\\Windows\\win.ini",
            "C:x",
            "NUL",
        ),
        *("\\\\host\\share\\x", "//host/share", "x.png::$DATA", "CON", "a\0.png", "%00", "..", ".", "...", "a" * 300),
        *(
            "s3://bucket/x",
            "gs://b/x",
            "http://127.0.0.1/x",
            "ftp://h/x",
            "data:text/plain,x",
            "jar:file:///x!/y",
            "|id",
        ),
        *(
            "hf:owner/model",
            "owner/model",
            "stabilityai/sd-turbo",
            "runwayml/stable-diffusion-v1-5",
            "file:model",
            "./model",
        ),
        *("embedded//etc/passwd", "trained//etc/passwd", "trained/../x", "pretrained//tmp", "pretrained/owner/name"),
        *("`id`", "$(id)", ";id", "{{7*7}}", "%s%s%n", "import:os", "os.system", "__import__('os')"),
    ]
    return deep + plain


def test_one_thousand_urls(client: httpx.Client, folder: Path) -> None:
    """By raw sockets, as no client that tidies URLs sends them: nothing is served, nothing is opened for it."""
    places = ["/v1/images/files/{}", "/{}", "/v1/models/{}", "/v1/files/{}/content", "/v1/pictures/{}", "/static/{}"]
    targets = [
        place.format(name)
        for name, place in zip(names(folder / "secret.png") * 2, itertools.cycle(places), strict=False)
    ]
    targets += [
        "/v1/../../etc/passwd",
        "//etc/passwd",
        "/..",
        "/.",
        "/v1//models/..",
        "/v1/models/..%2f..%2fetc%2fpasswd",
    ]
    assert len(set(targets)) >= 1000
    port, served_, asked = int(client.base_url.port or 0), list[str](), 0
    with looking() as opened:
        for target in dict.fromkeys(targets):
            head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {ADMIN}"
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(f"{head}\r\n\r\n".encode("utf-8", "surrogateescape"))
                answer = b""
                while part := connection.recv(65536):
                    answer += part
            asked += 1
            if not 400 <= status(answer) < 500 or CANARY in answer or b"root:" in answer:
                served_.append(f"{target}: {status(answer)}")
    assert served_ == [] and asked >= 1000
    assert strange(opened, folder) == []


def strange(opened: list[str], folder: Path) -> list[str]:
    """What of it is neither the server's own data nor part of Python, its packages, or the system's own."""
    ours = [
        folder / "data",
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(__file__).parents[2],
        Path(tempfile.gettempdir(), "tmp"),
    ]
    known = tuple(map(str, ours))
    plain: tuple[str, ...] = (
        "/proc/self",
        "/proc/meminfo",
        "/proc/cpuinfo",
        "/sys/",
        "/etc/localtime",
        "/usr/share/zoneinfo",
        "/dev/null",
    )
    plain += ("/dev/urandom", "/usr/lib", "/lib", str(default_path()))
    return [path for path in dict.fromkeys(opened) if not path.startswith((*known, *plain))]


def test_names_where_names_are_taken(client: httpx.Client, folder: Path) -> None:
    """Models, files, styles, samplers, ids, file names: nothing is opened that is not the server's own."""
    hostile = names(folder / "secret.png")[::12] + names(folder / "secret.png")[-48:]
    file = ("file", ("x", png(drawn()), "text/html"))
    client.post("/v1/images/generations", json=DRAW)  # so that all is there that is loaded once
    client.post("/v1/files", files=[file], data={"purpose": "vision"})
    with looking() as opened:
        for name in hostile:
            asks: list[tuple[str, dict[str, Any]]] = [
                ("/v1/images/generations", DRAW | {"model": name}),
                ("/v1/images/generations", DRAW | {"style": name, "sampler": name}),
                ("/v1/images/edits", DRAW | {"images": [{"file_id": name}]}),
                ("/v1/images/edits", DRAW | {"images": [{"image_url": name}]}),
                ("/v1/jobs", {"type": "image.generation", "request": DRAW | {"model": name}}),
                ("/v1/responses", TALK | {"model": name, "previous_response_id": name}),
                ("/v1/responses", TALK | {"tools": [{"type": "image_generation", "model": name}]}),
                ("/sdapi/v1/txt2img", {"prompt": "a", "override_settings": {"sd_model_checkpoint": name}}),
                ("/sdapi/v1/options", {"sd_model_checkpoint": name}),
                ("/sdapi/v1/img2img", {"prompt": "a", "init_images": [name]}),
            ]
            for path, body in asks:
                answer = client.post(path, json=body)
                if not ("prompt" in body and answer.status_code == 200 and "style" not in body):
                    assert 400 <= answer.status_code < 500, (path, body, answer.text)
                assert CANARY not in answer.content
            upload = {"file": (name.replace("\0", ""), png(drawn()), "image/png")}
            kept = client.post("/v1/files", files=upload, data={"purpose": "vision"}).json()
            assert not set(kept["filename"]) & set("/\\\0")
            client.delete(f"/v1/files/{kept['id']}")
    assert strange(opened, folder) == []
    assert not [path for path in folder.rglob("*") if path.name in ("passwd", "x", "id_rsa", "win.ini")]


def test_the_looking_sees(folder: Path) -> None:
    with looking() as opened:
        Path("/etc/hostname").exists()
        open("/etc/passwd", "rb").close()
    assert strange(opened, folder) == ["/etc/passwd"]


def test_no_parameter_means_a_path(client: httpx.Client) -> None:
    """In the description: no field is called a path, a folder, a URL of a service, a loader; and none takes any key."""
    described = client.get("/v1/openapi.json").json()
    found = set(_names(described))
    means = re.compile(
        r"(^|_)(path|paths|dir|directory|folder|filepath|checkpoint_path|root|cwd|command|module|plugin)(_|$)"
    )
    upstream = re.compile(
        r"(^|_)(api_base|base_url|api_key|endpoint|host|proxy|webhook|callback|headers|provider_options)(_|$)"
    )
    assert {name for name in found if means.search(name) or upstream.search(name)} == set()
    assert "prompt" in found and len(found) > 100


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "properties":
                yield from inner
            if key == "parameters":
                yield from (one["name"] for one in inner)
            yield from _names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _names(inner)


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/javascript", "image/png", ""])
def test_what_comes_back_is_a_picture(client: httpx.Client, kind: str) -> None:
    """Whatever bytes, name and type are sent: refused, or a PNG of its pixels, never what was sent."""
    script = b"<script>alert(1)</script>"
    pictures = [png(drawn(), kind) for kind in ("PNG", "JPEG", "WEBP")]
    sent = [
        *pictures,
        *(picture + script for picture in pictures),
        *(picture[:40] + script for picture in pictures),
        *(script + picture for picture in pictures),
        png(drawn(), "GIF") + script,
        png(drawn(), "JPEG", comment=script),
        *(script, b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", b"%PDF-1.4", b"", b"GIF89a" + script),
        *(
            b"\x89PNG\r\n\x1a\n" + script,
            b"\xff\xd8\xff" + script,
            b"RIFF\0\0\0\0WEBP" + script,
            b"MZ",
            b"PK\3\4",
            b"\0" * 99,
        ),
    ]
    accepted = 0
    for data in sent:
        for name in ("a.html", "a.svg", "a.png\r\nContent-Type: text/html", "../a.php", '"><script>.png'):
            files = {"file": (name, data, kind)} if kind else {"file": (name, data)}
            answer = client.post("/v1/files", files=files, data={"purpose": "vision"})
            if answer.status_code != 200:
                assert answer.status_code == 400 and answer.json()["error"]["code"] in (
                    "invalid_image",
                    "missing_required_parameter",
                )
                continue
            accepted += 1
            back = client.get(f"/v1/files/{answer.json()['id']}/content")
            assert back.headers["content-type"] == "image/png" and back.headers["x-content-type-options"] == "nosniff"
            assert re.fullmatch(r'inline; filename="file-[\w-]+\.png"', back.headers["content-disposition"])
            assert back.content.startswith(b"\x89PNG\r\n\x1a\n") and script not in back.content
            edit = client.post("/v1/images/edits", json={"prompt": "a", "images": [{"file_id": answer.json()["id"]}]})
            shown = client.get(edit.json()["data"][0]["url"])
            assert shown.headers["content-type"] == "image/png" and script not in shown.content
            break
    assert accepted >= 6
