"""The record inside PNG, JPEG and WebP files: written, and read back.

PNG: iTXt `imagewright` (the JSON record), iTXt `parameters` (the text form that other tools read) and XMP.
JPEG and WebP: EXIF ImageDescription (the JSON record), EXIF UserComment (the text form) and XMP. The XMP
says the IPTC digital source type `trainedAlgorithmicMedia`: made by a trained model. EXIF holds 64 kB: of a
longer prompt the start is kept, and the record says so.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagewright import vector
from imagewright.provenance import record as records

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_EXIF_POINTER, _DESCRIPTION, _USER_COMMENT = 0x8769, 0x010E, 0x9286
_MAX_EXIF = 65_000  # bytes; JPEG allows 65,533 in one segment
_UNICODE = b"UNICODE\0"
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="imagewright"
 Iptc4xmpExt:DigitalSourceType="SOURCE_TYPE"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


@dataclass(frozen=True)
class Metadata:
    """What a file says about itself, unsigned: anyone can write this. None where it says nothing."""

    record: dict[str, Any] | None
    parameters: str | None
    digital_source_type: str | None


def save_options(record: Mapping[str, Any], output_format: str) -> dict[str, Any]:
    """Options for `pictures.encode` that put `record` into a png, jpeg or webp file."""
    text, parameters = records.to_json(record), records.parameters(record)
    xmp = _XMP.replace("SOURCE_TYPE", SOURCE_TYPES + records.source_type(record))
    if output_format == "png":
        info = PngInfo()
        info.add_itxt("imagewright", text)
        info.add_itxt("parameters", parameters)
        info.add_itxt("XML:com.adobe.xmp", xmp)
        return {"pnginfo": info}
    exif = _exif(text, parameters)
    if len(exif) > _MAX_EXIF:
        exif = _exif(text, "")
    if len(exif) > _MAX_EXIF:
        exif = _exif(records.to_json(records.shortened(record)), "")
    return {"exif": exif, "xmp": xmp.encode()}


def _exif(text: str, parameters: str) -> bytes:
    exif = Image.Exif()
    exif[_DESCRIPTION] = text
    if parameters:
        exif.get_ifd(_EXIF_POINTER)[_USER_COMMENT] = _UNICODE + parameters.encode("utf-16-be")
    return exif.tobytes()


def read(image: Image.Image) -> Metadata:
    """The record, parameters and source type of an opened picture. Never raises on broken metadata."""
    if image.format == "PNG":
        text, parameters = image.info.get("imagewright"), image.info.get("parameters")
    else:
        text, parameters = _read_exif(image)
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    xmp = xmp if isinstance(xmp, bytes) else str(xmp).encode("utf-8", "replace")
    found = re.search(rb"%s(\w+)" % re.escape(SOURCE_TYPES.encode()), xmp)
    return Metadata(
        record=records.from_json(text) if isinstance(text, str) else None,
        parameters=str(parameters) if parameters else None,
        digital_source_type=found[1].decode() if found else None,
    )


def read_svg(data: bytes) -> Metadata:
    """The record of an SVG file. Raises PictureError where it is none."""
    text = vector.read(data).record
    record = None if text is None else records.from_json(text)
    return Metadata(record, None, records.source_type(record) if record else None)


def _read_exif(image: Image.Image) -> tuple[str | None, str | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif = image.getexif()
            comment = exif.get_ifd(_EXIF_POINTER).get(_USER_COMMENT)
            text = exif.get(_DESCRIPTION)
    except Exception:  # the EXIF of a stranger: many ways to be broken, none of them ours to report
        return None, None
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        return text, comment[len(_UNICODE) :].decode("utf-16-be", "replace")
    return text, None
