"""A user's folder: every way to caption a picture, and every way in which a picture can be unusable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from imagewright.data import folder as folder_module
from imagewright.data.consent import Marks, _not_allowed, read_marks
from imagewright.data.folder import read_folder
from imagewright.data.loader import CaptionedFolder
from imagewright.errors import DataError
from imagewright.provenance.credentials import sign

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    "<rdf:Description>{}</rdf:Description></rdf:RDF></x:xmpmeta>"
)
FORBIDDEN = XMP.format(
    '<plus:DataMining xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/">'
    "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-AIMLTRAINING</plus:DataMining>"
)
ALLOWED = FORBIDDEN.replace("DMI-PROHIBITED-AIMLTRAINING", "DMI-ALLOWED")
GENERATED = XMP.format(
    "<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    "</Iptc4xmpExt:DigitalSourceType>"
)


def save(path: Path, colour: str | tuple[int, ...] = "red", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour).save(path, **options)
    return path


def reasons(folder: Path) -> dict[str, str]:
    return {skip.file_name: skip.reason for skip in read_folder(folder).skipped}


def captions(folder: Path) -> dict[str, str]:
    return {record["file_name"]: record["text"] for record in read_folder(folder).records}


def test_captions_from_metadata_sidecars_and_names(tmp_path: Path) -> None:
    save(tmp_path / "a.png", "red")
    save(tmp_path / "sub" / "b.jpg", "green")
    save(tmp_path / "red_fox-01.webp", "blue")
    (tmp_path / "sub" / "b.txt").write_text("a green\nfield\n")
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "a.png", "text": " a red  wall", "tags": ["wall", "red"], "licence": "CC0-1.0"})
    )
    assert captions(tmp_path) == {
        "a.png": "a red wall",
        "sub/b.jpg": "a green field",
        "red_fox-01.webp": "red fox",
    }
    records = {record["file_name"]: record for record in read_folder(tmp_path).records}
    assert records["a.png"]["tags"] == ["wall", "red"] and records["a.png"]["licence"] == "CC0-1.0"
    assert records["sub/b.jpg"]["licence"] == "user-supplied"
    assert records["sub/b.jpg"]["consent"] == "the user supplied it"


def test_captions_from_csv(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text('﻿file_name,text\na.png,"a wall, red"\n', encoding="utf-8")
    assert captions(tmp_path) == {"a.png": "a wall, red"}


def test_every_bad_file_is_skipped_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "MAX_PIXELS", 10_000)
    good = save(tmp_path / "red box.png")
    (tmp_path / "same box.png").write_bytes(good.read_bytes())
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"this is no picture")
    whole = save(tmp_path / "cut off.jpg", "green", quality=95).read_bytes()
    (tmp_path / "cut off.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (200, 200)).save(tmp_path / "huge.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "moving.gif")
    Image.new("RGB", (8, 8)).save(tmp_path / "disguised.png", format="GIF")
    save(tmp_path / "IMG_0042.jpg", "purple")
    save(tmp_path / ".hidden.png", "pink")
    (tmp_path / "notes.md").write_text("not a picture, and no claim to be one")
    found = reasons(tmp_path)
    for name, part in {
        "same box.png": "duplicate of red box.png",
        "empty.png": "empty",
        "text.png": "not PNG, JPEG or WebP",
        "cut off.jpg": "damaged",
        "huge.png": "megapixels",
        "moving.gif": "not PNG, JPEG or WebP",
        "disguised.png": "not PNG, JPEG or WebP",
        "IMG_0042.jpg": "no caption",
    }.items():
        assert part in found.pop(name), name
    assert not found
    assert captions(tmp_path) == {"red box.png": "red box"}


def test_metadata_cannot_point_outside_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "outside.png", "green")
    inner = tmp_path / "inner"
    save(inner / "box.png")
    names = ["../outside.png", str(tmp_path / "outside.png"), "a/../../outside.png", "..\\outside.png"]
    lines = [json.dumps({"file_name": name, "text": "stolen"}) for name in names]
    lines += [
        "not json",
        json.dumps({"text": "nameless"}),
        json.dumps({"file_name": "gone.png", "text": "x"}),
    ]
    (inner / "metadata.jsonl").write_text("\n".join(lines))
    found = reasons(inner)
    assert all("points outside the folder" in found[name] for name in names)
    assert found["metadata.jsonl line 5"] == found["metadata.jsonl line 6"] == "it names no file_name"
    assert "not there" in found["gone.png"]
    assert captions(inner) == {"box.png": "box"}


def test_links_that_leave_the_folder_are_skipped(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside.png", "green")
    inner = tmp_path / "inner"
    save(inner / "box.png")
    (inner / "linked thing.png").symlink_to(outside)
    (inner / "loop.png").symlink_to(inner / "loop.png")
    found = reasons(inner)
    assert "points outside" in found["linked thing.png"] and "loop.png" in found
    assert captions(inner) == {"box.png": "box"}


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp"])
def test_do_not_train_marks_are_honoured_and_generated_pictures_warned_about(tmp_path: Path, format_: str) -> None:
    def marked(name: str, colour: str, packet: str) -> None:
        if format_ != "png":
            save(tmp_path / f"{name}.{format_}", colour, xmp=packet.encode())
            return
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet)
        save(tmp_path / f"{name}.png", colour, pnginfo=info)

    marked("forbidden", "red", FORBIDDEN)
    marked("allowed", "green", ALLOWED)
    marked("generated", "blue", GENERATED)
    report = read_folder(tmp_path)
    assert {record["text"] for record in report.records} == {"allowed", "generated"}
    (skip,) = report.skipped
    assert skip.file_name == f"forbidden.{format_}" and "DMI-PROHIBITED-AIMLTRAINING" in skip.reason
    assert report.warnings == [f"generated.{format_} says that a model made it"]


@pytest.mark.parametrize("use", ["notAllowed", "allowed"])
def test_training_mining_assertions(use: str) -> None:
    entries = {"cawg.ai_generative_training": {"use": use}}
    assertion = {"label": "cawg.training-mining", "data": {"entries": entries}}
    store = {"manifests": {"m": {"assertions": [{"label": "c2pa.actions", "data": {}}, assertion]}}}
    assert _not_allowed(store) == (use == "notAllowed")


def test_credentials_that_cannot_be_read_forbid_nothing() -> None:
    assert read_marks(b"\x89PNG c2pa and then nothing", "image/png", b"") == Marks()


def test_a_picture_signed_here_is_not_trained_on(tmp_path: Path) -> None:
    """Our own credentials say notAllowed, so this reads what provenance writes."""
    plain = save(tmp_path / "plain box.png").read_bytes()
    (tmp_path / "signed box.png").write_bytes(sign(plain, "png", {}, tmp_path / "home"))
    assert captions(tmp_path) == {"plain box.png": "plain box"}
    assert "training-mining notAllowed" in reasons(tmp_path)["signed box.png"]


def test_the_camera_s_orientation_is_honoured(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 16), "red")
    picture.paste("blue", (16, 0, 32, 16))  # right half blue; turned by orientation 6 it is the lower half
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "flag.png", exif=exif)
    pixels = CaptionedFolder(tmp_path).packed(16)[0]
    assert pixels[2, 8].tolist() == [255, 0, 0, 255] and pixels[13, 8].tolist() == [0, 0, 255, 255]


def test_an_empty_folder_is_an_error_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable pictures") as caught:
        read_folder(tmp_path)
    assert caught.value.fix
    (tmp_path / "bad.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"bad\.png: it is empty"):
        CaptionedFolder(tmp_path)
    with pytest.raises(DataError, match="There is no folder"):
        read_folder(tmp_path / "none")


def test_the_report_is_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "red box.png")
    first = read_folder(tmp_path)
    monkeypatch.setattr(folder_module, "_read", lambda *parts: pytest.fail("it was read again"))
    assert read_folder(tmp_path) == first
    monkeypatch.undo()
    (tmp_path / "red box.txt").write_text("a red box, freshly painted")
    assert captions(tmp_path) == {"red box.png": "a red box, freshly painted"}


def test_five_percent_are_held_out_by_the_hash_of_the_file(tmp_path: Path) -> None:
    for i in range(120):
        save(tmp_path / f"thing {chr(97 + i // 26)}{chr(97 + i % 26)}.png", (i, 2 * i, 255 - i))
    opened = CaptionedFolder(tmp_path)
    held = set(opened.heldout(1000).tolist())
    assert held == {i for i, record in enumerate(opened.records) if int(record["sha256"], 16) % 20 == 0}
    assert 0 < len(held) < 20
    assert not held & set(opened.indices(0, 0, 5000).tolist())


def test_edits_name_the_picture_before_and_the_instruction(tmp_path: Path) -> None:
    for index, name in enumerate(("cat", "blue_cat", "green_cat", "lost_cat")):
        Image.new("RGB", (8, 8), (40 * index, 9, 9)).save(tmp_path / f"{name}.png")
    rows = [
        {"file_name": "blue_cat.png", "before": "cat.png", "instruction": "make it  blue"},
        {"file_name": "green_cat.png", "before": "cat.png"},
        {"file_name": "lost_cat.png", "before": "gone.png", "instruction": "make it lost"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = read_folder(tmp_path)
    edits = {record["file_name"]: record["edit"] for record in report.records if record["kind"] == "edit"}
    assert edits == {"blue_cat.png": {"kind": "own", "instruction": "make it blue"}}
    reasons = {skip.file_name: skip.reason for skip in report.skipped}
    assert "needs both" in reasons["green_cat.png"] and "gone.png" in reasons["lost_cat.png"]
