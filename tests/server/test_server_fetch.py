"""Pictures by URL: where a stranger's URL may lead, counted at the sockets."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from imagewright.server.fetch import Fetcher, FetchError, is_public, resolved

PUBLIC = "93.184.216.34"  # the address of the tests' stub, as far as the fetcher knows
BUFFER = BytesIO()
Image.new("RGB", (4, 4), "red").save(BUFFER, "PNG")
PICTURE = BUFFER.getvalue()
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Network:
    """Names and sockets under the eye of a test: `connected` has every address that anything connected to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connected: list[str] = []
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.names: dict[str, list[list[str]]] = {"stub.example": [[PUBLIC]]}
        self.answers: dict[str, bytes | Answer] = {"/picture.png": reply(PICTURE)}
        self.port = 0
        connect = socket.socket.connect

        def counted(sock: socket.socket, address: Any) -> Any:
            self.connected.append(address[0])
            if address[0] == PUBLIC:
                return connect(sock, ("127.0.0.1", self.port))
            raise ConnectionRefusedError(f"the test reaches only its stub, not {address}")

        monkeypatch.setattr(socket.socket, "connect", counted)

    async def resolve(self, name: str, port: int) -> Sequence[str]:
        """What a name has next; the last stays. Numbers as the system reads them, without a name server."""
        self.asked.append(name)
        if name in self.names:
            answers = self.names[name]
            return answers.pop(0) if len(answers) > 1 else answers[0]
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [str(address[0]) for *_, address in found]

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> Any:
        """The stub, at PUBLIC."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            path = head.split(" ")[1]
            known = self.answers.get(path, reply(b"", status="404 Not Found"))
            answer = redirect(path[10:]) if path.startswith("/redirect/") else known
            if isinstance(answer, bytes):
                writer.write(answer)
            else:
                await answer(writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def fetch(self, url: str, server_tls: ssl.SSLContext | None = None, **options: Any) -> bytes:
        """What a fetcher makes of `url` while the stub serves."""

        async def main() -> bytes:
            async with self.serving(server_tls):
                return await Fetcher(True, resolve=self.resolve, **options).fetch(url)

        return asyncio.run(main())


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    yield Network(monkeypatch)


def reply(body: bytes, head: str = "", status: str = "200 OK") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if "Content-Length" not in head else ""
    return f"HTTP/1.1 {status}\r\n{length}Content-Type: text/html\r\n{head}\r\n".encode() + body


def redirect(to: str, head: str = "", status: int = 302) -> bytes:
    return reply(b"", f"Location: {unquote(to)}\r\n{head}", f"{status} Found")


PRIVATE4 = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.254", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.8.8.8"),
    *("169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1"),
    *("192.168.0.1", "192.168.255.255", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1"),
    *("239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
]
PRIVATE6 = [
    *("::", "::1", "::2", "::7f00:1", "::127.0.0.1", "fe80::1", "febf::1", "fec0::1", "fc00::1", "fd00:ec2::254"),
    *("fd12:3456::1", "ff02::1", "ff0e::1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:2::1", "2001:10::1"),
    *("2001:db8::1", "3fff::1", "2002:7f00:1::", "2002:a00:1::1", "64:ff9b::7f00:1", "64:ff9b::8.8.8.8"),
    *("64:ff9b:1::a00:1", "5f00::1", "4000::1", "8000::1"),
]
WORDS = [
    *("file:///etc/passwd", "file://localhost/etc/passwd", "gopher://127.0.0.1:6379/_INFO", "ftp://127.0.0.1/x"),
    *("dict://127.0.0.1:11211/stats", "ldap://127.0.0.1/", "ws://127.0.0.1/", "unix:///var/run/docker.sock"),
    *("jar:http://127.0.0.1!/x", "javascript:alert(1)", "about:blank", "blob:http://127.0.0.1/x", "/etc/passwd"),
    *("//127.0.0.1/x", "127.0.0.1", "127.0.0.1:80", "http:", "http:/", "http://", "http:///x", "http:/127.0.0.1/"),
    *("http:127.0.0.1", "http://?", "http://#", "http://:80/", "", " ", "\n", "\0", "http", "https://"),
    *("http://user@stub.example/picture.png", "http://user:password@stub.example/", "http://@stub.example/"),
    *("http://stub.example:80@127.0.0.1/", "http://127.0.0.1:80@stub.example/", "http://a@b@stub.example/"),
    *("http://stub.example\\@127.0.0.1/", "http://127.0.0.1\\@stub.example/", "http:\\\\127.0.0.1\\x"),
    *("http://stub.example:22/", "http://stub.example:443/", "https://stub.example:80/", "http://stub.example:8000/"),
    *("http://stub.example:0/", "http://stub.example:65536/", "http://stub.example:-1/", "http://stub.example:8 0/"),
    *("http://stub.example:80:80/", "http://stub.example:٨٠/", "http://stub.example:+80x/"),
    *("http://stub.example /", "http://stub.example\t/", "http://stub.example\r\nHost: x/", "http://stub.example\0/"),
    *("http://127.0.0.1%00.stub.example/", "http://127.0.0.1%2f@stub.example/", "http://%31%32%37.0.0.1/"),
    *("http://[fe80::1%25eth0]/", "http://[::1%251]/", "http://[::1/", "http://::1]/", "http://[]/", "http://[v1.x]/"),
    *("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::ffff:169.254.169.254]/"),
    *("http://[0:0:0:0:0:ffff:a00:1]/", "http://[::ffff:93.184.216.34]/", "http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/"),
    *("http://１２７.0.0.1/", "http://localhost/", "http://LOCALHOST/", "http://localhost./", "http://0/", "http://1/"),
    *("http://127.1/", "http://127.0.1/", "http://2130706433/", "http://0x7f000001/", "http://017700000001/"),
    *("http://0x7f.0x0.0x0.0x1/", "http://0177.0.0.1/", "http://00000177.0.0.1/", "http://0x7f.1/", "http://0177.1/"),
    *("http://127.0.0.1.:80/", "http://3232235521/", "http://0xa9fea9fe/", "http://2852039166/", "http://4294967295/"),
    *(
        "http://169.254.43518/",
        "http://0251.0376.0251.0376/",
        "http://10.1/",
        "http://192.168.257/",
        "http://172.1048577/",
    ),
    *("https://127.0.0.1/", "https://[::1]/", "HTTP://127.0.0.1/", "hTTpS://10.0.0.1/", "http://127.0.0.1:80/"),
    *("http://inside.example/", "http://both.example/", "http://six.example/", "http://mapped.example/"),
    *(
        "http://nowhere.example/",
        "http://metadata.example/latest/",
        "http://" + "a" * 300 + ".example/",
        "http://.example/",
    ),
    *("http://example.com" + "/" * 9000, "http://xn--a/", "http://-/", "http://*/", "http://stub.example,127.0.0.1/"),
]
TABLE = [f"http://{address}/" for address in PRIVATE4] + [f"http://{address}:80/x" for address in PRIVATE4]
TABLE += [f"http://[{address}]/" for address in PRIVATE6] + [f"https://[{address}]:443/" for address in PRIVATE6]
TABLE += [f"http://{int(ipaddress.ip_address(address))}/" for address in PRIVATE4] + WORDS
INSIDE = {
    "inside.example": [["10.0.0.5"]],
    "both.example": [[PUBLIC, "192.168.0.5"]],
    "six.example": [["fd00::1"]],
    "mapped.example": [["::ffff:127.0.0.1"]],
    "metadata.example": [["169.254.169.254"]],
    "localhost": [["127.0.0.1", "::1"]],
    "localhost.": [["127.0.0.1"]],
}


def test_no_url_of_the_table_leads_to_a_socket(network: Network) -> None:
    assert len(set(TABLE)) >= 200
    network.names |= INSIDE
    fetcher = Fetcher(True, resolve=network.resolve)

    async def main() -> None:
        for url in TABLE:
            with pytest.raises(FetchError):
                pytest.fail(f"{url!r} gave {await fetcher.fetch(url)!r}")

    asyncio.run(main())
    assert network.connected == []


def test_no_redirect_leads_there_either(network: Network) -> None:
    network.names |= INSIDE
    fetcher = Fetcher(True, resolve=network.resolve)
    inside = [url for url in TABLE if url.isascii() and url.isprintable() and url.strip() and "stub" not in url]
    inside = [
        url
        for url in inside
        if len(url) < 2000 and url.lower().startswith(("http://", "https://", "file", "ftp", "//"))
    ]

    async def main() -> None:
        async with network.serving():
            for url in inside:
                with pytest.raises(FetchError):
                    pytest.fail(f"{url!r} gave {await fetcher.fetch(f'http://stub.example/redirect/{quote(url)}')!r}")

    asyncio.run(main())
    assert len(inside) >= 150
    assert set(network.connected) == {PUBLIC}  # a few are read as paths of the stub


@pytest.mark.parametrize(
    "address", [*PRIVATE4, *PRIVATE6, *(f"::ffff:{a}" for a in PRIVATE4), "", "x", "1.2.3", "::1%lo"]
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"]
)
def test_public(address: str) -> None:
    assert is_public(address)


def test_a_picture_comes_from_the_address_that_was_checked(network: Network) -> None:
    network.answers["/picture.png?a=b"] = reply(PICTURE)
    assert network.fetch("http://stub.example/picture.png?a=b#part") == PICTURE
    assert network.asked == ["stub.example"] and network.connected == [PUBLIC]
    (head,) = network.heads
    assert "Host: stub.example\r\n" in head and "Accept-Encoding: identity\r\n" in head
    assert not any(word in head.lower() for word in ("cookie", "authorization", "referer", PUBLIC))


def test_the_first_address_is_taken_of_either_kind(network: Network) -> None:
    network.names["six.example"] = [["2606:4700::1111", PUBLIC]]
    with pytest.raises(FetchError, match="Error"):
        network.fetch("http://six.example/picture.png")
    assert network.connected == ["2606:4700::1111"]


def test_a_name_that_changes_its_mind_is_asked_once_a_hop(network: Network) -> None:
    network.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert network.fetch("http://rebinding.example/picture.png") == PICTURE
    assert network.asked == ["rebinding.example"] and network.connected == [PUBLIC]

    network.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
    with pytest.raises(FetchError, match="no public address"):
        network.fetch("http://rebinding.example/redirect//picture.png")
    assert network.connected == [PUBLIC, PUBLIC]


def test_inside_and_nowhere_sound_the_same(network: Network) -> None:
    network.names |= INSIDE
    said = []
    for name in ("inside.example", "nowhere.example"):
        with pytest.raises(FetchError) as caught:
            network.fetch(f"http://{name}/")
        said.append(str(caught.value).replace(name, ""))
    assert said[0] == said[1]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(network: Network, status: int) -> None:
    network.answers |= {
        "/a": redirect("b", "Set-Cookie: a=b\r\n", status),
        "/b": redirect("http://stub.example/picture.png"),
    }
    assert network.fetch("http://stub.example/a") == PICTURE
    assert len(network.connected) == 3 and not any("cookie" in head.lower() for head in network.heads)


def test_redirects_end(network: Network) -> None:
    network.answers["/loop"] = redirect("/loop")
    with pytest.raises(FetchError, match="redirects more than 3 times"):
        network.fetch("http://stub.example/loop")
    assert len(network.connected) == 4


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(reply(PICTURE, "Content-Length: 1000000\r\n")[:-1])
    while True:
        writer.write(b"\0")
        await writer.drain()
        await asyncio.sleep(0.02)


async def dripping_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(b"%x\r\n%s\r\n" % (len(PICTURE), PICTURE))
    while True:
        writer.write(b"10000\r\n" + b"\0" * 65536 + b"\r\n")
        await writer.drain()


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(5)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (drip, "did not answer within"),
        (dripping_head, "did not answer within"),
        (silent, "did not answer within"),
        (endless, "more than"),
        (reply(PICTURE + b"\0" * 3_000_000), "more than 1.907 MiB"),
        (reply(PICTURE, "Content-Encoding: gzip\r\n"), "compressed"),
        (reply(PICTURE, status="404 Not Found"), "404"),
        (reply(PICTURE, status="302 Found"), "302"),
        (reply(PICTURE, "Content-Length: 900\r\n"), "RemoteProtocolError"),
        (reply(b"<html>secret of the intranet</html>"), "no PNG"),
        (reply(b""), "no PNG"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: zwei\r\n\r\n", "cannot be fetched"),
        (b"SSH-2.0-OpenSSH\r\n", "cannot be fetched"),
        (b"", "cannot be fetched"),
        (reply(PICTURE, "X: " + "y" * 200_000 + "\r\n"), "cannot be fetched"),
    ],
)
def test_a_server_that_misbehaves(network: Network, answer: bytes | Answer, words: str) -> None:
    network.answers["/x"] = answer
    with pytest.raises(FetchError, match=words) as caught:
        network.fetch("http://stub.example/x", seconds=0.3, max_bytes=2_000_000)
    assert "secret" not in str(caught.value) and caught.value.fix


def test_a_picture_without_a_length_is_taken(network: Network) -> None:
    network.answers["/x"] = b"HTTP/1.1 200 OK\r\n\r\n" + PICTURE
    assert network.fetch("http://stub.example/x") == PICTURE


def test_the_environment_has_no_say(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://10.0.0.1:3128")
    assert network.fetch("http://stub.example/picture.png") == PICTURE
    assert network.connected == [PUBLIC]


def contexts(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server with a certificate for `name`, and for clients that trust it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(pem + secret)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "both.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


def test_a_certificate_must_be_the_names(network: Network, tmp_path: Path) -> None:
    server, trusting = contexts(tmp_path, "stub.example")
    names: list[str] = []
    server.sni_callback = lambda _, name, __: names.append(str(name))
    assert network.fetch("https://stub.example/picture.png", server, tls=trusting) == PICTURE
    assert names == ["stub.example"] and network.connected == [PUBLIC]
    network.names["other.example"] = [[PUBLIC]]
    for url, options in (
        ("https://other.example/picture.png", {"tls": trusting}),
        ("https://stub.example/picture.png", {}),
    ):
        with pytest.raises(FetchError, match="cannot be fetched"):
            network.fetch(url, server, **options)


BASE64 = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{BASE64}",
        f"DATA:;base64,{BASE64}",
        f"data:text/html;charset=utf-8;base64,{BASE64}",
        f"data:image/jpeg;base64,{quote(BASE64, safe='')}",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(PICTURE).decode()}",
        "data:image/png;base64," + "\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
        f"data:,{quote(PICTURE)}",
    ],
)
def test_data_urls_are_always_allowed(url: str) -> None:
    assert asyncio.run(Fetcher().fetch(url)) == PICTURE


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:", "no data"),
        ("data:image/png;base64", "no data"),
        ("data:image/png;base64,", "no PNG"),
        ("data:image/png;base64,%%%", "damaged"),
        ("data:image/png;base64,a", "damaged"),
        ("data:image/png;base64,\ud800", "damaged"),
        ("data:image/png;base64,é" + BASE64, "damaged"),
        ("data:image/svg+xml,<svg/>", "no PNG"),
        ("data:text/html;base64," + base64.b64encode(b"<script>alert(1)</script>").decode(), "no PNG"),
        ("data:image/png;base64," + "A" * 4_000_000, "more than"),
        ("data:image/png;base64," + base64.b64encode(PICTURE + b"\0" * 1_500_000).decode(), "more than"),
        ("data:" + "x" * 10_000 + "," + BASE64, "no data"),
    ],
)
def test_data_urls_have_limits(url: str, words: str) -> None:
    with pytest.raises(FetchError, match=words):
        asyncio.run(Fetcher(max_bytes=1_000_000).fetch(url))


def test_other_urls_are_off_unless_allowed(network: Network) -> None:
    with pytest.raises(FetchError, match="fetches no pictures by URL") as caught:
        asyncio.run(Fetcher(resolve=network.resolve).fetch("http://stub.example/picture.png"))
    assert "data:" in caught.value.fix
    assert network.asked == network.connected == []


def test_this_servers_own_pictures_need_no_network(network: Network) -> None:
    own = {"http://127.0.0.1:8000/v1/images/img_1": b"own"}.get
    fetcher = Fetcher(resolve=network.resolve)
    assert asyncio.run(fetcher.fetch("http://127.0.0.1:8000/v1/images/img_1", own)) == b"own"
    with pytest.raises(FetchError):
        asyncio.run(fetcher.fetch("http://127.0.0.1:8000/v1/images/img_2", own))
    assert network.connected == []


def test_names_are_resolved_by_the_system() -> None:
    assert "127.0.0.1" in asyncio.run(resolved("localhost", 80))
