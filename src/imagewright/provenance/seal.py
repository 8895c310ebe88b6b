"""From a finished picture to the bytes of its file: encoded, with its record, signed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from imagewright.errors import ProvenanceError
from imagewright.pictures import encode
from imagewright.provenance import metadata


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
) -> Sealed:
    """The bytes of `image` in the record's format, with its record and a C2PA credential.

    Without `with_metadata` the file holds neither. A credential that cannot be made is a warning, or, with
    `require_credential`, a ProvenanceError. `where` is the folder of the identity (None: the user's).
    """
    output_format, compression = record["output_format"], record["output_compression"]
    if not with_metadata:
        return Sealed(encode(image, output_format, compression))
    data = encode(image, output_format, compression, **metadata.save_options(record, output_format))
    try:
        from imagewright.provenance import credentials

        return Sealed(credentials.sign(data, output_format, record, where))
    except (ProvenanceError, ImportError) as error:
        if require_credential:
            if isinstance(error, ProvenanceError):
                raise
            raise ProvenanceError(f"The picture could not be signed: {error}.", "Reinstall imagewright.") from error
        return Sealed(data, warning=f"The picture carries no credential: {error}")
