"""What no request may do, whoever sends it: come by another's name or page, bring too much, never end; and what every
answer says to browsers. Against a real server, most of it by raw sockets."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import failed, served
from strangers import ADMIN, DRAW, belongings, body_of, counts, raw, routes, status

from imagewright.server import guard, protocol
from imagewright.server.settings import Settings

PAGE = "https://app.example"
FORM = "multipart/form-data; boundary=x"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a server without keys, on loopback: everybody here may do everything, and a page elsewhere may too."""
    with served(tmp_path_factory.mktemp("server"), allowed_origins=(PAGE,), max_upload=2**20) as found:
        yield found


def forgeries(port: int) -> list[tuple[str, list[str], int]]:
    """What a stranger's page or a name turned on us makes a request look like: target prefix, header lines, status."""
    ours = f"Host: 127.0.0.1:{port}"
    hosts = [
        *(
            "evil.example",
            f"evil.example:{port}",
            f"127.0.0.1.evil.example:{port}",
            "evil.example:80",
            "localhost.evil",
        ),
        *(f"localhost.:{port}", f"user@127.0.0.1:{port}", f"127.0.0.1:{port}@evil.example", "127.1", "2130706433"),
        *("0x7f.1", "127.0.0.2", "0.0.0.0", "[::]", "[::2]", "[::1", "::1", "[::ffff:127.0.0.1]", f"[::1]evil:{port}"),
        *("127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:x", f"127.0.0.1:{port}:{port}", "127.0.0.1:-1", "127.0.0.1:"),
        *("127.0.0.1/", "127.0.0.1?", "127.0.0.1#", "127.0.0.1,evil.example", "127.0.0.1 evil.example", "", " ", "*"),
        *(
            f"LOCALHOST.:{port}",
            "LOCALHOST.EVIL",
            "locаlhost".encode().decode("latin-1"),
            "127。0。0。1".encode().decode("latin-1"),
        ),
    ]
    origins = [
        *(
            "null",
            "NULL",
            "https://evil.example",
            f"http://evil.example:{port}",
            "http://127.0.0.1:1",
            "http://127.0.0.1",
        ),
        *(
            f"http://localhost:{port}",
            f"ftp://127.0.0.1:{port}",
            f"http://127.0.0.1:{port}.evil.example",
            "file://",
            "",
        ),
        *(
            f"http://127.0.0.1:{port}@evil.example",
            f"http://user@127.0.0.1:{port}",
            f"http://127.0.0.1:{port}/",
            "http://",
        ),
        *(
            "http://[::1",
            f"//127.0.0.1:{port}",
            f"127.0.0.1:{port}",
            f"{PAGE}.evil.example",
            f"{PAGE}:444",
            "http" + PAGE[5:],
        ),
        *(f"{PAGE}, https://evil.example", f"{PAGE} https://evil.example", "chrome-extension://abc", "*"),
    ]
    return [
        *(("", [f"Host: {host}"], 421) for host in hosts),
        *(("", [ours, f"Origin: {origin}"], 403) for origin in origins),
        ("", [], 421),
        ("", [ours, "Host: evil.example"], 400),
        ("", ["Host: evil.example", ours], 400),
        ("", [ours, ours], 400),
        ("", [ours, f"Origin: {PAGE}", "Origin: https://evil.example"], 400),
        ("", [ours, "Authorization: Bearer a", "Authorization: Bearer b"], 400),
        ("", ["Host: evil.example", f"X-Forwarded-Host: 127.0.0.1:{port}", "Forwarded: host=127.0.0.1"], 421),
        ("http://evil.example", [ours], 400),
        (f"http://127.0.0.1:{port}", ["Host: evil.example"], 400),
    ]


def test_forged_names_and_pages(client: httpx.Client) -> None:
    """Every route, every forgery: refused, with four keys, and nothing was written or changed."""
    port = int(client.base_url.port or 0)
    before, wrong = counts(client), list[str]()
    for route in routes(client.app):  # type: ignore[attr-defined]
        body = json.dumps(body_of(route).get("json", {})).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            reader = connection.makefile("rb")
            for prefix, lines, wanted in forgeries(port):
                head = "\r\n".join(
                    [f"{route.method} {prefix}{route.at(**dict.fromkeys(route.objects, 'x'))} HTTP/1.1", *lines]
                )
                head += f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                if prefix:  # the server closes
                    found = raw(client, head.encode("latin-1") + body)
                else:
                    connection.sendall(head.encode("latin-1") + body)
                    found = answer_of(reader, route.method)
                if status(found) != wanted:
                    wrong.append(f"{route.method} {route.path} {prefix} {lines}: {status(found)}")
                elif route.method != "HEAD":
                    assert set(json.loads(found.partition(b"\r\n\r\n")[2])["error"]) == {
                        "message",
                        "type",
                        "param",
                        "code",
                    }
    assert wrong == []
    assert counts(client) == before


def answer_of(reader: Any, method: str) -> bytes:
    """One answer of a connection that stays."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline()
        assert line, head
        head += line
    found = re.search(rb"content-length: (\d+)", head)
    return bytes(head + (reader.read(int(found[1])) if found and method != "HEAD" else b""))


def test_what_the_browser_says_of_the_page(client: httpx.Client) -> None:
    """A stranger's page that makes the browser ask without an Origin (pictures, scripts, links, forms)."""
    before = counts(client)
    for path in ("/v1/models", "/health", "/v1/pictures", "/v1/jobs", "/v1/openapi.json", "/sdapi/v1/progress"):
        for mode in ("no-cors", "navigate", "cors", "websocket"):
            headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode}
            failed(client.get(path, headers=headers), 403, code="foreign_origin")
        for site in ("same-origin", "none"):
            assert client.get(path, headers={"sec-fetch-site": site}).status_code == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", FORM):
        headers = {"sec-fetch-site": "cross-site", "content-type": kind}
        failed(client.post("/v1/images/generations", content=json.dumps(DRAW), headers=headers), 403)
    assert counts(client) == before


def test_pages_elsewhere_may_show_a_picture(client: httpx.Client) -> None:
    """By its URL, which nobody can guess; never the list, nor by its id."""
    made = client.post("/v1/images/generations", json=DRAW).json()
    shown = client.get(made["data"][0]["url"], headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"})
    assert shown.status_code == 200 and shown.headers["cross-origin-resource-policy"] == "cross-origin"
    by_id = f"/v1/pictures/{made['imagewright']['pictures'][0]}/content"
    failed(client.get(by_id, headers={"sec-fetch-site": "cross-site"}), 403)


def test_pages_that_the_operator_allows(client: httpx.Client) -> None:
    """A browser's preflight and call from there; none from elsewhere; never everybody, never with cookies."""
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    preflight = client.options(
        "/v1/images/generations", headers={"origin": PAGE, "sec-fetch-site": "cross-site", **asks}
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    call = client.post("/v1/images/generations", json=DRAW, headers={"origin": PAGE, "sec-fetch-site": "cross-site"})
    assert call.status_code == 200 and call.headers["access-control-allow-origin"] == PAGE
    assert call.headers["access-control-expose-headers"] == "*"
    wrong = client.post("/v1/images/generations", json={}, headers={"origin": PAGE})
    assert failed(wrong, 400) and wrong.headers["access-control-allow-origin"] == PAGE
    large = client.post("/v1/images/generations", content=b" " * 2**21, headers={"origin": PAGE})
    assert failed(large, 413)
    for origin in ("https://evil.example", "null", PAGE + ".evil.example"):
        refused = client.options("/v1/images/generations", headers={"origin": origin, **asks})
        failed(refused, 403)
        assert not [name for name in refused.headers if name.startswith("access-control-")]
    own = client.get("/health", headers={"origin": f"http://127.0.0.1:{client.base_url.port}"})
    assert own.status_code == 200 and "access-control-allow-origin" not in own.headers
    for answer in (preflight, call, wrong, large, own):
        assert answer.headers.get("access-control-allow-origin") != "*"
        assert "access-control-allow-credentials" not in answer.headers


def test_names_of_this_server() -> None:
    """Loopback always; what the operator names; on other binds the very address that was connected to."""
    here = Settings(folder=Path())
    for host in ("localhost", "localhost:8000", "127.0.0.1:1", "[::1]", "[::1]:9", "127.0.0.1:65535"):
        assert here.knows_host(host, ("127.0.0.1", 8000))
    assert not here.knows_host("192.168.1.5", ("192.168.1.5", 8000))
    named = Settings(folder=Path(), public_url="https://img.example/x", allowed_hosts=("lan.example", "2001:db8::7"))
    for host in ("img.example", "img.example:443", "lan.example:8000", "[2001:db8::7]:8000"):
        assert named.knows_host(host)
    assert named.origins == ("https://img.example",)
    wide = Settings(folder=Path(), host="0.0.0.0", admin_key=ADMIN)
    assert wide.knows_host("192.168.1.5:8000", ("192.168.1.5", 8000)) and wide.knows_host("[fe80::1]", ("fe80::1", 80))
    for host in ("evil.example", "192.168.1.6:8000", "192.168.1.5.evil.example"):
        assert not wide.knows_host(host, ("192.168.1.5", 8000))


def test_what_answers_say_to_browsers(tmp_path: Path) -> None:
    """Every route, every kind of answer: no sniffing, no frames, nothing loaded, nothing kept, nobody told."""
    with served(tmp_path, admin_key=ADMIN) as client:
        _check_headers(client)


def _check_headers(client: httpx.Client) -> None:
    things = belongings(client, ADMIN) | {"key_id": "x"}
    client.headers["authorization"] = f"Bearer {ADMIN}"
    for route in routes(client.app):  # type: ignore[attr-defined]
        for _ in range(2):  # then it is gone, where it is deleted
            answer = client.request(route.method, route.at(**things), **body_of(route))
            told = answer.headers
            assert told["x-content-type-options"] == "nosniff", route
            assert "default-src 'none'" in told["content-security-policy"], route
            assert "unsafe" not in told["content-security-policy"]
            assert told["referrer-policy"] == "no-referrer" and told["x-frame-options"] == "DENY"
            assert told["x-request-id"].startswith("req_")
            assert "server" not in told and "set-cookie" not in told and "x-powered-by" not in told
            if told.get("content-type", "").startswith("image/"):
                assert "sandbox" in told["content-security-policy"]
                assert told["content-type"] in ("image/png", "image/jpeg", "image/webp")
                assert told["cache-control"].startswith("private") and "filename=" in told["content-disposition"]
            elif answer.status_code != 304:
                assert told["cache-control"] == "no-store", route
                assert told["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/nowhere", "/v1/images/files/x", "/%2e%2e/x"])
def test_also_what_is_not_there(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert failed(answer, 404) and answer.headers["content-security-policy"].startswith("default-src 'none'")
    failed(client.patch("/v1/models"), 405)


def test_also_what_nobody_foresaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours: four keys, an id, no inner word; and the log has it."""
    with served(tmp_path) as client:
        monkeypatch.setattr(client.app.state.gateway, "models", lambda caller: 1 / 0)  # type: ignore[attr-defined]
        answer = client.get("/v1/models")
    assert "division" not in failed(answer, 500, type="server_error")
    assert answer.headers["x-content-type-options"] == "nosniff"


# Bodies


def chunked(
    *parts: bytes, kind: str = "application/json", path: str = "/v1/images/generations", more: str = ""
) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{more}Transfer-Encoding: chunked\r\n\r\n"
    )
    return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def test_a_body_without_a_length_is_counted(client: httpx.Client) -> None:
    """JSON, form and what no route reads; cut where it is too much, not where it ends."""
    part = b" " * 2**16
    for path, kind in (("/v1/images/generations", "application/json"), ("/v1/images/edits", FORM), ("/v1/files", FORM)):
        begin = b"" if kind == "application/json" else b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
        head = b"a" if begin else b" "
        with socket.create_connection(("127.0.0.1", int(client.base_url.port or 0)), timeout=10) as connection:
            connection.sendall(chunked(begin or b" ", *[part.replace(b" ", head)] * 24, kind=kind, path=path))
            found = connection.recv(65536)
        assert status(found) in (400, 413) if begin else status(found) == 413, found
        if not begin:
            assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_large"
    whole = chunked(json.dumps(DRAW).encode()) + b"0\r\n\r\n"
    assert status(raw(client, whole.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost"))) == 200


def test_a_file_without_a_length_is_counted(client: httpx.Client) -> None:
    begin = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", int(client.base_url.port or 0)), timeout=10) as connection:
        connection.sendall(chunked(begin, *[b"a" * 2**16] * 24, kind=FORM, path="/v1/files"))
        assert status(connection.recv(65536)) == 413


@pytest.mark.parametrize("length", ["1048577", "9" * 18, "9" * 400, "-1", "+1", "0x10", "1e3", "\xb2", "1 1", ""])
def test_lengths(client: httpx.Client, length: str) -> None:
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(client.base_url.port or 0)), timeout=10) as connection:
        connection.sendall(head.encode("latin-1"))
        assert status(connection.recv(65536)) in (400, 413)


def test_smuggling(client: httpx.Client) -> None:
    """Two lengths, or a length and chunks: refused, and what follows is no request of its own."""
    inner = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for lines in (
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: xchunked",
    ):
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n0\r\n\r\n"
        found = raw(client, head.encode() + inner, 1.0)
        assert status(found) == 400 and found.count(b"HTTP/1.1 ") == 1, lines


def test_no_body_is_read_for_a_stranger(tmp_path: Path) -> None:
    """Without a good key, the head is answered at once, however much is announced."""
    with served(tmp_path, admin_key=ADMIN) as client:
        for route in routes(client.app):  # type: ignore[attr-defined]
            path = route.at(**dict.fromkeys(route.objects, "x"))
            head = f"{route.method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
            with socket.create_connection(("127.0.0.1", int(client.base_url.port or 0)), timeout=10) as connection:
                connection.sendall(head.encode())
                assert status(connection.recv(65536)) == 401, route


def test_bodies_that_never_end(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GRACE", 0.3)
    begin = chunked(b'{"prompt":')
    with socket.create_connection(("127.0.0.1", int(client.base_url.port or 0)), timeout=10) as connection:
        connection.sendall(begin)
        found, started = b"", time.monotonic()
        while not found:
            connection.sendall(b"1\r\n \r\n")
            connection.settimeout(0.05)
            try:
                found = connection.recv(65536)
            except TimeoutError:
                assert time.monotonic() - started < 5
        assert status(found) == 408
        assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"


def test_heads_that_never_end(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte, not at all, after an answer, behind a body that nobody reads."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    for begin, drip in (
        (b"", b""),
        (ask, b"A: b\r\n"),
        (ask + b"\r\n" + ask, b"A: b\r\n"),
        (ask + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    ):
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", int(client.base_url.port or 0)), timeout=0.05) as connection:
            connection.sendall(begin)
            while time.monotonic() - started < 5:
                try:
                    connection.sendall(drip)
                    if connection.recv(65536) == b"":
                        break
                except TimeoutError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    break
            assert time.monotonic() - started < 3, begin


def test_bodies_in_any_pieces(client: httpx.Client) -> None:
    """What bounds heads does not take a body for one, however the two come."""
    body = json.dumps(DRAW | {"negative_prompt": "a" * 31_000, "user": "b" * 200_000}).encode()
    head = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", int(client.base_url.port or 0)), timeout=10) as connection:
        reader = connection.makefile("rb")
        for cuts in (
            [],
            [len(sent) - 100_000],
            [50],
            [len(sent) - len(body)],
            [10, 230_000],
            [70_000, 140_000, 210_000],
        ):
            for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                connection.sendall(sent[begin:end])
                time.sleep(0.01)
            assert status(answer_of(reader, "POST")) == 200, cuts


def test_heads_that_are_too_large(client: httpx.Client) -> None:
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    for more in (
        b"X: " + b"a" * 70_000,
        b"X: a\r\n" * 20_000,
        b"X" * 300_000,
        b"Content-Length: 0\r\nCookie: " + b"b" * 100_000,
    ):
        found = raw(client, ask + more + b"\r\n\r\n", 5)
        if found:  # else it closed while more was coming, and the answer was lost
            assert status(found) in (400, 431)
    found = raw(client, b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 5)
    assert not found or status(found) in (400, 404, 431)
    assert client.get("/health").status_code == 200


def test_what_is_no_http(client: httpx.Client) -> None:
    for sent in (
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"A" * 9999,
    ):
        found = raw(client, sent + b"\r\n\r\n", 2)
        if found:
            assert status(found) in (400, 404, 421, 431)
            assert set(json.loads(found.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}
    upgrade = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert status(raw(client, upgrade, 2)) in (200, 400)


def test_forms_of_many_parts(client: httpx.Client) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\na\r\n'
    for path in ("/v1/images/edits", "/v1/images/variations", "/v1/files"):
        for name, also in ((b"prompt", b""), (b"image[]", b'; filename="a.png"'), (b"unknown", b"")):
            body = b"".join([part % (name, also)] * 10_000) + b"--x--\r\n"
            started = time.monotonic()
            failed(client.post(path, content=body, headers={"content-type": FORM}), 400)
            assert time.monotonic() - started < 3
    for broken in (
        b"",
        b"--x",
        b"--y\r\n\r\n--y--",
        b"--x\r\n\r\na\r\n--x--",
        b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--",
    ):
        for path in ("/v1/images/edits", "/v1/images/variations", "/v1/files"):
            failed(client.post(path, content=broken, headers={"content-type": FORM}), 400)
            failed(client.post(path, content=broken, headers={"content-type": "multipart/form-data"}), 400)


def test_the_threat_model_names_tests_that_there_are() -> None:
    """Each row of docs/security.md, and no test that was renamed since."""
    root = Path(__file__).parents[2]
    rows = [line for line in (root / "docs/security.md").read_text("utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 20
    for row in rows:
        named = re.findall(r"`(\S+): (test_\w+)`", row.rpartition(" | ")[2])
        assert named, row
        for file, test in named:
            path = root / file if "/" in file else Path(__file__).parent / f"test_server_{file}.py"
            assert f"def {test}(" in path.read_text("utf-8"), (file, test)
