"""The user's configuration: one TOML file, and the environment, which wins.

The file is `config.toml` in the user's configuration folder, or where IMAGEWRIGHT_CONFIG says. Hosted services:

    [providers.openai]
    key = "sk-..."

    [providers.mybox]              # any server that speaks OpenAI's form
    kind = "openai"
    base_url = "http://127.0.0.1:9000/v1"
    models = ["flux"]

Whatever is called a key, a secret, a token or a password becomes a `Secret`, which no text form shows; a file that
holds one is refused while others on this machine could read it.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from imagewright.errors import ConfigError

VARIABLE = "IMAGEWRIGHT_CONFIG"
TIMEOUT = 300.0  # seconds that one call of a hosted service may take in all
_SECRET = re.compile(r"(?:.*_)?(?:key|secret|token|password)")
_PASSWORD_IN_URL = re.compile(r"\w+://[^/\s:@]*:[^/\s@]+@")
_OWN = ("key", "base_url", "timeout")  # of a provider's table; the rest are its options

# provider: what it calls its option -> the environment variables that may hold it, the first wins.
VARIABLES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "openai": {
        "key": ("OPENAI_API_KEY",),
        "base_url": ("OPENAI_BASE_URL",),
        "organization": ("OPENAI_ORG_ID",),
        "project": ("OPENAI_PROJECT_ID",),
    },
    "cometapi": {"key": ("COMETAPI_KEY", "COMETAPI_API_KEY"), "base_url": ("COMETAPI_BASE_URL", "COMETAPI_API_BASE")},
    "gemini": {"key": ("GEMINI_API_KEY", "GOOGLE_API_KEY"), "base_url": ("GEMINI_BASE_URL",)},
    "firefly": {
        "client_id": ("FIREFLY_CLIENT_ID", "FIREFLY_SERVICES_CLIENT_ID"),
        "client_secret": ("FIREFLY_CLIENT_SECRET", "FIREFLY_SERVICES_CLIENT_SECRET"),
        "base_url": ("FIREFLY_BASE_URL",),
        "token_url": ("FIREFLY_TOKEN_URL",),
    },
}


class Secret:
    """Text that is never shown: only `reveal` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("A secret is not stored.")


@dataclass(frozen=True)
class Provider:
    """How to reach a hosted service. `base_url` is empty where nothing but the service's own is known; `timeout` is in
    seconds, for a whole call; `options` are what else its table holds."""

    name: str
    key: Secret | None = None
    base_url: str = ""
    timeout: float = TIMEOUT
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """What the file says, with `Secret`s in it; `path` is None where there is no file."""

    path: Path | None = None
    tables: Mapping[str, Any] = field(default_factory=dict)

    def section(self, name: str) -> Mapping[str, Any]:
        """The table `name`, which may be dotted (`prices.openai`); empty where there is none. Raises ConfigError."""
        found: Mapping[str, Any] = self.tables
        for part in name.split("."):
            inner = found.get(part, {})
            if not isinstance(inner, Mapping):
                raise ConfigError(f"{name} in the configuration is no table.", f"Write [{name}] and its lines below.")
            found = inner
        return found

    def provider(self, name: str) -> Provider:
        """The hosted service called `name`; what the environment says wins. Raises ConfigError."""
        found = self.section("providers").get(name, {})
        if not isinstance(found, Mapping):
            raise ConfigError(f"providers.{name} in the configuration is no table.", f"Write [providers.{name}].")
        table = dict(found)
        for option, variables in variables_of(name).items():
            if value := next((os.environ[one] for one in variables if os.environ.get(one)), None):
                table[option] = Secret(value) if _SECRET.fullmatch(option) else value
        key, base_url, timeout = table.get("key"), table.get("base_url", ""), table.get("timeout", TIMEOUT)
        if key is not None and not (isinstance(key, Secret) and key.reveal().isascii() and key.reveal().isprintable()):
            raise ConfigError(f"The key of {name} is no plain text.", "Copy it again, without line breaks.")
        if not isinstance(base_url, str) or not re.fullmatch(r"(https?://[^\s?#]+)?", base_url):
            raise ConfigError(f"The base_url of {name} is no address.", "Write it as https://HOST/v1")
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= 3600:
            raise ConfigError(f"The timeout of {name} is {timeout!r}.", "Give seconds, more than 0 and at most 3600.")
        options = {option: value for option, value in table.items() if option not in _OWN}
        return Provider(name, key, base_url.rstrip("/"), float(timeout), MappingProxyType(options))

    def names(self) -> list[str]:
        """The hosted services that the file has a table for."""
        return [name for name, table in self.section("providers").items() if isinstance(table, Mapping)]


def variables_of(name: str) -> Mapping[str, tuple[str, ...]]:
    """The environment variables of a hosted service, by option: NAME_API_KEY and NAME_BASE_URL unless it has others."""
    stem = re.sub(r"\W", "_", name).upper()
    return VARIABLES.get(name) or {"key": (f"{stem}_API_KEY",), "base_url": (f"{stem}_BASE_URL",)}


def default_path() -> Path:
    """Where the configuration is, whether or not there is one."""
    from platformdirs import user_config_path

    return Path(os.environ.get(VARIABLE) or user_config_path("imagewright") / "config.toml")


def read(path: Path | None = None) -> Config:
    """The configuration at `path`, or at the usual place, where none may be.

    Raises ConfigError where it cannot be read, is no TOML, or holds a key that others could read.
    """
    named = path is not None or bool(os.environ.get(VARIABLE))
    path = path or default_path()
    try:
        with path.open("rb") as file:
            mode, data = os.fstat(file.fileno()).st_mode, file.read()
        tables = tomllib.loads(data.decode("utf-8"))
    except FileNotFoundError:
        if named:
            raise ConfigError(f"There is no configuration {str(path)!r}.", "Make it, or do not name it.") from None
        return Config()
    except OSError as error:
        raise ConfigError(f"Cannot read {str(path)!r}: {error.strerror}.", "Check the path and its rights.") from error
    except ValueError as error:  # of TOML or UTF-8; neither message quotes the file
        where = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "it is not UTF-8 text"
        raise ConfigError(f"{str(path)!r} is no TOML: {where}.", "Mend that line.") from None
    masked, holds_secret = _masked(tables)
    if holds_secret and os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{str(path)!r} holds a key, and others could read it.", f"Run: chmod 600 {path}")
    return Config(path, masked)


def _masked(value: Any, name: str = "") -> tuple[Any, bool]:
    """`value` with `Secret`s, and whether it holds anything that others must not read."""
    if isinstance(value, dict):
        pairs = {key: _masked(inner, key) for key, inner in value.items()}
        return MappingProxyType({key: inner for key, (inner, _) in pairs.items()}), any(s for _, s in pairs.values())
    if isinstance(value, list):
        items = [_masked(inner, name) for inner in value]
        return [inner for inner, _ in items], any(secret for _, secret in items)
    if not isinstance(value, str):
        return value, False
    if _SECRET.fullmatch(name):
        return Secret(value), bool(value)
    return value, bool(_PASSWORD_IN_URL.match(value))
