"""The sticker set: layout, names, splits by rule, licences, and that a kill leaves no half of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sticker_fixtures import ENTRIES, read_records

from imagewright.data import neardups
from imagewright.data.icons import IconSet
from imagewright.data.ledger import check_training, refusal
from imagewright.data.names import read_names
from imagewright.data.stickers import build
from imagewright.errors import DataError, LicenceError

PICTURES_PER_STYLE = len(ENTRIES) + 5  # five tones of one


def number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def test_the_folder_is_complete_and_every_file_has_its_hash(small_set: Path) -> None:
    records = read_records(small_set)
    assert len(records) == 5 * PICTURES_PER_STYLE + 60
    for record in records:
        data = (small_set / record["file_name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == record["sha256"]
        for field in ("text", "style", "base", "split", "kind", "source", "author", "licence", "consent"):
            assert record[field], (field, record)
        with Image.open(small_set / record["file_name"]) as picture:
            assert (picture.mode, picture.size) == ("RGBA", (48, 48))
    fluent = [record for record in records if record["style"] == "fluent" and record["kind"] == "sticker"]
    assert len(fluent) == PICTURES_PER_STYLE  # named by the code points of its flat sibling


def test_the_manifest_hash_is_over_the_sorted_lines(small_set: Path) -> None:
    manifest = json.loads((small_set / "manifest.json").read_text())
    lines = sorted((small_set / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    assert manifest["sha256"] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert sum(manifest["counts"].values()) == len(lines)
    card = (small_set / "README.md").read_text(encoding="utf-8")
    for word in (manifest["sha256"], "CC-BY-SA-4.0", "Microsoft Corporation", "% 20 == 0"):
        assert word in card


def test_splits_follow_the_published_rules(small_set: Path) -> None:
    seen = set()
    for record in read_records(small_set):
        if record["kind"] == "scene":
            continue
        if record["style"] == "openmoji":
            expected = "unseen_style"
        else:
            held = number(f"{record['style']}:{record['base']}") % 20 == 0
            expected = "style_holdout" if held else "train"
        assert record["split"] == expected, record
        seen.add(expected)
    assert seen == {"train", "style_holdout", "unseen_style"}


def test_tones_and_genders_share_their_base(small_set: Path) -> None:
    runners = [record for record in read_records(small_set) if "running" in record["text"]]
    assert {record["base"] for record in runners} == {"1F3C3"}
    assert sorted(record["tone"] for record in runners if record["style"] == "noto") == [0, 0, 1, 2, 3, 4, 5]


def test_base_concepts_of_pairs_couples_and_roles() -> None:
    labels = {
        "1F9D1": "person",
        "1F468": "man",
        "1F9D1-200D-1F692": "firefighter",
        "1F469-200D-1F692": "woman firefighter",
        "1F48F": "kiss",
        "1F468-200D-2764-FE0F-200D-1F48B-200D-1F468": "kiss: man, man",
        "1FAC5": "person with crown",
        "1F934": "prince",
        "1F98A": "fox",
    }
    names = read_names(
        [{"hexcode": code, "label": label} for code, label in labels.items()], {"groups": {}, "subgroups": {}}
    )
    bases = {name.label: name.base for name in names.values()}
    assert bases["man"] == "1F9D1"
    assert bases["woman firefighter"] == "1F9D1-200D-1F692"
    assert bases["kiss: man, man"] == "1F48F"
    assert bases["prince"] == "1FAC5"
    assert bases["fox"] == "1F98A"


def test_an_alias_is_flipped(small_set: Path) -> None:
    runner = np.asarray(Image.open(small_set / "images/noto/1F3C3.png"), np.int16)
    mirrored = np.asarray(Image.open(small_set / "images/noto/1F3C3-200D-2642-FE0F.png"), np.int16)
    assert np.abs(runner[:, ::-1] - mirrored).mean() < 1 < np.abs(runner - mirrored).mean()


def test_icons_resolve_aliases_boxes_and_turns() -> None:
    icons = {
        "icons": {"a": {"body": "<path/>", "width": 10, "left": 2}},
        "aliases": {"b": {"parent": "a", "hFlip": True}, "c": {"parent": "b", "hFlip": True, "rotate": 1}},
        "height": 20,
    }
    chosen = IconSet(icons, {"1": "a", "2": "b", "3": "c", "4": "none"})
    svgs = [chosen.svg(code) or "" for code in "123"]
    assert 'viewBox="2 0 10 20"' in svgs[0] and 'width="20" height="20"' in svgs[0]
    assert "scale(-1 1)" in svgs[1]
    assert "rotate(90 7.0 10.0)" in svgs[2] and "scale" not in svgs[2]
    assert chosen.svg("4") is None and chosen.svg("5") is None


def test_the_ledger_refuses_openmoji_and_what_has_no_licence(small_set: Path) -> None:
    records = read_records(small_set)
    check_training(records)
    openmoji = next(record for record in records if record["style"] == "openmoji")
    with pytest.raises(LicenceError, match=rf"{openmoji['file_name']}.*OpenMoji \(CC-BY-SA-4\.0\)"):
        check_training([{**openmoji, "split": "train"}])
    own = next(record for record in records if record["split"] == "train")
    for change in ({"licence": ""}, {"licence": "CC-BY-NC-4.0"}, {"consent": ""}):
        with pytest.raises(LicenceError, match=own["file_name"]):
            check_training([{**own, **change}])
    assert refusal(own) is None


def test_a_kill_leaves_nothing_and_the_next_build_is_whole(tarballs: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "draw" and done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(out, source=tarballs, size=32, workers=1, progress=stop)
    assert not out.exists() and list(tmp_path.iterdir()) == [tarballs]

    left_over = tmp_path / ".killed.partial" / "images" / "noto"  # what a kill -9 leaves
    left_over.mkdir(parents=True)
    (left_over / "half.png").write_bytes(b"\x89PNG")
    build(out, source=tarballs, size=32, workers=1)
    assert not (tmp_path / ".killed.partial").exists()
    assert not (out / "images" / "noto" / "half.png").exists()


def test_a_finished_set_is_left_as_it_is_and_never_overwritten(small_set: Path, tarballs: Path, tmp_path: Path) -> None:
    before = (small_set / "manifest.json").stat().st_mtime_ns
    again = build(small_set, source=tarballs, size=48, scenes=60, workers=1)
    assert again.already_there and (small_set / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="other parameters"):
        build(small_set, source=tarballs, size=64, workers=1)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="is not a sticker set"):
        build(strange, source=tarballs, workers=1)
    assert (strange / "letter.txt").read_text() == "dear"


def test_processes_make_the_same_set(small_set: Path, tarballs: Path, tmp_path: Path) -> None:
    report = build(tmp_path / "two", source=tarballs, size=48, scenes=60, workers=2)
    assert report.manifest == json.loads((small_set / "manifest.json").read_text())["sha256"]


def test_a_slice_is_part_of_the_whole(small_set: Path, tarballs: Path, tmp_path: Path) -> None:
    build(tmp_path / "slice", source=tarballs, size=48, limit=10, workers=1)
    whole = {record["file_name"] for record in read_records(small_set)}
    part = {record["file_name"] for record in read_records(tmp_path / "slice")}
    assert len(part) == 10 and part < whole


def test_near_duplicates_and_mirror_images_are_found_and_others_not() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (6, 8, 8, 4)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    pictures[..., 3] = 255
    thumbnails = np.stack([neardups.thumbnail(picture) for picture in pictures])
    noisy = np.clip(pictures[1].astype(int) + rng.integers(-6, 7, pictures[1].shape), 0, 255).astype(np.uint8)
    other = rng.integers(0, 256, (64, 64, 4)).astype(np.uint8)
    held = np.stack([neardups.thumbnail(view) for view in (noisy, pictures[2][:, ::-1].copy(), other)])
    least, index = neardups.nearest(held, thumbnails)
    assert list(index[:2]) == [1, 2]
    assert (least[:2] < neardups.THRESHOLD / 2).all() and least[2] > neardups.THRESHOLD


def test_a_held_out_picture_that_training_shows_leaves_the_test(
    tarballs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neardups, "THRESHOLD", 1.0)  # everything counts as a duplicate
    build(tmp_path / "set", source=tarballs, size=32, workers=1)
    dropped = [record for record in read_records(tmp_path / "set") if record["split"] == "dropped"]
    assert dropped and all("near-duplicate" in record["reason"] for record in dropped)
    assert all(number(f"{record['style']}:{record['base']}") % 20 == 0 for record in dropped)
