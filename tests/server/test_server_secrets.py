"""No secret in any record, no bind without a key, nothing told to anybody: the server as a process, at its most
talkative."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from gatehouse import bearer
from processes import Process
from served import FAKE, drawn, png, served
from strangers import ADMIN, DRAW, Route, belongings, body_of, routes

from imagewright.errors import RequestError
from imagewright.server.app import create_app
from imagewright.server.settings import Settings, read

PROVIDER = "sk-canary-of-the-provider-000111"
PASSWORD = "canary-password-000222"
PLANNER = "sk-canary-of-the-planner-000333"
TALKATIVE = """
import logging
logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s %(exc_info)s")
logging.getLogger().setLevel(logging.DEBUG)
import uvicorn
_init = uvicorn.Config.__init__
def init(self, *given, **named):
    _init(self, *given, **{**named, "log_level": "debug", "access_log": True})
uvicorn.Config.__init__ = init
from imagewright.cli import main
main()
"""


class Upstream:
    """A hosted service's stand-in that fails in turn; `seen`: what it was told, `host` where it is."""

    def __init__(self, *statuses: int) -> None:
        upstream, self.seen = self, list[tuple[str, dict[str, str]]]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                upstream.seen.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                key = self.headers.get("authorization", "")
                text = json.dumps({"error": {"message": f"wrong key {key}", "type": "x", "param": None, "code": "x"}})
                self.send_response(statuses[len(upstream.seen) % len(statuses)])
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    found = Upstream(400, 401, 500, 429)
    yield found
    found.close()


def configured(folder: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration with keys in it."""
    file = folder / "config.toml"
    file.write_text(
        f'[providers.mybox]\nkind = "openai"\nbase_url = "{upstream.url}"\nkey = "{PROVIDER}"\nmodels = ["flux"]\n'
        f'[planner]\nmodel = "p"\nbase_url = "{upstream.url}"\nkey = "{PLANNER}"\n'
        f'[server]\nallowed_hosts = ["lan.example"]\n'
    )
    file.chmod(0o600)
    monkeypatch.setenv("IMAGEWRIGHT_CONFIG", str(file))


def test_no_secret_is_left_anywhere(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every route, right and wrong, with every key; then all logs, answers, database and files are searched."""
    configured(tmp_path, upstream, monkeypatch)
    monkeypatch.setenv("IMAGEWRIGHT_ADMIN_KEY", ADMIN)
    folder, answers, tokens = tmp_path / "data", list[bytes](), list[str]()
    app = create_app(Settings(folder=tmp_path / "only-to-look"))
    with talkative(tmp_path, "--folder", str(folder), "-m", FAKE) as client:
        for scopes in (["images"], ["admin"], ["images", "admin"]):
            made = client.post("/v1/admin/keys", json={"name": "x", "scopes": scopes}, headers=bearer(ADMIN)).json()
            tokens.append(made["token"])
        things = belongings(client, tokens[0]) | {"key_id": made["id"]}
        for token in (*tokens, ADMIN, "sk-iw-canary-of-a-wrong-key"):
            for route in routes(app):
                answers += _asked(client, route, things, token)
        for asked in ("mybox/flux", "mybox/other", "flux"):
            for _ in range(4):
                draw = DRAW | {"model": asked}
                answers.append(client.post("/v1/images/generations", json=draw, headers=bearer(ADMIN)).content)
    log = (tmp_path / "log").read_text()
    assert "httpcore.http11 send_request" in log and "GET /v1/models" in log, "it was not talkative"
    assert upstream.seen, "the service was never asked"
    secrets = [*tokens[:2], ADMIN, PROVIDER, PLANNER, "sk-iw-canary-of-a-wrong-key"]
    kept = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    places = {"the log": log.encode(), **kept, **{f"answer {i}": one for i, one in enumerate(answers)}}
    assert [(secret, where) for secret in secrets for where, data in places.items() if secret.encode() in data] == []


def _asked(client: httpx.Client, route: Route, things: dict[str, str], token: str) -> Iterator[bytes]:
    if route.method == "DELETE" or (route.method, route.path) == ("POST", "/v1/admin/keys") or "rotate" in route.path:
        return
    for body in (body_of(route), {"json": {"nonsense": 1}}, {"content": b"no json"})[
        : 1 if route.method == "GET" else 3
    ]:
        answer = client.request(route.method, route.at(**things), headers=bearer(token), **body)
        yield answer.content + json.dumps(dict(answer.headers)).encode()


@contextmanager
def talkative(folder: Path, *options: str) -> Iterator[httpx.Client]:
    """A server that logs all that it can, to `log`."""
    script = folder / "talkative.py"
    script.write_text(TALKATIVE)
    with (folder / "log").open("w") as log:
        command = [sys.executable, str(script), "serve", "--port", "0", *options]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for _ in range(3000):
                found = re.search(r"serving at (http://[^/]+)/v1", (folder / "log").read_text())
                if found:
                    break
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                threading.Event().wait(0.02)
            assert found
            with httpx.Client(base_url=found[1], timeout=60) as client:
                yield client
        finally:
            process.kill()
            process.wait()


def test_the_search_for_secrets_finds_one(tmp_path: Path) -> None:
    """The prompt is no secret: it is in the database, and would be found."""
    with served(tmp_path) as client:
        client.post("/v1/images/generations", json=DRAW | {"prompt": PROVIDER})
    assert any(PROVIDER.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def run(*command: str, **environment: str) -> tuple[int, str]:
    """The exit code of `imagewright ...` and what it says; None of the operator's own settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("IMAGEWRIGHT_")}
    done = subprocess.run(
        [sys.executable, "-m", "imagewright", *command],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_databases_password_is_not_told(tmp_path: Path) -> None:
    for url in (
        f"postgresql://me:{PASSWORD}@127.0.0.1:1/x",
        f"postgresql://me:{PASSWORD}@127.0.0.1:x/y z",
        f"mysql://me:{PASSWORD}@127.0.0.1/x",
        f"://me:{PASSWORD}@h",
    ):
        code, said = run("serve", "--folder", str(tmp_path), IMAGEWRIGHT_DATABASE=url)
        assert code != 0 and said and PASSWORD not in said, said


HOSTS = [
    "0.0.0.0",
    "::",
    "[::]",
    "192.168.1.5",
    "fe80::1",
    "example.com",
    "my-machine.lan",
    "0",
    "127.0.0.1.example.com",
    "*",
    "",
]


@pytest.mark.parametrize("host", HOSTS)
def test_no_other_bind_than_loopback_without_a_key(host: str, tmp_path: Path) -> None:
    for given in ({}, {"admin_key": None}, {"admin_key": ""}, {"admin_key": "  "}):
        with pytest.raises(RequestError, match="open to everyone"):
            Settings(folder=tmp_path, host=host, **given)
        with pytest.raises(RequestError, match="open to everyone"):
            read({"host": host}, folder=tmp_path, **given)
    assert Settings(folder=tmp_path, host=host, admin_key=ADMIN).host == host


def test_the_process_does_not_start_without_a_key(tmp_path: Path) -> None:
    """By option, by configuration, with an empty key, with keys in the database: never."""
    config = tmp_path / "config.toml"
    folder = ("--folder", str(tmp_path / "data"), "--port", "0")
    assert run("keys", "create", "somebody", "--folder", str(tmp_path / "data"))[0] in (0, 2)
    for text, options, environment in (
        ("", ("--host", "0.0.0.0"), {}),
        ("", ("--host", "::"), {"IMAGEWRIGHT_ADMIN_KEY": ""}),
        ('[server]\nhost = "0.0.0.0"\n', (), {}),
        ('[server]\nhost = "0.0.0.0"\nadmin_key = ""\n', (), {}),
        ('[server]\nadmin_key = " "\n', ("--host", socket.gethostname()), {}),
    ):
        config.write_text(text)
        config.chmod(0o600)
        code, said = run("serve", *folder, *options, IMAGEWRIGHT_CONFIG=str(config), **environment)
        assert code not in (0, -9) and "IMAGEWRIGHT_ADMIN_KEY" in said, (text, options, said)


def test_the_key_of_the_configuration_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[server] admin_key, which is masked everywhere else; an empty variable does not take it away."""
    from imagewright import config
    from imagewright.cli_serve import settings_for

    file = tmp_path / "config.toml"
    file.write_text(f'[server]\nadmin_key = "{ADMIN}"\nhost = "0.0.0.0"\n')
    file.chmod(0o600)
    monkeypatch.setenv(config.VARIABLE, str(file))
    monkeypatch.setenv("IMAGEWRIGHT_ADMIN_KEY", "")
    settings = settings_for(folder=tmp_path)
    assert ADMIN not in repr(settings) and not settings.is_loopback
    with served(tmp_path, admin_key=settings.admin_key) as client:
        assert client.get("/v1/models", headers=bearer(ADMIN)).status_code == 200
        assert client.get("/v1/models").status_code == 401


FIELDS = [
    *(
        "api_base",
        "base_url",
        "api_key",
        "endpoint",
        "host",
        "url",
        "provider_options",
        "extra_body",
        "headers",
        "proxy",
    ),
    *("user_config", "litellm_params", "config", "webhook_url", "organization", "deployment", "azure_endpoint"),
]


def test_no_field_leads_a_key_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever names another host, at any depth, in any body: refused, or of no effect; the key goes where it must."""
    upstream, other = Upstream(400), Upstream(200)
    configured(tmp_path, upstream, monkeypatch)
    evil = {"api_base": other.url, "base_url": other.url, "api_key": "x", "headers": {"host": "evil"}}
    draw = DRAW | {"model": "mybox/flux"}
    with served(tmp_path / "data", admin_key=ADMIN) as client:
        client.headers["authorization"] = f"Bearer {ADMIN}"
        for name in FIELDS:
            for value in (other.url, {"imagewright": [evil], "provider_options": evil}):
                for path, body in (
                    ("/v1/images/generations", draw | {name: value}),
                    ("/v1/images/generations", draw | {"imagewright": {name: value}}),
                    ("/v1/images/edits", draw | {name: value, "images": [{"image_url": other.url}]}),
                    ("/v1/images/edits", draw | {"images": [{name: value}]}),
                    ("/v1/jobs", {"type": "image.generation", "request": draw | {name: value}}),
                    ("/v1/jobs", {"type": "image.generation", "request": draw, name: value}),
                ):
                    assert client.post(path, json=body).status_code == 400, (path, body)
        for name in FIELDS:  # these two take what they do not know
            tool = {"type": "image_generation", "model": "mybox/flux", name: evil}
            client.post("/v1/responses", json={"input": "draw a fox", "tools": [tool], name: evil})
            override = {"sd_model_checkpoint": "mybox/flux", name: other.url}
            client.post("/sdapi/v1/txt2img", json={"prompt": "a", name: other.url, "override_settings": override})
        for _ in range(4):
            client.post("/v1/images/generations", json=draw)
        for model in (other.url, f"openai/{other.url}", f"mybox/../{other.url}", f"mybox/{other.url}"):
            client.post("/v1/images/generations", json=draw | {"model": model})
    other.close()
    upstream.close()
    assert other.seen == []
    keys = {headers.get("authorization") for _, headers in upstream.seen}
    assert keys <= {f"Bearer {PROVIDER}", f"Bearer {PLANNER}"} and f"Bearer {PROVIDER}" in keys


def test_no_variable_makes_the_server_tell_anybody(tmp_path: Path) -> None:
    """OpenTelemetry's and FastAPI's own variables point at a listener, which hears nothing."""
    other = Upstream(200)
    variables = {
        "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": other.url,
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider",
        "HTTP_PROXY": other.url,
        "HTTPS_PROXY": other.url,
        "ALL_PROXY": other.url,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        app = create_app(Settings(folder=tmp_path / "x"))
        telemetry = app._telemetry
        assert not any(telemetry[name] for name in ("tracing", "metrics", "logs", "auto_configure"))
        process = Process(tmp_path / "log", "serve", "--port", "0", "--folder", str(tmp_path / "data"), "-m", FAKE)
        try:
            with httpx.Client(base_url=process.url, trust_env=False, timeout=60) as client:
                assert client.post("/v1/images/generations", json=DRAW).status_code == 200
                form = {"image": ("a.png", png(drawn()), "image/png")}
                assert client.post("/v1/images/variations", files=form, data={"prompt": "a"}).status_code == 200
        finally:
            process.tell()
            process.ended()
    other.close()
    assert other.seen == []
