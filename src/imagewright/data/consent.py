"""Marks inside a picture file by which its author forbids training on it, or says that a model made it.

Read are the PLUS data-mining property in XMP (ns.useplus.org), and the training-and-data-mining assertions
of C2PA and CAWG. A picture without marks says nothing, so the answer is then that nothing forbids it.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import Any

PROHIBITED = re.compile(rb"DMI-PROHIBITED[A-Z-]*")
MADE_BY_MODEL = "trainedAlgorithmicMedia"  # IPTC digital source type; also ends "compositeWithTrained..."
TRAINING_USES = ("ai_training", "ai_generative_training", "data_mining")


@dataclass(frozen=True)
class Marks:
    """`forbidden`: why the picture may not be trained on, or empty; `ai_generated`: it says so itself."""

    forbidden: str = ""
    ai_generated: bool = False


def read_marks(data: bytes, mime: str, xmp: bytes) -> Marks:
    """The marks of a picture file: its bytes, its MIME type and its XMP packet (empty where it has none)."""
    prohibited = PROHIBITED.search(xmp)
    credentials = _credentials(data, mime) if b"c2pa" in data else {}
    forbidden = ""
    if prohibited:
        forbidden = f"its author forbids data mining (plus:DataMining {prohibited[0].decode()})"
    elif _not_allowed(credentials):
        forbidden = "its content credentials forbid training (training-mining notAllowed)"
    text = xmp.decode("utf-8", "replace") + json.dumps(credentials)
    return Marks(forbidden, MADE_BY_MODEL.lower() in text.lower())


def _credentials(data: bytes, mime: str) -> dict[str, Any]:
    """The C2PA manifest store, or nothing where there is none that can be read; nothing is fetched."""
    from c2pa import C2paError, Context, Reader, Settings

    offline = Context(settings=Settings.from_dict({"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}))
    try:
        reader = Reader.try_create(mime, io.BytesIO(data), context=offline)
    except C2paError:
        return {}
    if reader is None:
        return {}
    with reader:
        store: dict[str, Any] = json.loads(reader.json())
    return store


def _not_allowed(store: dict[str, Any]) -> bool:
    """True where an assertion of any manifest says notAllowed to a kind of training."""
    for manifest in store.get("manifests", {}).values():
        for assertion in manifest.get("assertions", ()):
            if not str(assertion.get("label", "")).endswith(("training-mining", "training-mining.v1")):
                continue
            for use, rule in assertion.get("data", {}).get("entries", {}).items():
                if use.rpartition(".")[2] in TRAINING_USES and rule.get("use") == "notAllowed":
                    return True
    return False
