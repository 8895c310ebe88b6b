"""Handwritten digits as a captioned folder: the small grey pictures that articles on generative models begin with.

Without a source they are the 1,797 digits that scikit-learn ships (8x8, enlarged), by E. Alpaydin and C. Kaynak, UCI
"Optical Recognition of Handwritten Digits", CC BY 4.0. A source is a folder with MNIST's four idx files, gzipped or
not; its test digits are held out.

    DIR/metadata.jsonl, DIR/manifest.json, DIR/images/NNNNN.png     as the sticker set (see stickers.py), without styles
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.data import splits
from imagewright.data.ledger import USER_SUPPLIED, manifest_hash
from imagewright.errors import DataError, MissingExtraError

FORMAT = 1
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UCI = {
    "source": "scikit-learn load_digits: UCI Optical Recognition of Handwritten Digits",
    "author": "E. Alpaydin, C. Kaynak",
    "licence": "CC-BY-4.0",
    "consent": "published by its authors under CC-BY-4.0",
}
MNIST = {
    "source": "the user's idx files",
    "author": "not stated",
    "licence": USER_SUPPLIED,
    "consent": "the user supplied it",
}
MAX_BYTES = 512 * 2**20
BYTES = 8  # idx: the type code of unsigned bytes
Grey = NDArray[np.uint8]
Record = dict[str, Any]


def build(out: Path, source: Path | None = None, size: int = 28) -> Path:
    """Write the digits to the folder `out`, `size` pixels a side, and return it; a finished one stays as it is.

    Raises DataError where `out` holds something else or `source` cannot be read, and MissingExtraError where there is
    no scikit-learn for the bundled digits.
    """
    parameters = {"format": FORMAT, "size": size, "source": "scikit-learn" if source is None else "idx"}
    if _finished(out, parameters):
        return out
    parts = [(*bundled(), None)] if source is None else mnist(source)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    try:
        records: list[Record] = []
        for pictures, labels, split in parts:
            for picture, label in zip(pictures, labels, strict=True):
                name = f"images/{len(records):05d}.png"
                data = png(picture, size)
                (partial / name).write_bytes(data)
                records.append(record(name, int(label), data, split, UCI if source is None else MNIST))
        _describe(partial, records, parameters)
        shutil.rmtree(out, ignore_errors=True)  # at most an empty folder
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _finished(out: Path, parameters: dict[str, Any]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        made = json.loads((out / "manifest.json").read_text(encoding="utf-8")).get("parameters")
    except (OSError, ValueError):
        made = None
    if made != parameters:
        raise DataError(f"{out} holds something else, or digits made in another way.", "Name another folder.")
    return True


def bundled() -> tuple[Grey, NDArray[np.int64]]:
    """scikit-learn's digits: pictures (1797, 8, 8), labels (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("The bundled digits", "digits") from None
    found = load_digits()
    return (found.images * (255 / 16)).round().astype(np.uint8), found.target.astype(np.int64)


def mnist(folder: Path) -> list[tuple[Grey, Grey, str | None]]:
    """The training and test digits of an MNIST folder: (pictures (N, h, w), labels (N,), split) each."""
    parts: list[tuple[Grey, Grey, str | None]] = []
    for prefix, split in (("train", splits.TRAIN), ("t10k", splits.HOLDOUT)):
        pictures = read_idx(_idx_file(folder, f"{prefix}-images"), axes=3)
        labels = read_idx(_idx_file(folder, f"{prefix}-labels"), axes=1)
        if len(pictures) != len(labels):
            raise DataError(
                f"{folder} has {len(pictures)} {prefix} pictures and {len(labels)} labels.", "Fetch the files again."
            )
        if labels.size and labels.max() >= len(NAMES):
            raise DataError(f"{folder} has labels up to {labels.max()}, no digits.", "Name a folder with MNIST.")
        parts.append((pictures, labels, split))
    return parts


def _idx_file(folder: Path, stem: str) -> Path:
    found = sorted(folder.glob(f"{stem}[-.]idx*"))
    if not found:
        raise DataError(f"There is no {stem}-idx file in {folder}.", "Put MNIST's four files there.")
    return found[0]


def read_idx(path: Path, axes: int) -> Grey:
    """The array of an idx file of unsigned bytes, gzipped or not. Raises DataError unless it is whole."""
    fetch_again = "Fetch the file again."
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}.", fetch_again) from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path} holds more than {MAX_BYTES // 2**20} MiB.", "Use MNIST's own files.")
    head = 4 + 4 * axes
    if len(data) < head or data[:4] != bytes((0, 0, BYTES, axes)):
        raise DataError(f"{path} is no idx file of bytes with {axes} axes.", fetch_again)
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", axes, 4))
    expected = head + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DataError(f"{path} has {len(data):,} bytes and should have {expected:,}.", fetch_again)
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def png(picture: Grey, size: int) -> bytes:
    """A grey picture (h, w) as a PNG of `size` pixels a side."""
    image = Image.fromarray(picture)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def record(file_name: str, label: int, data: bytes, split: str | None, ledger: dict[str, str]) -> Record:
    """The metadata of one digit; `split` None: 5 % are held out by the hash of the file."""
    sha256 = hashlib.sha256(data).hexdigest()
    return {
        "file_name": file_name,
        "text": f"the digit {NAMES[label]}",
        "tags": [],
        "base": NAMES[label],
        "split": split or splits.folder_split(sha256),
        "kind": "picture",
        "sha256": sha256,
        **ledger,
    }


def _describe(folder: Path, records: list[Record], parameters: dict[str, Any]) -> None:
    lines = [json.dumps(record) for record in records]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    manifest = {
        "sha256": manifest_hash(lines),
        "parameters": parameters,
        "counts": dict(sorted(Counter(f"{record['base']}/{record['split']}" for record in records).items())),
        "rules": {
            splits.HOLDOUT: splits.RULES[splits.HOLDOUT] if parameters["source"] != "idx" else "MNIST's test set"
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
