"""A small sticker source made here: twelve hand-written icons in five styles, and the names for them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagewright.data import stickers
from imagewright.data.sources import NAMES, PICTURES, Source

BODIES = {  # drawn on 32 x 32; A and B are the style's colours
    "dog": '<rect x="6" y="12" width="18" height="10" fill="A"/><circle cx="25" cy="10" r="5" fill="A"/>',
    "cat": '<circle cx="16" cy="18" r="9" fill="A"/><path d="M7 14L9 3L15 9Z" fill="B"/>',
    "apple": '<circle cx="16" cy="18" r="10" fill="#d22"/><rect x="15" y="3" width="2" height="7" fill="B"/>',
    "banana": '<path d="M4 8C6 24 18 30 28 24C18 24 12 18 8 6Z" fill="#fc3"/>',
    "car": '<rect x="2" y="14" width="28" height="9" fill="A"/><circle cx="9" cy="25" r="4" fill="#222"/>',
    "umbrella": '<path d="M3 17A13 13 0 0 1 29 17Z" fill="A"/><path d="M15 17H17V29H15Z" fill="B"/>',
    "tulip": '<path d="M10 4L16 9L22 4V14L16 18Z" fill="A"/><path d="M15 18H17V30H15Z" fill="#283"/>',
    "fish": '<ellipse cx="14" cy="16" rx="10" ry="6" fill="A"/><path d="M22 16L30 9V23Z" fill="B"/>',
    "guitar": '<circle cx="9" cy="23" r="7" fill="A"/><path d="M11 19L27 3L29 5L13 21Z" fill="B"/>',
    "runner": '<circle cx="18" cy="5" r="4" fill="SKIN"/><path d="M12 10L20 12L14 20L20 29L9 22Z" fill="A"/>',
    "flag": '<path d="M4 3H6V30H4Z" fill="B"/><path d="M6 4H26V16H6Z" fill="A"/>',
    "star": '<path d="M16 2L20 12L30 13L22 19L25 30L16 23L7 30L10 19L2 13L12 12Z" fill="A"/>',
}
COLOURS = {
    "noto": ("#2a7de1", "#123", "translate(0 0)"),
    "fluent": ("#8e44ad", "#e67", "translate(3 0) scale(.8)"),
    "flat": ("#27ae60", "#f90", "translate(0 7) scale(.75)"),
    "twemoji": ("#e67e22", "#057", "translate(9 9) scale(.7)"),
    "openmoji": ("#555", "#aaa", "translate(2 2) scale(.9)"),
}
TONES = ["light", "medium-light", "medium", "medium-dark", "dark"]


def entry(label: str, hexcode: str, group: int, subgroup: int, **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "hexcode": hexcode,
        "tags": label.split(),
        "group": group,
        "subgroup": subgroup,
        **more,
    }


ENTRIES = [
    entry("dog", "1F415", 3, 34),
    entry("cat", "1F408", 3, 34),
    entry("red apple", "1F34E", 4, 42),
    entry("banana", "1F34C", 4, 42),
    entry("automobile", "1F697", 5, 54),
    entry("umbrella", "2602-FE0F", 5, 59),
    entry("tulip", "1F337", 3, 40),
    entry("fish", "1F41F", 3, 38),
    entry("guitar", "1F3B8", 7, 68),
    entry(
        "person running",
        "1F3C3",
        1,
        27,
        skins=[
            entry(f"person running: {tone} skin tone", f"1F3C3-{0x1F3FB + i:X}", 1, 27, tone=i + 1)
            for i, tone in enumerate(TONES)
        ],
    ),
    entry("man running", "1F3C3-200D-2642-FE0F", 1, 27, gender=1),
    entry("chequered flag", "1F3C1", 9, 97),
    entry("star", "2B50", 5, 59),
]
GROUPS = {
    "groups": {"1": "people-body", "3": "animals-nature", "4": "food-drink", "5": "travel-places"}
    | {"7": "objects", "9": "flags"},
    "subgroups": {"27": "person-activity", "34": "animal-mammal", "38": "animal-marine", "40": "plant-flower"}
    | {
        "42": "food-fruit",
        "54": "transport-ground",
        "59": "sky-weather",
        "68": "musical-instrument",
        "97": "flag",
    },
}
CHARS = {
    "1f415": "dog",
    "1f408": "cat",
    "1f34e": "apple",
    "1f34c": "banana",
    "1f697": "car",
    "2602": "umbrella",
    "1f337": "tulip",
    "1f41f": "fish",
    "1f3b8": "guitar",
    "1f3c3": "runner",
    **{f"1f3c3-{0x1F3FB + i:x}": f"runner-{tone}" for i, tone in enumerate(TONES)},
    "1f3c3-200d-2642": "man-running",
    "1f3c1": "flag",
    "2b50": "star",
}


def icons(style: str) -> dict[str, Any]:
    """icons.json of one style."""
    a, b, move = COLOURS[style]

    def drawn(name: str, skin: str = "#fc3") -> dict[str, str]:
        body = BODIES[name].replace('"A"', f'"{a}"').replace('"B"', f'"{b}"').replace("SKIN", skin)
        return {"body": f'<g transform="{move}">{body}</g>'}

    skins = ["#fde", "#ec9", "#c96", "#964", "#532"]
    toned = {f"runner-{tone}": drawn("runner", skin) for tone, skin in zip(TONES, skins, strict=True)}
    return {
        "prefix": style,
        "icons": {**{name: drawn(name) for name in BODIES}, **toned},
        "aliases": {"man-running": {"parent": "runner", "hFlip": True}},
        "width": 32,
        "height": 32,
    }


def write_tarball(path: Path, members: dict[str, Any]) -> str:
    """A .tgz of JSON members; returns its integrity string."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture
def tarballs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tarballs that `build` takes for the pinned ones."""
    folder = tmp_path / "tarballs"
    folder.mkdir()

    def pinned(source: Source, members: dict[str, Any]) -> Source:
        return replace(source, integrity=write_tarball(folder / source.file_name, members))

    names = pinned(NAMES, {"package/en/data.json": ENTRIES, "package/meta/groups.json": GROUPS})
    pictures = tuple(
        pinned(
            source,
            {
                "package/icons.json": icons(source.style),
                "package/chars.json": {} if source.style == "fluent" else CHARS,
                "package/info.json": {},
            },
        )
        for source in PICTURES
    )
    monkeypatch.setattr(stickers, "NAMES", names)
    monkeypatch.setattr(stickers, "PICTURES", pictures)
    return folder


@pytest.fixture
def small_set(tarballs: Path, tmp_path: Path) -> Path:
    """A finished set: all stickers at 48 px and 60 scenes."""
    out = tmp_path / "set"
    stickers.build(out, source=tarballs, size=48, scenes=60, workers=1)
    return out


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The metadata of a set."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
