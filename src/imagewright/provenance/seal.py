"""From a finished picture to the bytes of its file: encoded, with its record, signed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from imagewright import vector
from imagewright.errors import ProvenanceError
from imagewright.pictures import encode
from imagewright.provenance import metadata
from imagewright.provenance import record as records


@dataclass(frozen=True)
class Sealed:
    """A picture's file. `warning` says why it carries no credential although one was wanted."""

    data: bytes
    warning: str = ""


def seal(
    image: Image.Image,
    record: Mapping[str, Any],
    *,
    with_metadata: bool = True,
    require_credential: bool = False,
    where: Path | None = None,
    parents: Sequence[bytes] = (),
) -> Sealed:
    """The bytes of `image` in the record's format, with its record and a C2PA credential.

    Without `with_metadata` the file holds neither. A credential that cannot be made is a warning, or, with
    `require_credential`, a ProvenanceError. `where` is the folder of the identity (None: the user's). `parents` are
    the files that the picture was made from, the edited one first.
    """
    output_format = record["output_format"]
    if output_format == "svg":
        data = drawn(image, record if with_metadata else None)
    else:
        options = metadata.save_options(record, output_format) if with_metadata else {}
        if "icc_profile" in image.info:  # what an edited picture's colours mean: without it they would look different
            options["icc_profile"] = image.info["icc_profile"]
        data = encode(image, output_format, record["output_compression"], **options)
    if not with_metadata:
        return Sealed(data)
    try:
        from imagewright.provenance import credentials

        return Sealed(credentials.sign(data, output_format, record, where, parents))
    except (ProvenanceError, ImportError) as error:
        if require_credential:
            if isinstance(error, ProvenanceError):
                raise
            raise ProvenanceError(f"The picture could not be signed: {error}.", "Reinstall imagewright.") from error
        return Sealed(data, warning=f"The picture carries no credential: {error}")


def drawn(image: Image.Image, record: Mapping[str, Any] | None) -> bytes:
    """The picture as an SVG file, traced where that was not done before, with its record if one is given."""
    svg = image.info.get("svg")
    if svg is None:
        drawing = vector.trace(image)
        svg, record = drawing.svg, record and {**record, "refine": [*record["refine"], drawing.step]}
    return (vector.with_record(svg, records.to_json(record)) if record else svg).encode()
