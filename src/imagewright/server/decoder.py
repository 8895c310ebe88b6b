"""The process that decodes strangers' pictures: `python -m imagewright.server.decoder MEMORY SECONDS SIDE`.

It reads frames from its standard input and answers each on its standard output (see `uploads`, which starts it):

    in:   kind (1 byte: I image, M mask), length (4 bytes, big-endian), the file
    out:  length (4 bytes), JSON, and where that has `size`, the pixels: width * height * len(mode) bytes

Before the first one it gives up what decoding does not need: it can open no file or socket, starts no process, and has
a limit of memory (MEMORY bytes) and of processor time (SECONDS a picture). So a hole in a decoder leads nowhere.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from contextlib import suppress
from io import BytesIO
from typing import Any, BinaryIO

from PIL import Image, ImageCms, ImageOps

from imagewright.editing import masks
from imagewright.errors import PictureError
from imagewright.pictures import decode, encode, open_picture
from imagewright.provenance import metadata

IMAGE, MASK = b"I", b"M"
_ORIENTATION = 0x0112  # in EXIF
_RECORD = {"version": 1, "prompt": "", "size": [8, 8]}
REQUEST, LENGTH = struct.Struct(">cI"), struct.Struct(">I")


def main() -> None:
    """Decode until the input ends."""
    memory, seconds, side = map(int, sys.argv[1:4])
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    _warm_up(side)
    _confine(memory)
    _send(output, {"ready": True})
    while header := sys.stdin.buffer.read(REQUEST.size):
        kind, length = REQUEST.unpack(header)
        data = sys.stdin.buffer.read(length)
        _allow(seconds)
        try:
            told, image = decoded(data, kind == MASK, side)
        except PictureError as error:
            _send(output, {"message": error.message, "fix": error.fix})
        except MemoryError:
            _send(output, {"message": "The picture needs too much memory.", "fix": "Make it smaller first."})
        except Exception as error:  # whatever else a stranger's bytes may lead to
            told = {"message": f"The picture cannot be decoded ({type(error).__name__})."}
            _send(output, {**told, "fix": "Save it again as a plain PNG."})
        else:
            _send(output, told, image.tobytes())
            del image


def decoded(data: bytes, is_mask: bool, side: int) -> tuple[dict[str, Any], Image.Image]:
    """What a picture says of itself, as JSON values, and its pixels: RGB or RGBA, upright, in sRGB.

    `notes` are (requested, used, reason) of what was not taken over as it is. Raises PictureError.
    """
    image = open_picture(data, decode=False)
    if max(image.size) > side:
        raise PictureError(
            f"The picture has {image.width} x {image.height} pixels; at most {side} a side are read.",
            "Make it smaller first.",
        )
    decode(image)
    told = {"format": "jpeg" if image.format == "MPO" else str(image.format).lower()}
    record, profile = metadata.read(image).record, image.info.get("icc_profile")
    notes = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        notes.append([f"{frames} frames", "the first frame", "an animation is taken as one picture"])
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # the EXIF of a stranger: many ways to be broken
        notes.append(["its orientation", "as it is stored", f"the EXIF cannot be read ({type(error).__name__})"])
    if profile and not is_mask:
        try:
            image = _in_srgb(image, profile)
        except Exception as error:  # as many in a profile
            notes.append(["its colour profile", "sRGB", f"the profile cannot be used ({type(error).__name__})"])
    image = masks.eight_bit(image)
    return {**told, "mode": image.mode, "size": image.size, "notes": notes, "record": record}, image


def _in_srgb(image: Image.Image, data: bytes) -> Image.Image:
    """The picture with the colours that its profile means. Raises on a profile that is broken or of other colours."""
    profile = ImageCms.ImageCmsProfile(BytesIO(data))
    if "sRGB" in ImageCms.getProfileDescription(profile):
        return image
    space = profile.profile.xcolor_space.strip()
    if space == "RGB" and image.mode != "CMYK":
        image = masks.eight_bit(image)
    elif (space, image.mode) not in (("CMYK", "CMYK"), ("GRAY", "L")):
        raise ValueError(f"a profile of {space} in a picture of {image.mode}")
    mode = image.mode if space == "RGB" else "RGB"
    turned = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
    assert turned is not None  # as it is not done in place
    return turned


def _warm_up(side: int) -> None:
    """Everything that decoding ever imports, before nothing can be opened any more."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"s\0R\0G\0B", b"o\0t\0h\0e")
    exif = Image.Exif()
    exif[_ORIENTATION] = 6
    for output_format in ("png", "jpeg", "webp"):
        for options in ({"icc_profile": profile, "exif": exif}, metadata.save_options(_RECORD, output_format)):
            decoded(encode(Image.new("RGB", (8, 8)), output_format, **options), False, side)
    for broken in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"<svg"):
        with suppress(PictureError):
            decoded(broken, False, side)


def _confine(memory: int) -> None:
    if sys.platform == "win32":  # which has no such limits: only the clock of `uploads` guards there
        return
    import resource

    limits = {resource.RLIMIT_NOFILE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 0}
    with suppress(OSError), open("/proc/self/statm", "rb") as file:  # elsewhere the limit of memory has no effect
        limits[resource.RLIMIT_AS] = int(file.read().split()[0]) * resource.getpagesize() + memory
    for limit, value in limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))


def _allow(seconds: int) -> None:
    """So much processor time from now on; the kernel ends what takes more."""
    if sys.platform != "win32":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, -1))


def _send(output: BinaryIO, told: dict[str, Any], pixels: bytes = b"") -> None:
    header = json.dumps(told).encode()
    output.write(LENGTH.pack(len(header)))
    output.write(header)
    output.write(pixels)
    output.flush()


if __name__ == "__main__":
    main()
