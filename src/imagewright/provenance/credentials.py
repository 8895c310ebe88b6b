"""Content Credentials (C2PA): signs a picture's bytes and checks them again, offline.

The manifest says that a trained model made the picture, which model, and that it may not train other
models; it never holds the prompt. The signature proves that this installation made the picture and that no
pixel changed since; it proves nothing about who the user is. Remote manifests and OCSP are never fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from imagewright.errors import ProvenanceError
from imagewright.pictures import MIME
from imagewright.provenance import identity
from imagewright.provenance import record as records
from imagewright.provenance.metadata import SOURCE_TYPES

State = Literal["trusted", "valid", "invalid", "none"]
_MODEL_LABEL = "org.imagewright.model"
_TOLD = ("software", "engine", "provider", "model", "model_digest", "technique", "licence", "training_manifest")


@dataclass(frozen=True)
class Credential:
    """What a file's credential says.

    `trusted`: signed here and unchanged. `valid`: unchanged, but the signer is unknown here.
    `invalid`: changed, or its certificate ended; `problems` says which. `none`: the file carries no
    credential.
    """

    state: State
    signer: str | None = None
    generator: str | None = None
    digital_source_type: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def sign(
    data: bytes,
    output_format: str,
    record: Mapping[str, Any],
    where: Path | None = None,
    parents: Sequence[bytes] = (),
) -> bytes:
    """`data` (png, jpeg or webp) with a signed credential. Raises ProvenanceError.

    `parents` are the files it was made from, the edited one first: their own credentials stay inside this one.
    """
    who = identity.load_or_create(where or identity.folder())
    from c2pa import Builder, C2paBuilderIntent, C2paSignerInfo, C2paSigningAlg, Signer
    from c2pa import C2paDigitalSourceType as Kind

    from imagewright import __version__

    manifest = {
        "claim_generator_info": [{"name": "imagewright", "version": __version__}],
        "assertions": [
            {
                "label": "cawg.training-mining",
                "data": {"entries": {"cawg.ai_generative_training": {"use": "notAllowed"}}},
            },
            {"label": _MODEL_LABEL, "data": {name: record[name] for name in _TOLD if record.get(name)}},
        ],
    }
    try:
        signer = Signer.from_info(C2paSignerInfo(C2paSigningAlg.ES256, who.chain, who.key, None))
        builder = Builder(manifest, context=_context(who.root))
        kind = records.source_type(record)
        name = re.sub("([A-Z])", r"_\1", kind).upper()  # the library's name of IPTC's
        builder.set_intent(C2paBuilderIntent.EDIT if parents else C2paBuilderIntent.CREATE, getattr(Kind, name))
        for index, parent in enumerate(parents):
            told = {"title": "source", "relationship": "componentOf" if index else "parentOf"}
            builder.add_ingredient(told, _mime(parent), BytesIO(parent))
        if parents:
            builder.add_action({"action": "c2pa.edited", "digitalSourceType": SOURCE_TYPES + kind})
        out = BytesIO()
        builder.sign(signer, MIME[output_format], BytesIO(data), out)
    except Exception as error:  # the native library has one broad error class
        raise ProvenanceError(f"The picture was not signed: {error}.", "See: imagewright doctor") from error
    return out.getvalue()


def read(data: bytes, output_format: str, where: Path | None = None) -> Credential:
    """The credential of a picture's bytes, checked offline against this installation's own roots."""
    from c2pa import C2paError, Reader

    context = _context(identity.anchors(where or identity.folder()))
    try:
        reader = Reader.try_create(MIME[output_format], BytesIO(data), context=context)
    except C2paError as error:
        return Credential("invalid", problems=(str(error),))
    if reader is None:
        return Credential("none")
    with reader:
        manifest = reader.get_active_manifest() or {}
        results = (reader.get_validation_results() or {}).get("activeManifest", {})
        state = str(reader.get_validation_state()).lower()
    return Credential(
        state=state if state in ("trusted", "valid") else "invalid",  # type: ignore[arg-type]
        signer=manifest.get("signature_info", {}).get("common_name"),
        generator=next((entry.get("name") for entry in manifest.get("claim_generator_info", [])), None),
        digital_source_type=_source_type(manifest),
        model=next((a["data"] for a in manifest.get("assertions", []) if a["label"] == _MODEL_LABEL), {}),
        problems=tuple(str(entry.get("explanation") or entry.get("code")) for entry in results.get("failure", [])),
    )


def _mime(data: bytes) -> str:
    """The type of a picture file that was read already."""
    return MIME["png" if data.startswith(b"\x89PNG") else "webp" if data.startswith(b"RIFF") else "jpeg"]


def _source_type(manifest: Mapping[str, Any]) -> str | None:
    for assertion in manifest.get("assertions", []):
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            for action in assertion["data"].get("actions", []):
                if action.get("digitalSourceType"):
                    return str(action["digitalSourceType"]).rpartition("/")[2]
    return None


def _context(anchors: bytes) -> Any:
    from c2pa import Context, Settings

    trust = {"trust": {"user_anchors": anchors.decode()}} if anchors else {}
    return Context(
        settings=Settings.from_dict(
            {
                **trust,
                "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
                "builder": {"thumbnail": {"enabled": False}},
            }
        )
    )
