"""A user's own folder of captioned pictures, read and checked; each picture left out is named with a reason.

Captions come from `metadata.jsonl` or `metadata.csv` (file_name, text, and optionally tags, style, base, author,
licence, split; before and instruction where a picture was edited from another), from a text file beside the picture
(`cat.png`, `cat.txt`), or from the file's name (`red_fox-01.png` -> "red fox"). A picture whose licence is not stated
is the user's own responsibility and is recorded as `user-supplied`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from imagewright.data import splits
from imagewright.data.consent import read_marks
from imagewright.data.ledger import USER_SUPPLIED, manifest_hash
from imagewright.errors import DataError

MAX_PIXELS = 64 * 10**6
MAX_BYTES = 512 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
OTHER_PICTURES = frozenset({".gif", ".bmp", ".svg", ".tif", ".tiff", ".avif", ".heic", ".psd", ".ico"})
CAMERA_NAME = re.compile(r"^(?:img|dsc[nf]?|pxl|p|image|photo|picture|screenshot|untitled)?$", re.IGNORECASE)
READER = 2  # raised when the rules below change, so that a cached report is read anew
Record = dict[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    file_name: str
    reason: str


@dataclass(frozen=True)
class FolderReport:
    """`records` of the usable pictures, `skipped` files, and `warnings` about usable ones."""

    records: list[Record]
    skipped: list[Skipped]
    warnings: list[str]


def prepare(folder: Path) -> tuple[list[Record], str]:
    """The records of a finished data set or of a user's folder, and their manifest hash."""
    if not (folder / "manifest.json").is_file():
        records = read_folder(folder).records
        return records, manifest_hash(json.dumps(record, sort_keys=True) for record in records)
    try:
        told = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"The data set in {folder} is damaged: {error}", "Make it again.") from error
    manifest = manifest_hash(lines)
    if told.get("sha256") != manifest:
        raise DataError(
            f"{folder / 'metadata.jsonl'} is not the one that manifest.json describes.",
            "Make the set again, or delete manifest.json to read it as a folder of your own.",
        )
    records = [json.loads(line) for line in lines]
    outside = next((record["file_name"] for record in records if not inside(record["file_name"])), None)
    if outside is not None:
        raise DataError(f"{folder / 'metadata.jsonl'} names {outside}, outside the folder.", "Do not use this set.")
    return records, manifest


def read_folder(folder: Path) -> FolderReport:
    """Read and check every picture in `folder` and below; a report is cached until a file changes."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Check the path.")
    files = sorted(path for path in folder.rglob("*") if not _hidden(path, folder) and not path.is_dir())
    cache = folder / ".cache" / f"folder-{_fingerprint(files, folder)}.json"
    report = _cached(cache) or _read(folder, files)
    if not report.records:
        reasons = "; ".join(f"{skip.file_name}: {skip.reason}" for skip in report.skipped[:5])
        raise DataError(
            f"{folder} has no usable pictures{f' ({reasons})' if reasons else ''}.",
            "Put PNG, JPEG or WebP files there, with captions in metadata.jsonl, .txt files or their names.",
        )
    if not cache.exists():
        _write_cache(cache, report)
    return report


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _fingerprint(files: list[Path], folder: Path) -> str:
    """Changes when a file comes, goes or is written."""
    stats = [(str(path.relative_to(folder)), *path.lstat()[6:9:2]) for path in files]
    return hashlib.sha256(repr((READER, stats)).encode()).hexdigest()[:16]


def _cached(cache: Path) -> FolderReport | None:
    if not cache.exists():
        return None
    saved = json.loads(cache.read_text(encoding="utf-8"))
    return FolderReport(saved["records"], [Skipped(**skip) for skip in saved["skipped"]], saved["warnings"])


def _write_cache(cache: Path, report: FolderReport) -> None:
    cache.parent.mkdir(exist_ok=True)
    partial = cache.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(report)), encoding="utf-8")
    os.replace(partial, cache)


def _read(folder: Path, files: list[Path]) -> FolderReport:
    told, skipped = read_metadata(folder)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    skipped += [Skipped(name, "metadata names it, and it is not there") for name in told if name not in names]
    report = FolderReport([], skipped, [])
    seen: dict[str, str] = {}
    for name, path in names.items():
        suffix = path.suffix.lower()
        if suffix in OTHER_PICTURES:
            report.skipped.append(Skipped(name, "it is not PNG, JPEG or WebP"))
        elif suffix in SUFFIXES:
            try:
                record, made_by_model = read_picture(folder, name, told.get(name, {}), seen)
            except Unusable as error:
                report.skipped.append(Skipped(name, str(error)))
                continue
            report.records.append(record)
            if made_by_model:
                report.warnings.append(f"{name} says that a model made it")
    _drop_orphans(report)
    if report.records and not any(record["split"] == splits.TRAIN for record in report.records):
        for record in report.records:  # a handful of pictures, all held out by chance
            record["split"] = splits.TRAIN
    return report


def _drop_orphans(report: FolderReport) -> None:
    """Leave out edits whose picture before cannot be used."""
    usable = {record["file_name"] for record in report.records}
    for record in [r for r in report.records if r.get("before", r["file_name"]) not in usable]:
        report.records.remove(record)
        report.skipped.append(Skipped(record["file_name"], f"it was edited from {record['before']}, which is unusable"))


class Unusable(Exception):
    """Why a picture is left out."""


def read_metadata(folder: Path) -> tuple[dict[str, Record], list[Skipped]]:
    """What metadata.jsonl or metadata.csv says about each file, and the lines that cannot be used."""
    rows: list[tuple[str, Any]] = []
    lines, table = folder / "metadata.jsonl", folder / "metadata.csv"
    try:
        if lines.is_file():
            for number, line in enumerate(lines.read_text(encoding="utf-8-sig").splitlines(), start=1):
                if line.strip():
                    rows.append((f"metadata.jsonl line {number}", _json(line)))
        elif table.is_file():
            reader = csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig")))
            rows += [(f"metadata.csv row {number}", row) for number, row in enumerate(reader, start=1)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The metadata in {folder} cannot be read: {error}.", "Save it as UTF-8 text.") from error
    told: dict[str, Record] = {}
    skipped = []
    for where, row in rows:
        name = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            skipped.append(Skipped(where, "it names no file_name"))
        elif not inside(name):
            skipped.append(Skipped(name, f"{where} points outside the folder"))
        else:
            told[PurePosixPath(name).as_posix()] = row
    return told, skipped


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def inside(name: str) -> bool:
    """True for a relative path that does not climb out."""
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]


def read_picture(folder: Path, name: str, told: Record, seen: dict[str, str]) -> tuple[Record, bool]:
    """The record of one picture, and whether it says that a model made it; raises Unusable."""
    path = folder / name
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise Unusable("it is a link that points outside the folder")
        data = _bytes(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise Unusable(f"it cannot be read: {error}") from None
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 in seen:
        raise Unusable(f"it is a duplicate of {seen[sha256]}")
    mime, xmp = decode_fully(data)
    marks = read_marks(data, mime, xmp)
    if marks.forbidden:
        raise Unusable(marks.forbidden)
    text = caption_of(path, told)
    if not text:
        raise Unusable("it has no caption: its name says nothing, and no metadata or text file does")
    seen[sha256] = name
    licence = told.get("licence") or told.get("license") or USER_SUPPLIED
    return {
        "file_name": name,
        "text": text,
        "tags": _tags(told.get("tags")),
        "style": str(told.get("style") or ""),
        "base": str(told.get("base") or text.lower()),
        "split": _split(told.get("split"), sha256),
        "kind": "picture",
        "sha256": sha256,
        "source": str(told.get("source") or "user's folder"),
        "author": str(told.get("author") or "not stated"),
        "licence": str(licence),
        "consent": "the user supplied it" if licence == USER_SUPPLIED else f"published under {licence}, says the user",
        **_edit(told),
    }, marks.ai_generated


def _edit(told: Record) -> Record:
    """What makes a picture the result of an instruction: the picture `before`, and the words."""
    before, words = str(told.get("before") or ""), " ".join(str(told.get("instruction") or "").split())
    if not before and not words:
        return {}
    if not before or not words or not inside(before):
        raise Unusable("an edit needs both `before`, a picture in this folder, and `instruction`")
    told_edit = {"kind": "own", "instruction": words}
    return {"kind": "edit", "before": PurePosixPath(before).as_posix(), "edit": told_edit}


def _bytes(path: Path) -> bytes:
    size = path.stat().st_size
    if size == 0:
        raise Unusable("it is empty")
    if size > MAX_BYTES:
        raise Unusable(f"it is larger than {MAX_BYTES // 2**20} MiB")
    return path.read_bytes()


def decode_fully(data: bytes) -> tuple[str, bytes]:
    """Decode all pixels, and return the MIME type and the XMP packet; raises Unusable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise Unusable(f"it has more than {MAX_PIXELS // 10**6} megapixels")
                picture.load()
                xmp = picture.info.get("xmp", b"")
                return Image.MIME[picture.format or ""], xmp.encode() if isinstance(xmp, str) else xmp
        except Image.DecompressionBombError:
            raise Unusable(f"it has more than {MAX_PIXELS // 10**6} megapixels") from None
        except UnidentifiedImageError:
            raise Unusable("it is not PNG, JPEG or WebP") from None
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise Unusable(f"it is damaged: {error}") from None


def caption_of(path: Path, told: Record) -> str:
    """The caption from the metadata, else from the text file beside the picture, else from its name."""
    for field in ("text", "caption"):
        if str(told.get(field) or "").strip():
            return " ".join(str(told[field]).split())
    sidecar = path.with_suffix(".txt")
    if sidecar.is_file() and not sidecar.is_symlink():
        return " ".join(sidecar.read_text(encoding="utf-8", errors="replace").split())
    words = re.sub(r"[\W_]+", " ", path.stem)
    words = re.sub(r"(?: (?:\d+|copy))+$", "", f" {words}").strip()
    return "" if CAMERA_NAME.match(words.rstrip("0123456789")) else words


def _tags(tags: Any) -> list[str]:
    if isinstance(tags, str):
        tags = tags.split(",")
    return [str(tag).strip() for tag in tags or () if str(tag).strip()]


def _split(told: Any, sha256: str) -> str:
    """The user's split, any test split being held out, or 5 % held out by the hash of the file."""
    if not told:
        return splits.folder_split(sha256)
    kept = (splits.TRAIN, splits.STYLE_HOLDOUT, splits.UNSEEN_STYLE, splits.DROPPED)
    return str(told) if told in kept else splits.HOLDOUT
