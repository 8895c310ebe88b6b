"""What an operator chooses: on the command line, in IMAGEWRIGHT_ variables, in the configuration file."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imagewright.config import Secret
from imagewright.errors import RequestError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
DAY = 86_400
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the server runs. Seconds, bytes, pictures.

    `admin_key` may do everything, also make keys; without it and without keys, everybody on this machine may do
    everything, and any other bind than loopback is refused. `models` maps what clients ask for to a model of ours;
    a name that is not listed there nor by the catalog goes to `default_model` only if it is one of the world's ids.
    `adapters` and `embeddings` are the LoRAs and textual inversions that clients may ask for, by the operator's names.
    `routes`, `prices` and `planner` are those tables of the configuration (routes.py, prices.py, and who understands
    what is said in a conversation: conversation/remote.py).
    `work`: draw pictures in this process; without it, `imagewright worker` processes do. `slots`: jobs done at once on
    this machine's cores, as many as the engine takes unless told. `queue`: jobs that wait or are done, at most.
    `drain`: how long what was begun may take to end when the server stops; `lease`: after how long a worker on another
    machine that says nothing is given up. What is older than `keep_days` is swept. `url_seconds`: how long an
    image's URL works. `public_url`: what clients reach the server by, if it is not the Host that they name.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    database: str = ""
    pictures: str = ""
    admin_key: str | None = field(default=None, repr=False)
    default_model: str | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    embeddings: Mapping[str, str] = field(default_factory=dict)
    routes: Mapping[str, Any] = field(default_factory=dict)
    prices: Mapping[str, Any] = field(default_factory=dict)
    planner: Mapping[str, Any] = field(default_factory=dict)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    public_url: str | None = None
    image_urls: bool = False
    work: bool = True
    slots: int | None = None
    queue: int = 256
    drain: float = 30.0
    lease: float = 15.0
    url_seconds: float = 3600.0
    keep_days: float = 30.0
    max_upload: int = 64 * 2**20
    coalesce: bool = True

    def __post_init__(self) -> None:
        if not self.is_loopback and not (self.admin_key or "").strip():
            raise RequestError(
                f"The server would be open to everyone who can reach {self.host}.",
                "Set IMAGEWRIGHT_ADMIN_KEY to a long random text, or leave --host at 127.0.0.1.",
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def database_url(self) -> str:
        """The database: a file in `folder` unless told."""
        return self.database or f"sqlite:///{self.folder / 'imagewright.db'}"

    @property
    def store_url(self) -> str:
        """Where pictures lie: in `folder` unless told."""
        return self.pictures or str(self.folder / "pictures")

    def knows_host(self, host: str, reached: tuple[str, int | None] | None = None) -> bool:
        """Whether a Host header (in lower case) names this server; `reached` is the address that was connected to.

        An address may stand for itself where a key is needed anyway: no name that a stranger turns on us is one.
        """
        found = _HOST.fullmatch(host)
        if found is None or not 0 < int(found["port"] or 80) < 2**16:
            return False
        itself = () if self.is_loopback or reached is None else (_bracketed(reached[0]),)
        return found["name"] in (*LOOPBACK, *self._names, *itself)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        public = urlsplit(self.public_url or "").hostname
        names = (self.host.strip("[]"), *self.allowed_hosts, *([public] if public else ()))
        return tuple(_bracketed(name.lower()) for name in names)

    @cached_property
    def origins(self) -> tuple[str, ...]:
        """The pages elsewhere that may use this server: those of the operator, and of `public_url`."""
        public = urlsplit(self.public_url or "")
        return (*self.allowed_origins, *([f"{public.scheme}://{public.netloc}".lower()] if public.netloc else ()))


def read(section: Mapping[str, Any], **given: Any) -> Settings:
    """Settings from the configuration's [server] section and what was `given` (None: not given).

    Raises RequestError for a name that does not exist.
    """
    known = set(Settings.__dataclass_fields__)
    if unknown := set(section) - known:
        raise RequestError(f"The configuration's [server] has no {sorted(unknown)[0]!r}.", "Correct or remove it.")
    values = {**section, **{name: value for name, value in given.items() if value is not None}}
    for name in ("allowed_hosts", "allowed_origins"):
        if name in values:
            values[name] = tuple(str(host).lower().rstrip("/") for host in values[name])
    if "folder" in values:
        values["folder"] = Path(values["folder"])
    if isinstance(key := values.get("admin_key"), Secret):
        values["admin_key"] = key.reveal()
    return Settings(**{"folder": default_folder()} | values)


def _bracketed(name: str) -> str:
    """A name or address as URLs have it."""
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def default_folder() -> Path:
    """Where the server keeps its data unless told."""
    import platformdirs

    return platformdirs.user_data_path("imagewright", appauthor=False) / "server"
