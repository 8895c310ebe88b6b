"""Drawings: a flat picture traced into paths (SVG), cleaned, and compared with the picture; and what an SVG carries.

The picture is enlarged, reduced to a few colours and traced by vtracer (stacked shapes, splines); what is mostly
transparent stays so, and there is no half transparency. Of the tracer's text only known elements and attributes with
known values pass. The drawing is rendered again (resvg) to say how near it is. Photographs become posters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from math import log10
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.errors import MissingExtraError, PictureError, RequestError

SVG = "http://www.w3.org/2000/svg"
OURS = "urn:imagewright:record"
SIDE = 512  # pixels, to which small pictures are enlarged before tracing (at most TIMES-fold)
TIMES = 8
LARGEST = 2048  # pixels, to which large pictures are reduced
COLOURS = 32
TRACER = {
    **{"colormode": "color", "hierarchical": "stacked", "mode": "spline", "path_precision": 1},
    **{"color_precision": 8, "layer_difference": 16, "filter_speckle": 8},
}
MAX_TEXT = 64 * 2**20  # characters of an SVG that is read
_NUMBERS = r"[\d\s.,eE+-]*"
_COLOUR = r"#[0-9a-fA-F]{3,8}|none|[a-zA-Z]+"
_TRANSFORM = rf"(?:(?:translate|scale|rotate|matrix|skewX|skewY)\({_NUMBERS}\)[\s,]*)*"
_PAINT = {"fill": _COLOUR, "fill-rule": "nonzero|evenodd", "fill-opacity": _NUMBERS, "opacity": _NUMBERS}
ALLOWED = {
    "svg": {"version": _NUMBERS, "width": _NUMBERS, "height": _NUMBERS, "viewBox": _NUMBERS},
    "g": {**_PAINT, "transform": _TRANSFORM},
    "path": {**_PAINT, "transform": _TRANSFORM, "d": r"[MmLlHhVvCcSsQqTtAaZz\d\s.,eE+-]*"},
}


@dataclass(frozen=True)
class Drawing:
    """`svg`: the text, of the picture's width and height. `step`: what was done, for the record, with how far its
    pixels are from the picture's (`mean_difference` of 255, `psnr` in dB, over white and black) where resvg-py is."""

    svg: str
    step: dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """What an SVG file says of itself: (width, height) as written, how many paths, and the text of its record."""

    size: tuple[str, str]
    paths: int
    record: str | None


def check() -> None:
    """Raises MissingExtraError where `trace` cannot work: to be known before a picture is made."""
    if find_spec("vtracer") is None:
        raise MissingExtraError("Making an SVG", "svg")


def trace(image: Image.Image) -> Drawing:
    """The picture as a drawing. Raises RequestError where nothing can be seen, MissingExtraError without vtracer."""
    check()
    import vtracer

    size = image.size
    image = reduced(image)
    flat = flattened(image)
    if not np.asarray(flat)[..., 3].any():
        raise RequestError("There is nothing to draw: the picture is transparent.", "Give one that shows something.")
    png = BytesIO()
    flat.save(png, "PNG")
    root = cleaned(parsed(vtracer.convert_raw_image_to_svg(png.getvalue(), img_format="png", **TRACER)))
    traced = sized(root, image.size, flat.size)
    step = {"step": "vectorise", "paths": traced.count("<path"), "traced": list(flat.size), **difference(traced, image)}
    return Drawing(sized(root, size, flat.size), step)


def sized(root: ElementTree.Element, size: tuple[int, int], box: tuple[int, int]) -> str:
    """The text of a drawing inside `box`, shown at `size`, both (width, height)."""
    shown = {"width": str(size[0]), "height": str(size[1]), "viewBox": f"0 0 {box[0]} {box[1]}"}
    root.attrib = {"version": "1.1", **shown, "preserveAspectRatio": "none"}
    return written(root)


def reduced(image: Image.Image) -> Image.Image:
    """RGBA, not larger than LARGEST."""
    image = image.convert("RGBA")
    if max(image.size) <= LARGEST:
        return image
    image = image.convert("RGBa")
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return image.convert("RGBA")


def flattened(image: Image.Image) -> Image.Image:
    """An RGBA picture as it is traced: enlarged where it is small, in few colours, each pixel clear or opaque."""
    factor = max(1, min(TIMES, SIDE // max(image.size)))
    size = (image.width * factor, image.height * factor)
    pixels = np.asarray(image, np.float32) / 255  # (H, W, 4)
    premultiplied = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], -1)
    planes = [Image.fromarray(plane) for plane in np.moveaxis(premultiplied, -1, 0)]
    scaled = np.stack([np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes], -1)
    opaque = scaled[..., 3] >= 0.5
    colour = np.clip(scaled[..., :3] / np.maximum(scaled[..., 3:], 0.02), 0, 1)
    few = Image.fromarray(np.rint(colour * 255).astype(np.uint8)).quantize(
        palette=palette(image), dither=Image.Dither.NONE
    )
    out = np.dstack([np.asarray(few.convert("RGB")), np.where(opaque, 255, 0)]).astype(np.uint8)
    out[~opaque] = 0
    return Image.fromarray(out, "RGBA")


def palette(image: Image.Image) -> Image.Image:
    """The few colours of what is opaque in an RGBA picture, as a picture with that palette."""
    pixels = np.asarray(image)
    solid = pixels[pixels[..., 3] > 250][:, :3]
    if not len(solid):
        solid = pixels[..., :3].reshape(-1, 3)
    return Image.fromarray(np.ascontiguousarray(solid[None])).quantize(COLOURS, kmeans=2)


def difference(svg: str, image: Image.Image) -> dict[str, float]:
    """How far the drawing is from the picture, rendered at its size; nothing where resvg-py is not installed."""
    try:
        import resvg_py
    except ImportError:
        return {}
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=image.width, height=image.height, skip_system_fonts=True))
    again = Image.open(BytesIO(png), formats=("PNG",)).convert("RGBA")
    apart = np.stack([_over(image, ground) - _over(again, ground) for ground in ("white", "black")])
    square = float((apart**2).mean())
    psnr = {"psnr": round(10 * log10(255**2 / square), 2)} if square else {}
    return {"mean_difference": round(float(np.abs(apart).mean()), 3), **psnr}


def _over(image: Image.Image, ground: str) -> NDArray[np.float64]:
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, ground), image), np.float64)[..., :3]


def parsed(text: str) -> ElementTree.Element:
    """The root of an SVG. Raises PictureError for anything else, and for one that declares entities."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise PictureError("The SVG declares a document type or entities.", "Give one without.")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise PictureError(f"The SVG cannot be read: {error}.", "Give an undamaged file.") from error
    if _local(root) != "svg":
        raise PictureError("This is no SVG.", "Give a drawing.")
    return root


def cleaned(element: ElementTree.Element) -> ElementTree.Element:
    """A copy that has only the elements and attributes of ALLOWED, with values of their form, and no text."""
    allowed = ALLOWED[_local(element)]
    kept = {name: value for name, value in element.attrib.items() if re.fullmatch(allowed.get(name, "(?!)"), value)}
    copy = ElementTree.Element(f"{{{SVG}}}{_local(element)}", kept)
    copy.extend(cleaned(child) for child in element if _local(child) in ALLOWED)
    return copy


def _local(element: ElementTree.Element) -> str:
    """The element's name, if it is SVG's own; empty for comments and the elements of others."""
    name = element.tag if isinstance(element.tag, str) else ""
    return name.removeprefix(f"{{{SVG}}}") if name.startswith(f"{{{SVG}}}") else ""


def written(root: ElementTree.Element) -> str:
    """The text of an SVG."""
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("iw", OURS)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False)


def with_record(svg: str, record: str) -> str:
    """A drawing of `trace` with the JSON text of a record in its metadata."""
    root = parsed(svg)
    metadata = ElementTree.Element(f"{{{SVG}}}metadata")
    ElementTree.SubElement(metadata, f"{{{OURS}}}record").text = record
    root.insert(0, metadata)
    return written(root)


def is_svg(data: bytes) -> bool:
    """Whether a file's bytes look like an SVG."""
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    return head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in data[:4096])


def read(data: bytes) -> Contents:
    """What an SVG says of itself; nothing of it is drawn. Raises PictureError."""
    if len(data) > MAX_TEXT:
        raise PictureError("The SVG is too large to read.", "Give a smaller one.")
    root = parsed(data.decode("utf-8", "replace"))
    found = root.findtext(f"{{{SVG}}}metadata/{{{OURS}}}record")
    size = (root.get("width", "?"), root.get("height", "?"))
    return Contents(size, sum(_local(element) == "path" for element in root.iter()), found)
