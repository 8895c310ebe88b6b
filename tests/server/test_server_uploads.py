"""Uploads: what is decoded, what is refused, and that no picture ends more than the process that decodes it."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from imagewright.errors import PictureError
from imagewright.pictures import encode
from imagewright.provenance import metadata
from imagewright.server import uploads
from imagewright.server.uploads import Decoder, DecoderError

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no limits for a process")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    found = Decoder()
    yield found
    found.close()


def drawn(size: tuple[int, int] = (48, 32), mode: str = "RGB") -> Image.Image:
    """A red disc in the left half, on blue."""
    image = Image.new("RGBA", size, (0, 0, 255, 255))
    ImageDraw.Draw(image).ellipse((2, 2, size[0] // 2, size[1] - 2), (255, 0, 0, 128))
    return image.convert(mode)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def renamed_profile(swap: bool = False) -> bytes:
    """sRGB under another name; with red and green swapped if asked."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"s\0R\0G\0B", b"o\0t\0h\0e")
    if swap:
        data = data.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
    return data


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and np.array_equal(np.asarray(one), np.asarray(other))


MODES = {
    "PNG": ("RGB", "RGBA", "L", "P", "LA", "1", "I;16"),
    "JPEG": ("RGB", "L", "1", "CMYK"),
    "WEBP": ("RGB", "RGBA", "L", "P", "LA", "1", "CMYK"),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_the_pixels_come_back(decoder: Decoder, kind: str, mode: str) -> None:
    image = Image.fromarray(np.full((32, 48), 257 * 77, np.uint16)) if mode == "I;16" else drawn(mode=mode)
    found = decoder.decode(saved(image, kind))
    assert found.format == kind.lower() and found.adjustments == () and found.record is None
    assert found.image.mode == ("RGBA" if mode in ("RGBA", "LA", "P") and kind != "JPEG" else "RGB")
    if kind == "PNG":
        expected = Image.new("RGB", (48, 32), (77, 77, 77)) if mode == "I;16" else image.convert(found.image.mode)
        assert same(found.image, expected)
    found.image.putpixel((0, 0), (1, 2, 3))  # it is a picture like any other
    assert found.image.info == {}


def test_a_palette_with_transparency_keeps_it(decoder: Decoder) -> None:
    image = drawn().quantize(4)
    assert decoder.decode(saved(image, transparency=image.getpixel((0, 0)))).image.getpixel((0, 0))[3] == 0


@pytest.mark.parametrize("size", [(1, 1), (4096, 1), (1, 4096)])
def test_the_smallest_and_the_longest(decoder: Decoder, size: tuple[int, int]) -> None:
    assert decoder.decode(saved(Image.new("RGB", size))).image.size == size


def test_a_camera_held_upright(decoder: Decoder) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decoder.decode(saved(drawn(), exif=exif))
    assert same(found.image, drawn().transpose(Image.Transpose.ROTATE_270))
    broken = decoder.decode(saved(drawn(), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40))
    assert broken.image.size == (48, 32)


def test_colours_mean_what_the_profile_says(decoder: Decoder) -> None:
    data = saved(drawn(), icc_profile=renamed_profile(swap=True))
    left = decoder.decode(data).image.getpixel((12, 16))
    assert drawn().getpixel((12, 16))[0] > 100 and left[1] > 100 > left[0]
    assert same(decoder.decode(data, "mask").image, drawn())
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert same(decoder.decode(saved(drawn(), icc_profile=srgb)).image, drawn())
    clear = decoder.decode(saved(drawn(mode="RGBA"), icc_profile=renamed_profile()))
    assert np.array_equal(np.asarray(clear.image)[..., 3], np.asarray(drawn(mode="RGBA"))[..., 3])


@pytest.mark.parametrize(("mode", "profile"), [("RGB", b"nonsense" * 40), ("L", renamed_profile()[:200])])
def test_a_profile_that_cannot_be_used_is_said(decoder: Decoder, mode: str, profile: bytes) -> None:
    found = decoder.decode(saved(drawn(mode=mode), icc_profile=profile))
    assert same(found.image, drawn(mode=mode).convert("RGB"))
    (said,) = found.adjustments
    assert (said.field, said.requested, said.used) == ("image", "its colour profile", "sRGB")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_its_first_frame(decoder: Decoder, kind: str) -> None:
    more = [Image.new("RGB", (48, 32), "white"), Image.new("RGB", (48, 32), "green")]
    found = decoder.decode(saved(drawn(), kind, save_all=True, append_images=more, lossless=True), "mask")
    assert same(found.image.convert("RGB"), drawn())
    assert [str(said) for said in found.adjustments] == [
        "mask: 3 frames -> the first frame (an animation is taken as one picture)"
    ]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_our_own_pictures_say_how_they_were_made(decoder: Decoder, kind: str) -> None:
    record = {"version": 1, "prompt": "a red disc", "seed": 7, "size": [48, 32], "adjustments": []}
    assert decoder.decode(encode(drawn(), kind, **metadata.save_options(record, kind))).record == record


def tagged(tag: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    head = tagged(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(chunks)
        + tagged(b"IDAT", zlib.compress(b"\0" * 1000))
        + tagged(b"IEND", b"")
    )


def bombs() -> dict[str, bytes]:
    """Files that want to be large, slow or something else than a picture; all must be refused."""
    zeros = zlib.compress(b"\0" * 100_000_000, 9)
    png, jpeg, webp = (saved(drawn((256, 256)), kind) for kind in ("PNG", "JPEG", "WEBP"))
    sizes = [(30_000, 30_000), (65_500, 65_500), (2**31 - 1, 1), (1, 2**31 - 1), (2**32 - 1, 2**32 - 1)]
    sizes += [(4097, 1), (1, 4097), (8192, 8192), (0, 5), (5, 0), (17_000, 17_000)]
    found = {f"png {width}x{height}": png_of(width, height) for width, height in sizes}
    found |= {
        "zTXt": png_of(256, 256, tagged(b"zTXt", b"key\0\0" + zeros)),
        "iTXt": png_of(256, 256, tagged(b"iTXt", b"key\0\1\0\0\0" + zeros)),
        "iTXt of ours": png_of(256, 256, tagged(b"iTXt", b"imagewright\0\1\0\0\0" + zeros)),
        "iCCP": png_of(256, 256, tagged(b"iCCP", b"icc\0\0" + zeros)),
        "many texts": png_of(256, 256, *[tagged(b"zTXt", b"key\0\0" + zlib.compress(b"\0" * 1_000_000))] * 80),
        "a chunk of 2 GiB": png[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt" + png[33:],
        "no data": png[:33] + tagged(b"IEND", b""),
        "only a signature": png[:8],
        "jpeg of 65,500": jpeg_of(jpeg, 65_500),
        "jpeg of 5,000": jpeg_of(jpeg, 5000),
        "jpeg of nothing": jpeg_of(jpeg, 0),
        "webp of 16,383": b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f\xff\xff\xff\x0f" + b"\0" * 5,
        "webp canvas": b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff" * 6 + b"\0" * 12,
        "riff of nothing": b"RIFF\xff\xff\xff\xffWEBP",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "svg entities": b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
        "html": b"<!doctype html><script>alert(1)</script>",
        "html behind a jpeg's start": b"\xff\xd8\xff<script>alert(1)</script>",
        "zip": zipped(zeros),
        "gzip": gzip.compress(b"\0" * 10_000_000),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "pdf": b"%PDF-1.7",
        "json": b'{"prompt": "x"}',
        "python": b"cos\nsystem\n(S'true'\ntR.",
        "empty": b"",
        "one byte": b"\x89",
        "blanks": b" " * 1000,
        "noise": random.Random(0).randbytes(5000),
        "60 MB": png + b"\0" * 60_000_000,
    }
    for kind in ("GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000"):
        found[kind] = saved(drawn((64, 64)), kind)
    for name, data in (("png", png), ("jpeg", jpeg), ("webp", webp)):
        for share in (0.1, 0.3, 0.5, 0.7):
            found[f"{name} cut at {share}"] = data[: int(len(data) * share)]
    return found


def jpeg_of(jpeg: bytes, side: int) -> bytes:
    """A JPEG whose head says another size."""
    at = jpeg.index(b"\xff\xc0") + 5  # behind the marker, its length and the bits of a sample
    return jpeg[:at] + struct.pack(">HH", side, side) + jpeg[at + 4 :]


def zipped(data: bytes) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("picture.png", data)
    return out.getvalue()


def test_bombs_are_refused(decoder: Decoder) -> None:
    decoder.decode(saved(drawn()))  # so that a process runs
    before = pids(decoder)
    corpus = bombs()
    assert len(corpus) >= 60
    for name, data in corpus.items():
        start = time.perf_counter()
        with pytest.raises(PictureError) as caught:
            pytest.fail(f"{name} was decoded: {decoder.decode(data)}")
        assert caught.value.fix, name
        assert time.perf_counter() - start < 1, name
    assert pids(decoder) == before, "a bomb ended its process"
    assert peak(decoder) < 200 * 2**20


def pids(decoder: Decoder) -> list[int]:
    return [process._popen.pid for process in decoder._idle]


def peak(decoder: Decoder) -> int:
    """Bytes that the largest of its processes has ever used at once, where the system tells."""
    status = [Path(f"/proc/{pid}/status") for pid in pids(decoder)]
    lines = [line for file in status if file.exists() for line in file.read_text().splitlines()]
    return max((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), default=0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GIF89a" + b"\0" * 50, "GIF"),
        (b"  <svg/>", "SVG"),
        (b"data:image/png;base64,", "data URL"),
        (b"whatever", "something else"),
        (b"", "empty"),
        (b"\xff\xd8\xff" + b"\0" * 200, "at most"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, words: str) -> None:
    decoder = Decoder(max_bytes=100)
    with pytest.raises(PictureError, match=words):
        decoder.decode(data, "mask")
    assert decoder._idle == []  # no process was needed
    decoder.close()


def test_too_many_pixels_are_told_with_the_limit(decoder: Decoder) -> None:
    with pytest.raises(PictureError, match="5000 x 40 pixels; at most 4096 a side"):
        decoder.decode(saved(Image.new("RGB", (5000, 40))))


def mutants(count: int) -> Iterator[bytes]:
    """Pictures of three formats with bytes changed, cut out, doubled or swapped; the same ones every time."""
    chance = random.Random(count)
    exif = Image.Exif()
    exif[0x0112] = 8
    extra: dict[str, Any] = {"icc_profile": renamed_profile(), "exif": exif}
    frames: dict[str, Any] = {"save_all": True, "append_images": [drawn().transpose(Image.Transpose.ROTATE_180)]}
    seeds = [saved(drawn(mode=mode), "PNG", **extra) for mode in ("RGBA", "P", "L")]
    seeds += [saved(drawn(), "JPEG", progressive=progressive, **extra) for progressive in (False, True)]
    seeds += [saved(drawn(mode="RGBA"), "WEBP", lossless=lossless, **extra) for lossless in (False, True)]
    seeds += [saved(drawn(), "PNG", **frames), saved(drawn(), "WEBP", **frames), saved(drawn(mode="CMYK"), "JPEG")]
    for _ in range(count):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 6)):
            at, end = sorted(chance.randrange(8, len(data)) for _ in range(2))
            change = chance.randrange(6)
            if change < 3:
                data[at] = chance.choice((0, 1, 127, 255, chance.randrange(256)))
            elif change == 3:
                del data[at : min(end, at + chance.randint(1, 40))]
            elif change == 4:
                data[at:at] = data[at : min(end, at + 200)]
            else:
                data[at : at + 4] = struct.pack(">I", chance.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1)))
        yield with_true_sums(data) if chance.random() < 0.5 else bytes(data)


def with_true_sums(data: bytearray) -> bytes:
    """A changed PNG with checksums that fit, so that what is in its chunks is looked at."""
    at = 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def tried(decoder: Decoder, data: bytes) -> tuple[bool, float]:
    """Whether it was decoded, and the seconds that it took. Only PictureError may be raised."""
    start = time.perf_counter()
    try:
        decoder.decode(data)
    except PictureError:
        return False, time.perf_counter() - start
    return True, time.perf_counter() - start


def test_mutants_do_no_harm(decoder: Decoder) -> None:
    results = [tried(decoder, data) for data in mutants(1000)]
    whole = sum(decoded for decoded, _ in results)
    assert 50 < whole < 950  # of either kind
    assert max(seconds for _, seconds in results) < 2
    assert peak(decoder) < 512 * 2**20


@posix
def test_a_process_that_was_killed_is_replaced(decoder: Decoder) -> None:
    decoder.decode(saved(drawn()))
    for pid in pids(decoder):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert same(decoder.decode(saved(drawn())).image, drawn())


@posix
def test_a_process_that_hangs_is_ended() -> None:
    decoder = Decoder(1, seconds=1)
    decoder.decode(saved(drawn()))
    (pid,) = pids(decoder)
    os.kill(pid, signal.SIGSTOP)
    with pytest.MonkeyPatch.context() as patched, pytest.raises(PictureError, match="takes too long"):
        patched.setattr(uploads, "_PATIENCE", 0.2)
        decoder.decode(saved(drawn()))
    assert decoder.decode(saved(drawn())).image.size == (48, 32)
    assert pid not in pids(decoder)
    decoder.close()


@posix
def test_a_picture_that_takes_too_much_of_the_processor_is_given_up() -> None:
    data = saved(Image.new("L", (2048, 2048)), "JPEG", progressive=True)
    at = data.rfind(b"\xff\xda")
    decoder = Decoder(1, seconds=1)
    with pytest.raises(PictureError, match="takes too long"):
        decoder.decode(data[:-2] + data[at:-2] * 20_000 + data[-2:])  # one more scan, and one more
    assert decoder.decode(saved(drawn())).image.size == (48, 32)
    decoder.close()


@posix
def test_a_picture_that_needs_too_much_memory_is_refused() -> None:
    decoder = Decoder(1, memory=30 * 2**20)
    with pytest.raises(PictureError, match="memory"):
        decoder.decode(saved(Image.new("RGBA", (4096, 4096)), compress_level=1))
    assert decoder.decode(saved(drawn())).image.size == (48, 32)
    decoder.close()


READY = """
import json, struct, sys
def send(told, pixels=b""):
    data = json.dumps(told).encode()
    sys.stdout.buffer.write(struct.pack(">I", len(data)) + data + pixels)
    sys.stdout.flush()
send({})
sys.stdin.buffer.read(5)
"""
GOOD = {"size": [2, 1], "mode": "RGB", "format": "png", "notes": [], "record": None}


@pytest.mark.parametrize(
    "answer",
    [
        "import os; os.abort()",
        "import os; os._exit(3)",
        "sys.stdout.buffer.write(b'\\xff\\xff\\xff\\xff')",
        "sys.stdout.buffer.write(b'\\0\\0\\0\\2no')",
        "send([])",
        "send(7)",
        "send({'size': [2, 1]})",
        f"send({GOOD | {'size': [10**9, 10**9]}})",
        f"send({GOOD | {'size': [-2, -1]}})",
        f"send({GOOD | {'size': [0, 1]}})",
        f"send({GOOD | {'size': [2.0, 1]}})",
        f"send({GOOD | {'mode': 'F'}})",
        f"send({GOOD | {'format': 'html'}})",
        f"send({GOOD | {'notes': [[1, 2]]}})",
        f"send({GOOD | {'record': [1]}})",
        f"send({GOOD}, b'abc')",
    ],
)
def test_a_process_that_was_taken_over_is_not_believed(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(uploads, "_COMMAND", (sys.executable, "-I", "-c", READY + answer))
    decoder = Decoder(1)
    with pytest.raises(PictureError, match="cannot be decoded"):
        decoder.decode(saved(drawn()))
    monkeypatch.setattr(uploads, "_COMMAND", (sys.executable, "-I", "-c", READY + f"send({GOOD}, b'abcdef')"))
    assert decoder.decode(saved(drawn())).image.tobytes() == b"abcdef"
    decoder.close()


@pytest.mark.parametrize("command", [("/nowhere/python",), (sys.executable, "-I", "-c", "raise SystemExit")])
def test_no_decoder_is_the_servers_trouble(monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    monkeypatch.setattr(uploads, "_COMMAND", command)
    decoder = Decoder(1)
    with pytest.raises(DecoderError, match="python -m imagewright"):
        decoder.decode(saved(drawn()))
    decoder.close()


@posix
@pytest.mark.parametrize(
    "escape",
    [
        "open('/etc/passwd')",
        "open('escape', 'w')",
        "import socket; socket.socket()",
        "os.dup(0)",
        "import subprocess; subprocess.run(['true'])",
        "bytearray(300 * 2**20)",
    ],
)
def test_a_decoder_can_reach_nothing(escape: str, tmp_path: Path) -> None:
    start = "import os, socket, subprocess; from imagewright.server.decoder import _confine; _confine(2**28)"
    code = f"{start}\nos.write(1, b'in')\n{escape}\nos.write(1, b'out')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.stdout == b"in" and done.returncode != 0 and not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_decoder_knows_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    decoder = Decoder(1)
    decoder.decode(saved(drawn()))
    (pid,) = pids(decoder)
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"canary" not in environment and b"OMP_NUM_THREADS=1" in environment
    decoder.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_decoder_is_light() -> None:
    heavy = ("torch", "onnxruntime", "fastapi", "sqlalchemy", "httpx", "c2pa", "pydantic")
    code = f"import imagewright.server.decoder, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_decoder_has_imported_all_before_it_can_open_nothing() -> None:
    """In a process of its own, as here much is imported already."""
    code = """
import sys
from imagewright.server import decoder
decoder._warm_up(4096)
before = set(sys.modules)
while header := sys.stdin.buffer.read(4):
    try:
        decoder.decoded(sys.stdin.buffer.read(int.from_bytes(header)), False, 4096)
    except decoder.PictureError:
        pass
print(set(sys.modules) - before)
"""
    record = {"version": 1, "prompt": "é", "seed": 7, "size": [48, 32], "adjustments": []}
    corpus = [encode(drawn(), kind, **metadata.save_options(record, kind)) for kind in ("png", "jpeg", "webp")]
    corpus += [*mutants(300), *bombs().values()]
    given = b"".join(len(data).to_bytes(4) + data for data in corpus)
    done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, timeout=60)
    assert done.stdout.strip() == b"set()", done.stderr


def test_many_at_once_use_few_processes() -> None:
    decoder = Decoder(2)
    data = [saved(Image.new("RGB", (8, 8), (shade, 0, 0))) for shade in range(40)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(decoder.decode, data))
    assert [upload.image.getpixel((0, 0))[0] for upload in found] == list(range(40))
    assert 1 <= len(pids(decoder)) <= 2
    decoder.close()


def test_a_process_is_replaced_after_many_pictures() -> None:
    decoder = Decoder(1, recycle=2)
    seen = []
    for _ in range(3):
        decoder.decode(saved(drawn()))
        seen += pids(decoder)
    assert len(seen) == len(set(seen)) == 2  # after the second there was none
    decoder.close()


def test_async_code_goes_on_meanwhile(decoder: Decoder) -> None:
    async def main() -> tuple[list[Any], int]:
        ticks = 0
        work = asyncio.gather(*(decoder.adecode(saved(drawn((512, 512)))) for _ in range(6)))
        while not work.done():
            ticks += 1
            await asyncio.sleep(0.001)
        return await work, ticks

    found, ticks = asyncio.run(main())
    assert all(upload.image.size == (512, 512) for upload in found) and ticks > 3
    assert threading.active_count() < 20
