"""Pinned packages: what does not match its hash is refused, and nothing is unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from sticker_fixtures import read_records, write_tarball

from imagewright.data import sources
from imagewright.data.sources import NAMES, PICTURES, check_integrity, read_json
from imagewright.errors import DataError, IntegrityError


def test_every_package_is_pinned_by_version_and_sha512() -> None:
    assert [source.style for source in PICTURES] == ["noto", "fluent", "flat", "twemoji", "openmoji"]
    for source in (NAMES, *PICTURES):
        assert source.version.count(".") == 2
        assert source.integrity.startswith("sha512-") and len(source.integrity) == len("sha512-") + 88


def test_a_changed_tarball_is_refused_with_both_hashes(tmp_path: Path) -> None:
    path = tmp_path / NAMES.file_name
    got = write_tarball(path, {"package/en/data.json": []})
    with pytest.raises(IntegrityError) as caught:
        check_integrity(path, NAMES)
    for part in (path.name, NAMES.integrity, got):
        assert part in caught.value.message
    assert caught.value.fix


def test_a_missing_tarball_names_the_command_that_fetches_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"npm pack emojibase-data@17\.0\.0"):
        check_integrity(tmp_path / NAMES.file_name, NAMES)


def test_members_are_read_in_memory_and_too_large_ones_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tgz"
    write_tarball(path, {"package/a.json": [1, 2], "package/../../b.json": [3]})
    assert read_json(path, "package/a.json") == [1, 2]
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.tgz"]
    with pytest.raises(DataError, match=r"has no package/c\.json"):
        read_json(path, "package/c.json")
    monkeypatch.setattr(sources, "MEMBER_LIMIT", 3)
    with pytest.raises(DataError, match="not a plain file"):
        read_json(path, "package/a.json")


def test_without_npm_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="--from"):
        sources.fetch(NAMES, tmp_path / "new")


@pytest.mark.network
@pytest.mark.slow
def test_a_real_slice_through_npm(tmp_path: Path) -> None:
    from imagewright.data.stickers import build

    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    # npm keeps its settings in the real home folder, which the tests hide
    ping = subprocess.run(
        [npm, "view", NAMES.spec, "version"], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    if ping.returncode != 0:
        pytest.skip(f"the registry cannot be reached: {ping.stderr.strip()[-200:]}")
    report = build(tmp_path / "set", size=32, limit=40, workers=1)
    assert sum(report.counts.values()) == 40
    records = read_records(tmp_path / "set")
    assert len({record["style"] for record in records}) >= 4
    assert all(record["text"] and record["licence"] for record in records)
