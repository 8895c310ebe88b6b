"""Other people's formats (parquet, WebDataset, a Hugging Face hub id) made into a captioned folder.

`datasets` reads them, picture by picture; what comes out is an ordinary folder (folder.py), so there is one
way to train. Parquet files and WebDataset shards are read from disk; only a hub id uses the network, and code
that a data set brings along is never run.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagewright.data.folder import FORMATS, Unusable, decode_fully
from imagewright.errors import DataError, MissingExtraError

PICTURE_FIELDS = ("image", "png", "jpg", "jpeg", "webp", "img")
TEXT_FIELDS = ("text", "caption", "txt", "prompt", "label_text")
OPTIONAL_FIELDS = ("tags", "style", "licence", "license", "author")


def load_source(spec: str, out: Path, *, split: str = "train", limit: int | None = None) -> int:
    """Write the captioned pictures of `spec` into the new folder `out`, and return how many there are.

    `spec` is a folder or file of parquet (`.parquet`) or WebDataset (`.tar`), or a hub id (`owner/name`).
    """
    if out.exists():
        raise DataError(f"{out} exists already.", "Name a new folder.")
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    lines: list[str] = []
    try:
        for row in rows(spec, split):
            if limit is not None and len(lines) == limit:
                break
            line = write_row(row, partial, len(lines))
            if line is not None:
                lines.append(line)
        if not lines:
            raise DataError(f"{spec} has no rows with a PNG, JPEG or WebP picture and a text.", expected())
        (partial / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(lines)


def expected() -> str:
    """Which fields a row needs."""
    return f"A row needs one of {', '.join(PICTURE_FIELDS)} and one of {', '.join(TEXT_FIELDS)}."


def rows(spec: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a source as dictionaries; pictures as bytes, not decoded."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("Reading parquet, WebDataset and hub data sets", "train") from None
    path = Path(spec)
    try:
        if path.exists():
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            kind, names = builder_of(files, spec)
            source = datasets.load_dataset(kind, data_files=names, split="train", streaming=True)
        else:
            source = datasets.load_dataset(spec, split=split, streaming=True)
        source = source.decode(False) if source.features else source
        yield from source
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{spec} cannot be read: {error}", "Check the path or the hub id, and the split.") from error


def builder_of(files: list[Path], spec: str) -> tuple[str, list[str]]:
    """The reader for these files, and their names."""
    for kind, suffix in (("parquet", ".parquet"), ("webdataset", ".tar")):
        names = [str(file) for file in files if file.suffix == suffix]
        if names:
            return kind, names
    raise DataError(f"{spec} has no .parquet and no .tar files.", "A folder of pictures needs no conversion.")


def write_row(row: dict[str, Any], folder: Path, index: int) -> str | None:
    """Write a row's picture as it is, and return its metadata line; None where the row is not usable."""
    picture = next((row[field] for field in PICTURE_FIELDS if row.get(field)), None)
    text = next((row[field] for field in TEXT_FIELDS if row.get(field)), None)
    data = picture_bytes(picture)
    if data is None or text is None:
        return None
    try:
        mime, _ = decode_fully(data)
    except Unusable:
        return None
    name = f"{index:07d}.{mime.rpartition('/')[2]}"
    (folder / name).write_bytes(data)
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    told = {field: row[field] for field in OPTIONAL_FIELDS if isinstance(row.get(field), (str, list))}
    return json.dumps({"file_name": name, "text": words, **told}, ensure_ascii=False)


def picture_bytes(picture: Any) -> bytes | None:
    """The encoded picture of a field: bytes, a {bytes, path} record, or a decoded Pillow image."""
    if isinstance(picture, dict):
        picture = picture.get("bytes")
    if hasattr(picture, "save"):
        stream = io.BytesIO()
        picture.save(stream, FORMATS[0])
        return stream.getvalue()
    return picture if isinstance(picture, bytes) else None
