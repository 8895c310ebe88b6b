"""Stand-ins for hosted services: a class with routes, served on loopback, strict, and remembering what it was asked.

    class Example(StandIn):
        key = "sk-canary-1234"

        @route("POST", "/v1/pictures")
        def pictures(self, asked: Asked) -> Reply:
            self.demand(asked.headers.get("authorization") == f"Bearer {self.key}", 401, "no key")
            return as_json({"id": "1"})

    with Example() as service: ... service.url, service.asked

A path may end in `*`. What a route raises with `demand` is answered by `failure(status, message)`. `service.next`
holds replies that are given before any route is asked, the first first: how trouble is made.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from PIL import Image

JSON = "application/json"


@dataclass(frozen=True)
class Part:
    """One field of a multipart form."""

    name: str
    data: bytes
    filename: str | None
    content_type: str


@dataclass(frozen=True)
class Asked:
    """A request as it came; `headers` by lower-case name."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Its JSON."""
        return json.loads(self.body)

    def parts(self) -> list[Part]:
        """The fields of its multipart form."""
        head = b"content-type: " + self.headers["content-type"].encode() + b"\r\n\r\n"
        message = message_from_bytes(head + self.body)
        return [_part(one) for one in message.get_payload() if isinstance(one, Message)]

    def texts(self) -> dict[str, str]:
        """The fields of its multipart form that are no files."""
        return {part.name: part.data.decode() for part in self.parts() if part.filename is None}

    def files(self) -> dict[str, list[Part]]:
        """The files of its multipart form, by field."""
        found: dict[str, list[Part]] = {}
        for part in self.parts():
            if part.filename is not None:
                found.setdefault(part.name, []).append(part)
        return found


def _part(message: Message) -> Part:
    data = message.get_payload(decode=True)
    assert isinstance(data, bytes)
    name = message.get_param("name", header="content-disposition")
    return Part(str(name), data, message.get_filename(), message.get_content_type())


@dataclass(frozen=True)
class Reply:
    """What is answered. `cut`: only so many bytes of the body are sent, then the connection ends. `drip`: seconds
    between the bytes. `wait`: seconds before anything is said. `hang_up`: nothing is said at all."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON
    cut: int | None = None
    drip: float = 0.0
    wait: float = 0.0
    hang_up: bool = False


def as_json(value: Any, status: int = 200, **headers: str) -> Reply:
    """JSON; `retry_after="1"` becomes the header Retry-After."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, json.dumps(value).encode(), named)


def as_picture(data: bytes, content_type: str = "image/png", **headers: str) -> Reply:
    """The bytes of a picture."""
    return Reply(200, data, {name.replace("_", "-"): text for name, text in headers.items()}, content_type)


def as_events(events: Iterable[Mapping[str, Any]]) -> Reply:
    """A stream of events, each with its `type`."""
    text = "".join(f"event: {one.get('type', 'message')}\ndata: {json.dumps(one)}\n\n" for one in events)
    return Reply(200, text.encode(), {}, "text/event-stream")


def drawn(size: tuple[int, int] = (64, 64), colour: str = "#aa3311", kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A picture of one colour, as a file."""
    out = BytesIO()
    Image.new(mode, size, colour).save(out, kind)
    return out.getvalue()


class Refused(Exception):
    """Raised by `StandIn.demand`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


Handler = Callable[[Any, Asked], Reply]


def route(method: str, path: str) -> Callable[[Handler], Handler]:
    """Marks a method of a stand-in as what answers `method path`."""

    def mark(handler: Handler) -> Handler:
        handler.route = (method, re.compile(re.escape(path).replace(r"\*", "(.+)") + r"\Z"))  # type: ignore[attr-defined]
        return handler

    return mark


class StandIn:
    """A hosted service on loopback. `asked` has all requests in order, `next` replies that come before any route."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.next: deque[Reply] = deque()
        self._stopping = threading.Event()
        service = self

        class Handling(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30
            disable_nagle_algorithm = True  # or every answer waits 40 ms for what follows its head

            def do_GET(self) -> None:
                service._handle(self)

            do_POST = do_PUT = do_DELETE = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", 0), Handling)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def demand(self, fulfilled: object, status: int, message: str) -> None:
        """Answers with an error unless `fulfilled`."""
        if not fulfilled:
            raise Refused(status, message)

    def failure(self, status: int, message: str) -> Reply:
        """An error as the service writes it; OpenAI's form unless overridden."""
        kind = "invalid_request_error" if status < 500 else "server_error"
        return as_json({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)

    def count(self, path: str) -> int:
        """How many requests came for `path`."""
        return sum(one.path == path for one in self.asked)

    def _handle(self, connection: BaseHTTPRequestHandler) -> None:
        body = connection.rfile.read(int(connection.headers.get("content-length") or 0))
        at = urlsplit(connection.path)
        headers = {name.lower(): text for name, text in connection.headers.items()}
        asked = Asked(connection.command, at.path, parse_qs(at.query), headers, body)
        self.asked.append(asked)
        self._send(connection, self._reply(asked))

    def _reply(self, asked: Asked) -> Reply:
        try:
            return self.next.popleft()
        except IndexError:
            pass
        for name in dir(type(self)):
            method, pattern = getattr(getattr(type(self), name), "route", (None, None))
            if method == asked.method and pattern.match(asked.path):
                try:
                    reply: Reply = getattr(self, name)(asked)
                    return reply
                except Refused as refused:
                    return self.failure(refused.status, refused.message)
        return self.failure(404, f"no route {asked.method} {asked.path}")

    def _send(self, connection: BaseHTTPRequestHandler, reply: Reply) -> None:
        self._stopping.wait(reply.wait)
        if reply.hang_up:
            connection.close_connection = True
            return
        connection.send_response(reply.status)
        for name, text in {"content-type": reply.content_type, **reply.headers}.items():
            connection.send_header(name, text)
        connection.send_header("content-length", str(len(reply.body)))
        connection.end_headers()
        body = reply.body if reply.cut is None else reply.body[: reply.cut]
        if reply.drip:
            for byte in body:
                if self._stopping.is_set():
                    break
                connection.wfile.write(bytes([byte]))
                connection.wfile.flush()
                time.sleep(reply.drip)
        else:
            connection.wfile.write(body)
        if reply.cut is not None or reply.drip:
            connection.close_connection = True
