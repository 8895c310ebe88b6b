"""The licence ledger: a training picture has source, author, licence and consent basis, or is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from imagewright.data.splits import TRAIN
from imagewright.errors import LicenceError

USER_SUPPLIED = "user-supplied"
ALLOWED = (
    "Apache-2.0",
    "MIT",
    "CC-BY-4.0",
    "CC-BY-3.0",
    "CC0-1.0",
    "OFL-1.1",
    "BSD-3-Clause",
    "Unlicense",
    USER_SUPPLIED,
)


def refusal(record: dict[str, Any]) -> str | None:
    """Why this picture may not be trained on; None where it may."""
    licence = record.get("licence")
    if not licence:
        return "it has no licence"
    if record.get("style") == "openmoji":
        return "OpenMoji (CC-BY-SA-4.0) is the unseen style of the tests"
    if licence not in ALLOWED:
        return f"its licence {licence} is not one of {', '.join(ALLOWED)}"
    if not record.get("consent"):
        return "it has no consent basis"
    return None


def check_training(records: Iterable[dict[str, Any]]) -> None:
    """Raise a LicenceError that names the first training picture which may not be trained on."""
    for record in records:
        reason = refusal(record) if record["split"] == TRAIN else None
        if reason is not None:
            raise LicenceError(
                f"{record['file_name']} may not be trained on: {reason}.",
                "Remove it, or state an allowed licence in metadata.jsonl.",
            )


def manifest_hash(lines: Iterable[str]) -> str:
    """sha256 over the sorted metadata lines: what a checkpoint and a model card cite."""
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
