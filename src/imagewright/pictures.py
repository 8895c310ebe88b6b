"""The one place that opens foreign pictures and writes files.

Only PNG, JPEG and WebP are decoded, and only up to `MAX_PIXELS`. Files are written beside their target and
moved into place, so a reader, a crash or a full disk never meets half a file.
"""

from __future__ import annotations

import errno
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from imagewright.errors import OutputError, PictureError

FORMATS = ("PNG", "JPEG", "WEBP")
MIME = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "svg": "image/svg+xml"}
SUFFIX = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".svg": "svg"}
MAX_PIXELS = 8192 * 8192
MAX_FILE = 256 * 2**20  # bytes


def read_bytes(path: Path | str) -> bytes:
    """The bytes of a picture file. Raises PictureError where it cannot be read or is over 256 MiB."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PictureError(f"Cannot read {str(path)!r}: {reason}.", "Check the path.") from error
    if len(data) > MAX_FILE:
        raise PictureError(f"{str(path)!r} is larger than {MAX_FILE >> 20} MiB.", "Use a smaller picture.")
    return data


def open_picture(source: Path | str | bytes, *, decode: bool = True) -> Image.Image:
    """A picture from a path or from bytes, decoded, or for now only its head; `.format` says PNG, JPEG or WEBP.

    Raises PictureError on other formats, truncated or broken files, and more than 67 million pixels.
    """
    data = source if isinstance(source, bytes) else read_bytes(source)
    name = "the picture" if isinstance(source, bytes) else repr(str(source))
    with _as_picture_error(name, data), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata is no reason to refuse a picture
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise PictureError(
                f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read.",
                "Make it smaller first.",
            )
        if decode:
            image.load()
    return image


def decode(image: Image.Image) -> None:
    """Decodes what `open_picture` left for later. Raises PictureError."""
    with _as_picture_error("the picture"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.load()


@contextmanager
def _as_picture_error(name: str, data: bytes = b"") -> Iterator[None]:
    try:
        yield
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(
            f"{name} has far too many pixels; at most {MAX_PIXELS:,} are read.", "Make it smaller first."
        ) from error
    except MemoryError as error:
        raise PictureError(f"{name} needs more memory than there is.", "Make it smaller first.") from error
    except Exception as error:  # decoders raise many kinds on bad bytes: OSError, SyntaxError, ...
        if b"<svg" in data[:4096]:
            raise PictureError(
                f"{name} is an SVG: a drawing, not pixels.", "Give the picture that it was traced from, or a PNG of it."
            ) from error
        raise PictureError(
            f"Cannot read {name}: it is not a whole PNG, JPEG or WebP picture ({type(error).__name__}).",
            "Give an undamaged PNG, JPEG or WebP file.",
        ) from error


def format_of(image: Image.Image) -> str:
    """'png', 'jpeg' or 'webp': how an opened picture was stored."""
    return str(image.format).lower()


def encode(image: Image.Image, output_format: str, compression: int = 100, **save_options: Any) -> bytes:
    """The bytes of `image` as png, jpeg or webp. `compression` is OpenAI's 0-100; 100 is lossless for WebP.

    Nothing from `image.info` goes into the file: only what `save_options` names (see provenance.metadata).
    """
    if output_format == "svg":
        raise OutputError("Pixels cannot be stored as SVG.", "Trace them: imagewright vectorise")
    clean = image.copy()
    clean.info = {}
    options: dict[str, Any] = {"png": {}, "jpeg": {}, "webp": {"exact": True}}[output_format]
    if output_format == "jpeg":
        options |= {"quality": min(95, max(1, compression)), "subsampling": 0 if compression >= 90 else 2}
        clean = clean.convert("RGB")
    elif output_format == "webp":
        options |= {"lossless": True, "quality": 75} if compression == 100 else {"quality": compression}
    out = BytesIO()
    clean.save(out, output_format.upper(), **options, **save_options)
    return out.getvalue()


def save_atomic(data: bytes, path: Path, *, overwrite: bool = True, mode: int = 0o666) -> None:
    """Writes `path` whole or not at all: a temporary file beside it, fsync, rename, fsync of the folder.

    Without `overwrite` an existing file raises FileExistsError. Other failures raise OutputError and leave
    nothing.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{str(path)!r} is not a plain file.", "Name another output.")
    temporary = path.with_name(f".{secrets.token_hex(6)}.part")
    with _as_output_error(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if overwrite:
                os.replace(temporary, path)
            else:
                _move_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def save_numbered(data: bytes, path: Path) -> Path:
    """Saves under `path`, or `path` with -2, -3, ... where that is taken; returns the name used."""
    for candidate in _numbered(path):
        try:
            save_atomic(data, candidate, overwrite=False)
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("unreachable: the numbers do not end")


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    number = 2
    while True:
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1


def _move_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # fails where the name is taken, so two processes cannot overwrite each other
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(path)) from None
        os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        fixes = {
            errno.ENOSPC: "Free some space on the disk, or write to another folder.",
            errno.ENOENT: "Make the folder first.",
            errno.ENAMETOOLONG: "Use a shorter name.",
        }
        raise OutputError(
            f"Cannot write {str(path)!r}: {error.strerror or error}.",
            fixes.get(error.errno or 0, "Write to a folder that you may write to."),
        ) from error
