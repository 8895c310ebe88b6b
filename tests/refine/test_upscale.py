"""To the asked size and background."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imagewright.refine import upscale
from imagewright.request import ImageRequest


def disc() -> Image.Image:
    """A red square in the middle of green that is fully transparent."""
    values = np.zeros((32, 32, 4), np.uint8)
    values[..., 1] = 255
    values[8:24, 8:24] = (255, 0, 0, 255)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [(128, 128), (24, 24)])
def test_hidden_colours_do_not_bleed(size: tuple[int, int]) -> None:
    scaled, step = upscale.resample(disc(), size)
    values = np.asarray(scaled)
    visible = values[values[..., 3] > 8]
    assert visible[:, 0].min() > 240 and visible[:, 1].max() < 16
    filter_ = "bicubic, sharpened" if size[0] > 32 else "lanczos"
    assert step == {"step": "resample", "filter": filter_, "from": [32, 32], "to": list(size)}


def test_nothing_to_do_is_no_step() -> None:
    image = disc()
    assert upscale.resample(image, (32, 32)) == (image, None)
    assert upscale.pad(image, (32, 32), "auto") == (image, None)
    assert upscale.lay_on(image, "transparent", "png") == (image, None)
    assert upscale.lay_on(image, "auto", "webp") == (image, None)


def test_another_aspect_is_contained() -> None:
    scaled, _ = upscale.resample(disc(), (90, 60))
    assert scaled.size == (60, 60)
    padded, step = upscale.pad(scaled, (90, 60), "auto")
    assert padded.size == (90, 60) and step == {"step": "pad", "from": [60, 60], "to": [90, 60]}
    assert np.asarray(padded)[:, :15, 3].max() == 0, "clear on the left"
    assert np.array_equal(np.asarray(padded)[:, 15:75], np.asarray(scaled))


def test_opaque_pictures_are_padded_with_the_background() -> None:
    padded, _ = upscale.pad(Image.new("RGB", (4, 4), "red"), (8, 4), "#00ff00")
    assert padded.getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize(
    ("background", "output_format", "corner"),
    [
        ("white", "png", (255, 255, 255)),
        ("black", "png", (0, 0, 0)),
        ("opaque", "png", (255, 255, 255)),
        ("#FFCC00", "webp", (255, 204, 0)),
        ("auto", "jpeg", (255, 255, 255)),
    ],
)
def test_backgrounds(background: str, output_format: str, corner: tuple[int, int, int]) -> None:
    laid, step = upscale.lay_on(disc(), background, output_format)
    assert laid.mode == "RGB" and laid.getpixel((0, 0)) == corner and laid.getpixel((16, 16)) == (255, 0, 0)
    assert step is not None and step["step"] == "background"


def test_a_background_that_cannot_be_laid_is_said() -> None:
    opaque = [Image.new("RGB", (4, 4))]
    assert upscale.unmet(opaque, ImageRequest(prompt="x", background="#ffcc00"))[0].field == "background"
    assert upscale.unmet(opaque, ImageRequest(prompt="x")) == []
    assert upscale.unmet([disc()], ImageRequest(prompt="x", background="#ffcc00")) == []
