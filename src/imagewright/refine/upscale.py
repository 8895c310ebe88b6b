"""To the asked size and background: resample, pad, composite.

Each step returns (picture, what it did), or (picture, None) where there was nothing to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from imagewright.request import Adjustment, ImageRequest
from imagewright.resampling import resize

Step = dict[str, Any]
_WHITE = "#ffffff"


def as_rgb(image: Image.Image) -> Image.Image:
    """A copy of `image` as RGBA where it has transparency, else as RGB."""
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def resample(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Step | None]:
    """`image` scaled, aspect kept, to the largest that fits into `size` (width, height).

    Smaller: LANCZOS. Larger: bicubic, sharpened (see resampling.py).
    """
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if inner == image.size:
        return image, None
    filter_ = "bicubic, sharpened" if inner[0] > image.width else "lanczos"
    return resize(image, inner), {"step": "resample", "filter": filter_, "from": list(image.size), "to": list(inner)}


def pad(image: Image.Image, size: tuple[int, int], background: str) -> tuple[Image.Image, Step | None]:
    """`image` in the middle of a canvas of `size`: clear where it has alpha, else the background's colour."""
    if image.size == size:
        return image, None
    fill = (0, 0, 0, 0) if image.mode == "RGBA" else _colour(background)
    canvas = Image.new(image.mode, size, fill)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas, {"step": "pad", "from": list(image.size), "to": list(size)}


def lay_on(image: Image.Image, background: str, output_format: str) -> tuple[Image.Image, Step | None]:
    """`image` on its background: white, black or #rrggbb; `transparent` keeps alpha, `opaque` is white.

    `auto` keeps alpha where the format can hold it (png, webp) and is white for jpeg.
    """
    keeps_alpha = background == "transparent" or (background == "auto" and output_format != "jpeg")
    if image.mode != "RGBA" or keeps_alpha:
        return image, None
    colour = _colour(background)
    canvas = Image.new("RGBA", image.size, colour)
    return Image.alpha_composite(canvas, image).convert("RGB"), {"step": "background", "colour": colour}


def unmet(images: Sequence[Image.Image], request: ImageRequest) -> list[Adjustment]:
    """An adjustment where a background was asked for and the model's pictures have no alpha to lay on it."""
    if request.background in ("auto", "opaque") or all(image.has_transparency_data for image in images):
        return []
    return [Adjustment("background", request.background, "opaque", "this model paints its own background")]


def _colour(background: str) -> str:
    if background.startswith("#"):
        return background.lower()
    return "#000000" if background == "black" else _WHITE
