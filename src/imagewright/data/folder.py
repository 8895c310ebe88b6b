"""A user's own folder of captioned pictures: read, checked, and every picture that is left out is named with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from imagewright.data.ledger import manifest_hash
from imagewright.errors import DataError

MAX_PIXELS = 64 * 10**6
FORMATS = ("PNG", "JPEG", "WEBP")


def prepare(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """The records of a captioned folder and their manifest hash."""
    if not (folder / "manifest.json").is_file():
        raise DataError(
            f"{folder} is not a finished data set.", "Make one with: imagewright data stickers DIR"
        )
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], manifest_hash(lines)
