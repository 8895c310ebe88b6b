"""The loader: sampling by concept as a pure function of the step, packed pixels, captions and licences."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sticker_fixtures import read_records

from imagewright.data.batch import STYLES
from imagewright.data.ledger import manifest_hash
from imagewright.data.loader import CaptionedFolder, square
from imagewright.errors import DataError, LicenceError


@pytest.fixture
def folder(small_set: Path) -> CaptionedFolder:
    return CaptionedFolder(small_set)


def test_a_step_is_a_pure_function_and_rows_are_slices_of_it(folder: CaptionedFolder) -> None:
    whole = folder.indices(3, 11, 64)
    assert np.array_equal(whole, folder.indices(3, 11, 64))
    assert np.array_equal(whole[16:40], folder.indices(3, 11, 64, 16, 40))
    assert not np.array_equal(whole, folder.indices(3, 12, 64))
    assert not np.array_equal(whole, folder.indices(4, 11, 64))
    assert folder.captions(3, 11, whole)[16:40] == folder.captions(3, 11, whole[16:40], start=16)


def test_only_training_pictures_by_concept_then_style_then_tone(folder: CaptionedFolder) -> None:
    drawn = np.concatenate([folder.indices(0, step, 500) for step in range(40)])
    records = [folder.records[i] for i in drawn]
    assert {record["split"] for record in records} == {"train"}
    scenes = sum(record["kind"] == "scene" for record in records) / len(records)
    assert abs(scenes - 0.3) < 0.02
    stickers = [record for record in records if record["kind"] == "sticker"]
    concepts = Counter(record["base"] for record in stickers)
    expected = len(stickers) / len(concepts)
    assert len(concepts) == 12 and all(abs(count - expected) < 0.2 * expected for count in concepts.values())
    runners = [record for record in stickers if record["base"] == "1F3C3"]  # 7 of the 18 files of a style
    styles = Counter(record["style"] for record in runners)
    assert all(abs(count / len(runners) - 0.25) < 0.06 for count in styles.values()) and len(styles) == 4
    assert abs(sum(record["tone"] > 0 for record in runners) / len(runners) - 0.25) < 0.06


def test_shares_can_be_set(folder: CaptionedFolder) -> None:
    drawn = folder.indices(0, 0, 800, scenes_share=0.0, tones_share=1.0)
    records = [folder.records[i] for i in drawn]
    assert all(record["kind"] == "sticker" for record in records)
    assert all(record["tone"] for record in records if record["base"] == "1F3C3")


def test_held_out_pictures_are_the_style_hold_out(folder: CaptionedFolder) -> None:
    held = folder.heldout(100, seed=1)
    assert {folder.records[i]["split"] for i in held} == {"style_holdout"}
    assert len(set(held)) == len(held) == 3  # fish in noto, car in flat and in twemoji
    assert np.array_equal(folder.heldout(2, seed=1), held[:2])


def test_pixels_are_premultiplied_and_match_the_files(folder: CaptionedFolder) -> None:
    packed = folder.packed(48)
    assert packed.shape == (len(folder), 48, 48, 4) and packed.dtype == np.uint8
    assert (packed[..., :3] <= packed[..., 3:]).all()
    record = folder.records[5]
    straight = np.asarray(Image.open(folder.path / record["file_name"]), np.float64)
    wanted = straight[..., :3] * straight[..., 3:] / 255
    assert np.abs(packed[5][..., :3] - wanted).max() <= 1
    chosen = folder.indices(0, 0, 8)
    pixels = folder.pixels(chosen, 16)
    assert pixels.shape == (8, 4, 16, 16) and pixels.dtype == torch.float32
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert (pixels[:, :3] <= pixels[:, 3:]).all()
    assert [STYLES[i] for i in folder.styles(chosen)] == [folder.records[i]["style"] for i in chosen]


def test_packs_are_kept_per_size_and_made_anew_when_the_manifest_changes(tmp_path: Path) -> None:
    for name, colour in (("red_box", "red"), ("blue_box", "blue")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{name}.png")
    first = CaptionedFolder(tmp_path)
    before = first.packed(8)
    cache = tmp_path / ".cache"
    packs = sorted(cache.glob("*.safetensors"))
    stamp = packs[0].stat().st_mtime_ns
    assert np.array_equal(CaptionedFolder(tmp_path).packed(8), before)
    assert sorted(cache.glob("*.safetensors")) == packs and packs[0].stat().st_mtime_ns == stamp
    first.packed(4)
    Image.new("RGB", (20, 20), "green").save(tmp_path / "blue_box.png")
    changed = CaptionedFolder(tmp_path)
    assert changed.manifest != first.manifest
    assert changed.packed(8)[0, 0, 0].tolist() == [0, 128, 0, 255]
    assert len(list(cache.glob("*.safetensors"))) == 3 and not list(cache.glob("*.partial"))


def test_a_pack_is_a_plain_safetensors_file(folder: CaptionedFolder) -> None:
    from safetensors.numpy import load_file

    packed = folder.packed(16)
    (path,) = (folder.path / ".cache").glob("*-16.safetensors")
    assert np.array_equal(load_file(path)["pixels"], packed)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="damaged"):
        folder.packed(16)


def test_a_set_whose_metadata_was_changed_is_refused(small_set: Path) -> None:
    records = read_records(small_set)
    records[0]["text"] = "something else"
    (small_set / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(DataError, match="not the one that"):
        CaptionedFolder(small_set)


def test_a_set_that_is_damaged_or_points_outside_is_refused(small_set: Path) -> None:
    records = read_records(small_set)
    records[0]["file_name"] = "../elsewhere.png"
    lines = [json.dumps(record) for record in records]
    (small_set / "metadata.jsonl").write_text("\n".join(lines))
    (small_set / "manifest.json").write_text(json.dumps({"sha256": manifest_hash(lines)}))
    with pytest.raises(DataError, match="outside the folder"):
        CaptionedFolder(small_set)
    (small_set / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        CaptionedFolder(small_set)


def test_an_unlicensed_training_picture_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "a.png", "text": "a box", "licence": "CC-BY-NC-4.0", "split": "train"})
    )
    with pytest.raises(LicenceError, match=r"a\.png.*CC-BY-NC-4\.0"):
        CaptionedFolder(tmp_path)


def test_photos_are_cut_to_their_centre_and_transparent_pictures_padded(tmp_path: Path) -> None:
    photo = Image.new("RGB", (40, 20), "blue")
    photo.paste("red", (10, 0, 30, 20))
    photo.save(tmp_path / "photo.png")
    assert (square(tmp_path / "photo.png", 20)[:, 2:-2] == (255, 0, 0, 255)).all()
    Image.new("RGBA", (40, 20), (255, 0, 0, 128)).save(tmp_path / "glass.png")
    padded = square(tmp_path / "glass.png", 20)
    assert not padded[:4].any() and padded[10, 10].tolist() == [128, 0, 0, 128]
