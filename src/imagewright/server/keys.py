"""Virtual keys: who may ask for pictures, with which models, how often, and for how much money.

Only the sha256 of a token is kept, so that the database gives no key away. One row holds all that a key may do and has
done, so that one conditional UPDATE can check and take it (allowance.py). A token is looked up by its hash, and the
answer is believed for a few seconds; what changes in this process is seen at once, and accepting an order asks the row
itself again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool

from imagewright.database import Database, metadata
from imagewright.errors import RequestError
from imagewright.server.errors import not_found
from imagewright.server.security import ADMIN, EVERYBODY, Caller, unauthorised
from imagewright.server.settings import Settings

PREFIX = "sk-iw-"
PERIODS = ("day", "week", "month", "total")
FRESH = 2.0  # seconds that a looked up key is believed
CACHED = 10_000  # keys
MAX_MONEY = 10**15  # µ$
MAX_RATE = 1_000_000

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),  # sha256 of the token
    sa.Column("prefix", sa.String(16), nullable=False),  # of the token, to tell keys apart
    sa.Column("scopes", sa.Text, nullable=False),  # JSON
    sa.Column("models", sa.Text),  # JSON: patterns; null: all
    sa.Column("requests", sa.Integer),  # a minute
    sa.Column("images", sa.Integer),  # a minute
    sa.Column("parallel", sa.Integer),
    sa.Column("budget", sa.BigInteger),  # µ$ in a period
    sa.Column("period", sa.String(8), nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("metadata", sa.Text, nullable=False),  # JSON
    # What it has used so far, see allowance.py.
    sa.Column("requests_full", sa.Double, nullable=False, default=0.0),
    sa.Column("images_full", sa.Double, nullable=False, default=0.0),
    sa.Column("since", sa.String(16), nullable=False, default=""),
    sa.Column("spent", sa.BigInteger, nullable=False, default=0),
    sa.Column("reserved", sa.BigInteger, nullable=False, default=0),
)


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as it is shown: all but its token. Rates are per minute, money is in µ$, None: no bound."""

    id: str
    name: str
    prefix: str = ""
    scopes: tuple[str, ...] = ("images",)
    models: tuple[str, ...] | None = None
    requests: int | None = None
    images: int | None = None
    parallel: int | None = None
    budget: int | None = None
    period: str = "total"
    created: float = 0.0
    expires: float | None = None
    disabled: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    since: str = ""
    spent: int = 0
    reserved: int = 0

    def __post_init__(self) -> None:
        if unknown := set(self.scopes) - {"images", "admin"}:
            raise RequestError(f"There is no scope {sorted(unknown)[0]!r}.", "Use images, admin or both.")
        if self.period not in PERIODS:
            raise RequestError(f"There is no period {self.period!r}.", f"Use {', '.join(PERIODS)}.")
        if not self.name.strip() or len(self.name) > 200 or not self.name.isprintable():
            raise RequestError("A key needs a name of 1 to 200 plain characters.", "Say who will use it.")
        bounds = {
            "requests": (1, MAX_RATE),
            "images": (1, MAX_RATE),
            "parallel": (1, MAX_RATE),
            "budget": (0, MAX_MONEY),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(f"The value of {name} is {value}.", f"Use {low} to {high}.")

    @property
    def caller(self) -> Caller:
        """As routes know who asks."""
        return Caller(self.id, self.name, frozenset(self.scopes), self.models, self.budget)


def digest_of(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def create(connection: sa.Connection, **values: Any) -> tuple[Key, str]:
    """A new key and its token, which is told this once only. `values` as Key's. Raises RequestError."""
    token = PREFIX + secrets.token_urlsafe(32)
    shown = token[: len(PREFIX) + 4]
    key = Key(id=f"key_{secrets.token_hex(8)}", prefix=shown, created=time.time(), **values)
    connection.execute(keys.insert(), _row(key) | {"digest": digest_of(token)})
    return key, token


def get(connection: sa.Connection, key_id: str) -> Key:
    """The key with an id. Raises ApiError (404)."""
    row = connection.execute(sa.select(*_SHOWN).where(keys.c.id == key_id)).first()
    if row is None:
        raise not_found("key")
    return _key(row)


def listed(connection: sa.Connection) -> list[Key]:
    """All keys, the oldest first."""
    return [_key(row) for row in connection.execute(sa.select(*_SHOWN).order_by(keys.c.created, keys.c.id))]


def change(connection: sa.Connection, key_id: str, values: Mapping[str, Any]) -> Key:
    """The key with what `values` say anew. Raises ApiError (404), RequestError."""
    key = get(connection, key_id)
    changed = Key(**{**{name: getattr(key, name) for name in Key.__dataclass_fields__}, **values})
    row = {name: value for name, value in _row(changed).items() if name in values}
    if row:
        connection.execute(keys.update().where(keys.c.id == key_id).values(**row))
    return changed


def rotate(connection: sa.Connection, key_id: str) -> tuple[Key, str]:
    """The key with a new token; the old one is worth nothing from now on. Raises ApiError (404)."""
    key, token = get(connection, key_id), PREFIX + secrets.token_urlsafe(32)
    shown = token[: len(PREFIX) + 4]
    connection.execute(keys.update().where(keys.c.id == key_id).values(digest=digest_of(token), prefix=shown))
    return Key(**{**{name: getattr(key, name) for name in Key.__dataclass_fields__}, "prefix": shown}), token


class Keys:
    """Finds the owner of a token."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self._admin = None if settings.admin_key is None else digest_of(settings.admin_key)
        self._found: dict[str, tuple[float, Caller]] = {}  # digest: (until when, who)
        self._none_until = 0.0  # there is no key at all: believed until then

    async def caller(self, token: str | None) -> Caller:
        """The owner of a token. Raises ApiError (401). Without any key, a server on loopback serves everybody."""
        now = time.monotonic()
        if token is None:
            if self._admin is None and (now < self._none_until or await run_in_threadpool(self._are_none)):
                return EVERYBODY
            raise unauthorised()
        digest = digest_of(token)
        until, caller = self._found.get(digest, (0.0, None))
        if caller is not None and now < until:
            return caller
        if self._admin is not None and secrets.compare_digest(digest, self._admin):
            return ADMIN
        caller = await run_in_threadpool(self._look_up, digest)
        if caller is None:
            if self._admin is None and await run_in_threadpool(self._are_none):
                return EVERYBODY  # clients must send something
            raise unauthorised()
        if len(self._found) >= CACHED:
            self._found.clear()
        self._found[digest] = (now + FRESH, caller)
        return caller

    def forget(self) -> None:
        """Look every key up again: something was changed here."""
        self._found.clear()
        self._none_until = 0.0

    def _look_up(self, digest: str) -> Caller | None:
        with self.database.read() as connection:
            row = connection.execute(sa.select(*_SHOWN).where(keys.c.digest == digest)).first()
        if row is None or row.disabled or (row.expires is not None and row.expires <= time.time()):
            return None
        return _key(row).caller

    def _are_none(self) -> bool:
        with self.database.read() as connection:
            none = connection.execute(sa.select(keys.c.id).limit(1)).first() is None
        self._none_until = time.monotonic() + FRESH if none else 0.0
        return none


_SHOWN = [keys.c[name] for name in Key.__dataclass_fields__]
_JSON = ("scopes", "models", "metadata")


def _row(key: Key) -> dict[str, Any]:
    values = {name: getattr(key, name) for name in Key.__dataclass_fields__}
    return values | {name: _dumps(values[name]) for name in _JSON}


def _dumps(value: Any) -> str | None:
    return None if value is None else json.dumps(list(value) if isinstance(value, Sequence) else dict(value))


def _key(row: Any) -> Key:
    values = dict(row._mapping)
    values |= {name: None if values[name] is None else json.loads(values[name]) for name in _JSON}
    models = values["models"]
    return Key(**values | {"scopes": tuple(values["scopes"]), "models": None if models is None else tuple(models)})
