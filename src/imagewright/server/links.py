"""The URLs of pictures: for an hour they work for everybody who knows them, on every server of the same database.

A URL names the picture, until when it works, and a seal (HMAC-SHA256) over both that only the servers of this database
can make. So nothing is written down for it, and it cannot be guessed, lengthened or bent to another picture.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from base64 import urlsafe_b64encode
from functools import cached_property

import sqlalchemy as sa
from fastapi import Request

from imagewright.database import Database, metadata
from imagewright.server.settings import Settings

PATH = "/v1/images/files/"
SEAL = 22  # characters: 132 bits

_keys = sa.Table(
    "link_keys",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
)


class Links:
    """Makes and reads the names in the URLs of pictures: `img_....1764000000.seal`."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database, self.settings = database, settings

    def url(self, request: Request, picture: str, since: float | None = None) -> str:
        """Where a picture can be fetched for `url_seconds`, from now on or `since` then."""
        base = self.settings.public_url or f"{request.url.scheme}://{request.headers['host']}"
        until = math.ceil((time.time() if since is None else since) + self.settings.url_seconds)
        return f"{base.rstrip('/')}{PATH}{self.name(picture, until)}"

    def name(self, picture: str, until: int) -> str:
        """The last part of the URL of a picture that works `until` then (seconds since 1970)."""
        return f"{picture}.{until}.{self._seal(f'{picture}.{until}')}"

    def read(self, name: str) -> tuple[str, int] | None:
        """The picture's id and until when the name works; None where it is not one of ours, or works no more."""
        told, _, seal = name.rpartition(".")
        picture, _, until = told.rpartition(".")
        if not name.isascii() or not hmac.compare_digest(seal, self._seal(told)):
            return None
        return (picture, int(until)) if time.time() < int(until) else None

    def of_url(self, url: str, host: str) -> str | None:
        """The id of the picture that a URL of ours shows; None for all other URLs."""
        bases = [f"http://{host}", f"https://{host}", *([self.settings.public_url] if self.settings.public_url else ())]
        for base in bases:
            if url.startswith(start := base.rstrip("/") + PATH):
                found = self.read(url[len(start) :])
                return None if found is None else found[0]
        return None

    def _seal(self, told: str) -> str:
        return urlsafe_b64encode(hmac.digest(self._key, told.encode(), hashlib.sha256)).decode()[:SEAL]

    @cached_property
    def _key(self) -> bytes:
        """The key of this database's servers: whoever comes first makes it."""
        with self.database.write() as connection:
            mine = self.database.insert(_keys).values(number=1, key=secrets.token_bytes(32))
            connection.execute(mine.on_conflict_do_nothing())
            found: bytes = connection.execute(sa.select(_keys.c.key)).scalar_one()
        return bytes(found)
