"""The configuration: what wins, what is refused, and that no key is ever shown."""

from __future__ import annotations

import copy
import logging
import os
import sys
from pathlib import Path

import pytest

from imagewright import config
from imagewright.config import Config, Secret
from imagewright.errors import ConfigError

CANARY = "sk-canary-3f9c1b"
TEXT = f"""
[providers.openai]
key = "{CANARY}"
timeout = 20

[providers.mybox]
kind = "openai"
base_url = "http://127.0.0.1:9000/v1/"
models = ["flux", "sdxl"]
client_secret = "{CANARY}"

[server]
admin_key = "{CANARY}"
keys = [{{ name = "a", token = "{CANARY}" }}]

[prices."gpt-image-2"]
image = 0.04
"""


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [one for one in os.environ if one.endswith(("_API_KEY", "_BASE_URL"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv(config.VARIABLE, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    path.chmod(0o600)
    return path


def test_a_providers_table_is_read(file: Path) -> None:
    found = config.read(file)
    openai, mybox = found.provider("openai"), found.provider("mybox")
    assert openai.key is not None and openai.key.reveal() == CANARY
    assert (openai.timeout, openai.base_url) == (20.0, "")
    assert (mybox.key, mybox.base_url, mybox.timeout) == (None, "http://127.0.0.1:9000/v1", config.TIMEOUT)
    assert mybox.options["models"] == ["flux", "sdxl"]
    assert mybox.options["client_secret"] == Secret(CANARY)
    assert found.names() == ["openai", "mybox"]
    assert found.provider("nobody") == config.Provider("nobody")


def test_the_environment_wins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-outside")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1/")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("MYBOX_API_KEY", "box")
    monkeypatch.setenv("COMETAPI_API_KEY", "second")
    found = config.read(file)
    openai = found.provider("openai")
    assert openai.key == Secret("sk-from-outside")
    assert openai.base_url == "http://127.0.0.1:1/v1"
    assert openai.options["organization"] == "org-1"
    assert found.provider("mybox").key == Secret("box")
    assert found.provider("cometapi").key == Secret("second")
    monkeypatch.setenv("COMETAPI_KEY", "first")
    assert found.provider("cometapi").key == Secret("first")


def test_sections_are_found_by_their_names(file: Path) -> None:
    found = config.read(file)
    assert found.section("prices")["gpt-image-2"] == {"image": 0.04}
    assert found.section("server")["admin_key"] == Secret(CANARY)
    assert found.section("providers.mybox")["kind"] == "openai"
    assert found.section("nothing.at.all") == {}
    with pytest.raises(ConfigError, match="is no table"):
        found.section("providers.openai.timeout")


def test_without_a_file_there_is_nothing(home: Path) -> None:
    assert config.read() == Config()
    assert config.read().provider("openai").key is None


def test_a_named_file_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="There is no configuration"):
        config.read(tmp_path / "none.toml")
    monkeypatch.setenv(config.VARIABLE, str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="There is no configuration"):
        config.read()


def test_the_usual_place_is_found(file: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = config.default_path().parent
    assert home in folder.parents or folder == home
    folder.mkdir(parents=True, exist_ok=True)
    file.rename(folder / "config.toml")
    assert config.read().path == folder / "config.toml"


@pytest.mark.skipif(sys.platform == "win32", reason="no modes")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ConfigError, match="others could read it") as caught:
        config.read(file)
    assert "chmod 600" in caught.value.fix
    assert CANARY not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no modes")
def test_only_what_must_be_hidden_needs_to_be(file: Path) -> None:
    file.write_text('[server]\nport = 1\n[providers.x]\nbase_url = "http://127.0.0.1/v1"\n')
    file.chmod(0o644)
    assert config.read(file).section("server")["port"] == 1
    file.write_text('[server]\ndatabase = "postgresql://me:secret@db/x"\n')
    with pytest.raises(ConfigError, match="others could read it"):
        config.read(file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[providers.openai\nkey = 'sk-canary-3f9c1b'", "is no TOML"),
        (b"\xff\xfe", "is no TOML"),
        (b"key = 'sk-canary-3f9c1b' oops", "is no TOML"),
    ],
)
def test_a_broken_file_is_said_without_its_text(file: Path, data: bytes, message: str) -> None:
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=message) as caught:
        config.read(file)
    assert CANARY not in str(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Cannot read"):
        config.read(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("timeout = -1", "timeout"),
        ("timeout = true", "timeout"),
        ("timeout = 'soon'", "timeout"),
        ("timeout = 4000", "timeout"),
        ("base_url = 'ftp://x'", "base_url"),
        ("base_url = 'http://x/v1?key=1'", "base_url"),
        ("base_url = 7", "base_url"),
        ("key = 7", "key"),
        ("[providers]\nopenai = 3", "no table"),
        ('key = "a\\nb"', "key"),
    ],
)
def test_what_cannot_work_is_refused(file: Path, line: str, message: str) -> None:
    file.write_text(line if line.startswith("[") else f"[providers.openai]\n{line}\n")
    with pytest.raises(ConfigError, match=message):
        config.read(file).provider("openai")


def test_a_secret_is_in_no_text(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = config.read(file)
    secret = found.provider("openai").key
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("x").debug("%s %r %s", secret, found, found.provider("mybox"))
    shown = [str(secret), repr(secret), f"{secret}", f"{[secret]}", repr(found), str(found.section("server"))]
    assert CANARY not in " ".join(shown) + caplog.text
    assert "***" in shown[0]
    with pytest.raises(TypeError):
        copy.copy(secret)
