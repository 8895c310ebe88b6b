"""Backgrounds taken away, against the alpha that the picture was drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from editing.scenes import alpha, over, ring, sloped
from PIL import Image

from imagewright.editing import cutout
from imagewright.engines.catalog import Catalog
from imagewright.engines.engine import Engine, ModelInfo
from imagewright.errors import RequestError
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.watch import Watch
from imagewright.workshop import Workshop


@pytest.mark.parametrize("ground", ["#ffffff", "#20a040", "#000000"])
@pytest.mark.parametrize("side", [64, 300, 1000])
def test_alpha_and_colour_come_back(ground: str, side: int) -> None:
    truth = ring(side)
    found = cutout.remove_background(over(truth, ground))
    assert not found.already and found.border == 1
    assert np.abs(alpha(found.image) - alpha(truth)).mean() < 0.01  # the hole of the ring too
    rim = (alpha(found.image) > 0.05) & (alpha(found.image) < 0.95)
    assert rim.any()
    rgb = np.asarray(found.image)[rim][:, :3].astype(int)
    assert np.abs(rgb - [0xC0, 0x20, 0x20]).mean() < 12  # nothing of the old background is left in the edge


def test_a_sky_with_noise_is_a_background() -> None:
    truth = ring(128)
    found = cutout.remove_background(over(truth, sloped(128, noise=3)))
    assert np.abs(alpha(found.image) - alpha(truth)).mean() < 0.02


def test_what_touches_the_border_stays() -> None:
    truth = Image.new("RGBA", (80, 80))
    truth.paste("#3050d0", (30, 20, 80, 60))
    found = cutout.remove_background(over(truth, "#f0e0c0"))
    assert np.abs(alpha(found.image) - alpha(truth)).mean() < 0.02
    assert found.border < 1


def test_a_transparent_picture_comes_back_as_it_is() -> None:
    truth = ring()
    found = cutout.remove_background(truth)
    assert found.already and np.array_equal(np.asarray(found.image), np.asarray(truth))
    assert "already" in str(found.step["background"])


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (64, 64)])
def test_only_background_is_an_error(size: tuple[int, int]) -> None:
    with pytest.raises(RequestError, match="only background"):
        cutout.remove_background(Image.new("RGB", size, "#80c0ff"))


def test_no_plain_border_is_an_error_and_a_step_without_effect() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    with pytest.raises(RequestError, match="no thing before a plain background"):
        cutout.remove_background(noise)
    assert cutout.cut_out(noise) == (noise, None)


class Painter(Engine):
    """A model that paints its own background."""

    name: ClassVar[str] = "painter"
    picture: ClassVar[Image.Image]

    def models(self) -> Sequence[ModelInfo]:
        can = Capabilities(size=(64, 64))
        return [ModelInfo(name="p", engine="painter", technique="t", summary="", licence="", capabilities=can)]

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        return [self.picture.copy() for _ in range(request.n)], []


class OnlyPainter(Catalog):
    """Finds nothing else."""

    def find(self, name: str | None, technique: str | None = None) -> tuple[Engine, str | None]:
        return Painter(), None


def made(picture: Image.Image) -> tuple[Image.Image, dict, list[Adjustment]]:
    Painter.picture = picture
    result = Workshop(OnlyPainter()).make(ImageRequest(prompt="x", background="transparent", size=(64, 64)))
    return result[0], dict(result.records[0]), list(result.adjustments)


def test_a_model_without_transparency_gets_its_background_cut_out(tmp_path: Path) -> None:
    image, record, adjustments = made(over(ring(64), "#40a0f0"))
    assert np.abs(alpha(image) - alpha(ring(64))).mean() < 0.01
    assert record["refine"][0]["step"] == "remove background" and record["background"] == "transparent"
    assert [one.used for one in adjustments if one.field == "background"] == ["cut out"]


def test_where_it_cannot_be_cut_out_that_is_said() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    image, record, adjustments = made(noise)
    assert image.mode == "RGB" and record["refine"] == []
    assert [one.used for one in adjustments if one.field == "background"] == ["opaque"]
