"""Pictures by URL: `data:` always, this server's own without a network, others only where the operator allows it.

A URL of a stranger must not lead into the network that the server stands in. So only http and https on their own ports
are followed; a name is resolved once, every address that it has must be public, and the connection goes to that very
address, with the name kept for the Host header and the certificate. Each redirect goes through the same. No proxy, no
cookie, no credential, no setting of the environment takes part, and what comes back is only kept if it is a picture.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property
from urllib.parse import unquote_to_bytes

import httpx

from imagewright.errors import RequestError
from imagewright.server.uploads import MAX_BYTES, sniffed

MAX_URL = 8192  # characters, but for `data:`
MAX_HOPS = 3  # redirects
SECONDS = 20.0  # for everything: names, redirects, the body
AT_ONCE = 8
PORTS = {"http": 80, "https": 443}

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]  # (name, port) -> addresses
Own = Callable[[str], bytes | None]  # a URL of this server's pictures -> their bytes; None: not one

_HEADERS = {"User-Agent": "imagewright", "Accept": "image/png, image/jpeg, image/webp", "Accept-Encoding": "identity"}
_UNFIT = re.compile(  # what parsers disagree on, a user or password, other digits than ours in a port
    r"[\x00-\x20\x7f\\]|\A[^/]*//[^/?#]*(@|:[^/?#]*[^\x00-\x7f])"
)
_NAME = re.compile(rb"[0-9a-z._:-]{1,253}")  # no %: neither escapes nor the zones of link-local addresses
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_START = 12  # bytes that tell what a file is
_INSTEAD = "Send the picture itself, as a file or a data: URL."

# Beside what `ipaddress` knows not to be global: old and new ways to write an IPv4 address as IPv6 or to carry one, and
# what answers to every machine of a cloud.
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
]
_IPV6 = ipaddress.ip_network("2000::/3")  # all else is local, reserved, or stands for IPv4: ::1, ::ffff:0:0, 64:ff9b::


class FetchError(RequestError):
    """There is no picture at this URL, or it may not be followed."""


class Fetcher:
    """Gets the bytes of pictures by URL; `enabled` allows those on other servers."""

    def __init__(
        self,
        enabled: bool = False,
        *,
        max_bytes: int = MAX_BYTES,
        seconds: float = SECONDS,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.enabled, self.max_bytes, self.seconds = enabled, max_bytes, seconds
        self._resolve, self._given_tls = resolve or resolved, tls
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def fetch(self, url: str, own: Own | None = None) -> bytes:
        """The bytes of the picture at `url`: PNG, JPEG or WebP by their start. Raises FetchError.

        `own` is asked first, in a thread: whether the URL is of a picture of this server's that the caller may have.
        """
        if url[:5].lower() == "data:":
            data = _of_data_url(url, self.max_bytes)
            self._look_at(data)
            return data
        if own is not None and (found := await asyncio.to_thread(own, url)) is not None:
            return found
        if not self.enabled:
            raise FetchError("This server fetches no pictures by URL.", _INSTEAD)
        try:
            async with asyncio.timeout(self.seconds), self._turns:
                return await self._followed(url)
        except TimeoutError as error:
            raise FetchError(f"The URL did not answer within {self.seconds:g} s.", _INSTEAD) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise FetchError(f"The URL cannot be fetched ({type(error).__name__}).", _INSTEAD) from error

    async def _followed(self, text: str) -> bytes:
        url = _checked(text)
        for _ in range(MAX_HOPS + 1):
            request = await self._request(url)
            async with httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False) as transport:
                response = await transport.handle_async_request(request)
                try:
                    if not response.has_redirect_location:
                        return await self._body(response)
                finally:
                    await response.aclose()
            url = _checked(str(url.join(response.headers["location"])))
        raise FetchError(f"The URL redirects more than {MAX_HOPS} times.", _INSTEAD)

    async def _request(self, url: httpx.URL) -> httpx.Request:
        """To the address that the URL's name has now."""
        name = url.raw_host.decode("ascii")
        try:
            addresses = await self._resolve(name, url.port or PORTS[url.scheme])
        except (OSError, UnicodeError):
            addresses = ()
        if not addresses or not all(map(is_public, addresses)):  # one answer for both: it tells nothing of inside
            raise FetchError(f"{name!r} has no public address.", _INSTEAD)
        headers = {**_HEADERS, "Host": url.netloc.decode("ascii")}
        extensions = {"sni_hostname": name, "timeout": httpx.Timeout(self.seconds).as_dict()}
        return httpx.Request("GET", url.copy_with(host=addresses[0]), headers=headers, extensions=extensions)

    async def _body(self, response: httpx.Response) -> bytes:
        if response.status_code != 200:
            raise FetchError(f"The URL answers with status {response.status_code}.", _INSTEAD)
        if response.headers.get("content-encoding", "identity") != "identity":
            raise FetchError("The URL answers with a compressed body.", _INSTEAD)
        found = bytearray()
        async for part in response.aiter_raw():
            found += part
            if len(found) >= _START:  # enough to stop early
                self._look_at(found)
        self._look_at(found)
        return bytes(found)

    def _look_at(self, data: bytes | bytearray) -> None:
        if len(data) > self.max_bytes:
            limit = f"{self.max_bytes / 2**20:.4g} MiB"
            raise FetchError(f"The picture at the URL has more than {limit}.", "Use a smaller picture.")
        if not sniffed(bytes(data[:_START])):
            raise FetchError("There is no PNG, JPEG or WebP picture at the URL.", "Convert it to one of these.")

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or httpx.create_ssl_context(trust_env=False)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large, and only to it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    inside = any(ip.version == network.version and ip in network for network in _NOT_PUBLIC)
    return ip.is_global and not ip.is_multicast and not inside and (ip.version == 4 or ip in _IPV6)


async def resolved(name: str, port: int) -> list[str]:
    """The addresses of a name, as the system finds them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _checked(text: str) -> httpx.URL:
    """A URL that may be followed, as far as its words say. Raises FetchError, InvalidURL."""
    if len(text) > MAX_URL:
        raise FetchError(f"The URL has more than {MAX_URL} characters.", _INSTEAD)
    if _UNFIT.search(text):
        raise FetchError("The URL has blanks, backslashes, a user or odd digits in it.", _INSTEAD)
    url = httpx.URL(text)
    if url.scheme not in PORTS:
        raise FetchError("Only http:// and https:// URLs are fetched.", _INSTEAD)
    if url.port not in (None, PORTS[url.scheme]):
        raise FetchError(f"The URL names port {url.port}; only 80 and 443 are used.", _INSTEAD)
    if not _NAME.fullmatch(url.raw_host):
        raise FetchError("The URL has no proper name of a server.", _INSTEAD)
    return url


def _of_data_url(url: str, most: int) -> bytes:
    """What a `data:` URL holds, at most about `most` bytes; what it says of its type is not believed."""
    head, comma, payload = url.partition(",")
    if not comma or len(head) > MAX_URL:
        raise FetchError("The data: URL holds no data.", "Write data:image/png;base64, and the bytes in base64.")
    if len(payload) > 3 * most + 3:
        raise FetchError(f"The data: URL has more than {most / 2**20:.4g} MiB.", "Use a smaller picture.")
    try:
        data = unquote_to_bytes(payload)
        if head.lower().endswith(";base64"):
            data = b"".join(data.split()).translate(_URL_SAFE)
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except ValueError as error:
        raise FetchError("The base64 of the data: URL is damaged.", "Encode the file's bytes again.") from error
    return data
