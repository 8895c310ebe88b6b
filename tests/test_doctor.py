"""What doctor finds."""

from __future__ import annotations

import json
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from imagewright import cli, doctor


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


def exported(folder: Path) -> None:
    """An exported model, as far as its files and hashes go."""
    folder.mkdir()
    files = {f"{part}.onnx": part.encode() for part in ("denoiser", "decoder")}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    description = {
        "format": 2,
        "files": {name: {"sha256": sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()},
        **{"name": "tiny", "technique": "diffusion", "summary": "", "licence": "", "size": [8, 8]},
        **{"default_size": [8, 8], "text_encoder": "", "text_heads": 4, "sampling": {"steps": 1, "guidance": 1}},
        **{"styles": {}, "max_tokens": 8, "training": {"manifest": ""}},
        "runtime": {"latent": [4, 2, 2], "process": "flow"},
    }
    (folder / "model.json").write_text(json.dumps(description))


def test_changed_model_files_are_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(tmp_path / "tiny")
    monkeypatch.setenv("IMAGEWRIGHT_MODELS", str(tmp_path))
    assert checks()["model embedded/tiny"].state == "ok"
    (tmp_path / "tiny" / "decoder.onnx").write_bytes(b"other")
    assert checks()["model embedded/tiny"].state == "bad"
    assert cli.run(["doctor"]) == 1
    assert "its hash does not match" in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(["doctor", "--json"])
    states = {check["state"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert code == ("bad" in states)
