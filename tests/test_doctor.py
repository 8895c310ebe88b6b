"""What doctor finds."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError

import pytest

from imagewright import cli, doctor
from imagewright.engines.engine import Engine
from imagewright.errors import ModelCorruptError


def checks() -> dict[str, doctor.Check]:
    """By name."""
    return {check.name: check for check in doctor.examine()}


def test_this_installation_is_described() -> None:
    found = checks()
    assert found["python"].state == "ok" and found["base packages"].state == "ok"
    assert "numpy" in found["base packages"].detail
    assert found["credentials"].state == "ok" and found["credentials"].detail.startswith("trusted")
    assert found["model fake/blocks"].detail == "sha256 abababababab"
    assert found["memory"].detail.endswith("GiB")


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", absent)
    found = checks()
    assert found["base packages"].state == "bad" and "pip install" in found["base packages"].fix
    assert found["extra [train]"].state == "absent"
    assert "imagewright[train]" in found["extra [train]"].fix


def test_changed_model_files_are_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify(self: Engine, name: str) -> None:
        raise ModelCorruptError(f"{name} was changed.", "Install it again.")

    monkeypatch.setattr("imagewright_fake.FakeEngine.verify", verify, raising=False)
    assert checks()["model fake/blocks"].state == "bad"
    assert cli.run(["doctor"]) == 1
    assert "blocks was changed" in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["doctor", "--json"])
    states = {check["state"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert code == ("bad" in states)
