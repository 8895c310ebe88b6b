"""Opening foreign pictures and writing files whole."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagewright import pictures
from imagewright.errors import OutputError, PictureError


def picture(side: int = 16) -> Image.Image:
    """Noise with alpha."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 4), np.uint8))


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_encode_and_open(output_format: str) -> None:
    image = picture()
    image.info["secret"] = "not for the file"
    data = pictures.encode(image, output_format)
    opened = pictures.open_picture(data)
    assert pictures.format_of(opened) == output_format
    assert b"not for the file" not in data
    if output_format != "jpeg":
        assert np.array_equal(np.asarray(opened), np.asarray(image)), "png and webp at 100 are lossless"


def test_compression_makes_files_smaller() -> None:
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    for output_format in ("jpeg", "webp"):
        assert len(pictures.encode(image, output_format, 20)) < len(pictures.encode(image, output_format, 100)) / 2


def _bomb() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def _gif() -> bytes:
    out = BytesIO()
    Image.new("P", (4, 4)).save(out, "GIF")
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        _bomb(),
        _gif(),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        pictures.encode(picture(), "png")[:200],
    ],
    ids=["empty", "text", "bomb", "gif", "svg", "truncated"],
)
def test_bad_pictures_are_refused(data: bytes) -> None:
    with pytest.raises(PictureError) as caught:
        pictures.open_picture(data)
    assert caught.value.fix


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_damaged_bytes_never_raise_anything_else(output_format: str) -> None:
    good = pictures.encode(picture(), output_format)
    rng = random.Random(0)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        with contextlib.suppress(PictureError):
            pictures.open_picture(bytes(bad[: rng.randint(1, len(bad))]))


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path, "\0"):
        with pytest.raises(PictureError, match="Cannot read"):
            pictures.open_picture(path)


def test_save_replaces_or_numbers(tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    assert pictures.save_numbered(b"1", path) == path
    assert pictures.save_numbered(b"2", path) == tmp_path / "fox-2.png"
    assert pictures.save_numbered(b"3", path) == tmp_path / "fox-3.png"
    pictures.save_atomic(b"4", path)
    assert [file.read_bytes() for file in sorted(tmp_path.iterdir())] == [b"2", b"3", b"4"]


def test_save_numbers_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    assert pictures.save_numbered(b"1", tmp_path / "a").name == "a"
    assert pictures.save_numbered(b"2", tmp_path / "a").name == "a-2"


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "fox.png"
    pictures.save_atomic(b"old", path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OutputError, match="No space left") as caught:
        pictures.save_atomic(b"new", path)
    monkeypatch.undo()
    assert "space" in caught.value.fix
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pictures.save_atomic(b"new", tmp_path / "fox.png")
    assert list(tmp_path.iterdir()) == []


def test_only_plain_files_are_replaced(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a plain file"):
        pictures.save_atomic(b"x", Path(os.devnull))
    with pytest.raises(OutputError, match="not a plain file"):
        pictures.save_atomic(b"x", tmp_path)


WRITER = """
import sys
from pathlib import Path
from imagewright.pictures import save_atomic
print("ready", flush=True)
while True:
    for letter in b"ab":
        save_atomic(bytes([letter]) * 500_000, Path(sys.argv[1]))
"""


def test_kill_9_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    for attempt in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout and writer.stdout.readline()
        time.sleep(0.02 + 0.013 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        data = path.read_bytes() if path.exists() else b""
        assert data in (b"", b"a" * 500_000, b"b" * 500_000)
    assert path.exists()
