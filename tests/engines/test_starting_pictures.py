"""Pictures to start from, through the engines: the shipped models, and a small one of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests_support import discs_source

from imagewright.engines.embedded import EmbeddedEngine
from imagewright.engines.engine import BLENDING, STRENGTH, source_of, strength_of
from imagewright.engines.trained import TrainedEngine
from imagewright.errors import UnsupportedError
from imagewright.models.diffusion import Diffusion, DiffusionConfig
from imagewright.models.dit import DiTConfig
from imagewright.models.encoders import PixelsConfig
from imagewright.models.text import TextConfig
from imagewright.request import ImageRequest
from imagewright.source import to_picture
from imagewright.training.config import TrainConfig
from imagewright.training.loop import train
from imagewright.watch import Watch

EMBEDDED = EmbeddedEngine()
CAN = {model.name: model.capabilities for model in EMBEDDED.models()}
FILLING = [name for name, can in CAN.items() if can.mask]


def disc(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A disc on nothing."""
    y, x = np.mgrid[: size[1], : size[0]]
    inside = (x / size[0] - 0.5) ** 2 + (y / size[1] - 0.5) ** 2 < 0.12
    return Image.fromarray(np.dstack([np.where(inside, c, 0) for c in (*colour, 255)]).astype(np.uint8), "RGBA")


def hole(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """The right half may change."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (size[0] // 2, 0, *size))
    return mask


def off(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of premultiplied pixels."""
    first, second = (np.asarray(x.convert("RGBA").convert("RGBa"), float) for x in (a, b))
    return float(np.abs(first - second).mean())


def test_what_ships_says_what_it_can_do() -> None:
    assert FILLING == ["stickers-diffusion", "stickers-autoregressive"]
    assert {"images", "tile"} <= set(CAN["stickers-diffusion"].features)
    for name in ("stickers-gan", "stickers-vae"):
        assert not CAN[name].image and not CAN[name].mask
        with pytest.raises(UnsupportedError, match="picture"):
            EMBEDDED.generate(ImageRequest(prompt="a disc", model=name, image=disc((255, 0, 0))))


@pytest.mark.parametrize("name", FILLING)
def test_a_fill_leaves_the_rest_and_follows_its_seed(name: str) -> None:
    picture = disc((255, 0, 0), (100, 80))
    request = ImageRequest(
        prompt="a blue ball", model=name, image=picture, mask=hole((100, 80)), seed=5, n=2, num_inference_steps=3
    )
    both = EMBEDDED.generate(request)
    alone = EMBEDDED.generate(replace(request, seed=6, n=1))
    assert both[1].tobytes() == alone[0].tobytes() != both[0].tobytes()
    for made in both:
        assert made.size == (100, 80)
        assert np.array_equal(np.asarray(made)[:, :50], np.asarray(picture)[:, :50])
        assert not np.array_equal(np.asarray(made)[:, 50:], np.asarray(picture)[:, 50:])


@pytest.mark.parametrize("name", FILLING)
def test_the_weaker_the_change_the_nearer_the_picture(name: str) -> None:
    picture = disc((255, 0, 0))
    request = ImageRequest(prompt="a green tree", model=name, image=picture, seed=1, num_inference_steps=4)
    made = [EMBEDDED.generate(replace(request, strength=strength))[0] for strength in (0.0, 1.0)]
    assert off(made[0], picture) < 12 < off(made[1], picture)
    default = EMBEDDED.generate(request)
    assert default.records[0]["strength"] == STRENGTH


def test_pictures_blend_at_any_size() -> None:
    request = ImageRequest(
        prompt="a ball", model="stickers-diffusion", images=(disc((255, 0, 0), (50, 90)), disc((0, 0, 255))), seed=1,
        num_inference_steps=4,
    )  # fmt: skip
    made = EMBEDDED.generate(replace(request, strength=0.3))[0].resize((64, 64))
    red, _, blue, alpha = (float(np.asarray(channel)[24:40, 24:40].mean()) for channel in made.split())
    assert alpha > 128 and 40 < red < 215 and 40 < blue < 215
    assert strength_of(request) == BLENDING
    source = source_of(request, (64, 64))
    assert source is not None and source.pixels.shape == (2, 4, 64, 64)
    assert (source.pixels[0, 3, :, :14] == -1).all()  # the narrow one stands in the middle
    with pytest.raises(UnsupportedError, match="whole pictures"):
        source_of(replace(request, image=disc((0, 0, 0)), instruction=True), (64, 64))


def test_a_tile_has_no_border() -> None:
    request = ImageRequest(prompt="orange and purple pattern on a green background", seed=3, num_inference_steps=6)
    steps = []
    for tile in (False, True):
        pixels = np.asarray(EMBEDDED.generate(replace(request, tile=tile))[0].convert("RGBA").convert("RGBa"), float)
        steps.append(np.abs(pixels[:, 0] - pixels[:, -1]).mean() + np.abs(pixels[0] - pixels[-1]).mean())
    assert steps[1] < 0.6 * steps[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sources") / "run"
    torch.manual_seed(0)
    text = TextConfig(width=32, depth=1, heads=2)
    model = Diffusion(DiffusionConfig(PixelsConfig(size=16), DiTConfig(width=32, depth=1, heads=2), text, steps=2))
    train(model, discs_source(16), TrainConfig(batch=4, steps=1, precision="fp32"), out)
    return out


def test_a_trained_model_takes_pictures_as_it_says(run: Path) -> None:
    engine = TrainedEngine()
    can = engine.find(str(run)).capabilities
    assert can.image and can.mask and {"images", "tile"} <= set(can.features) and "instruction" not in can.features
    picture = disc((255, 0, 0), (16, 16))
    request = ImageRequest(prompt="a disc", model=str(run), image=picture, seed=1)
    same = engine.generate(replace(request, strength=0.0))[0]
    assert off(same, picture) < 1
    filled = np.asarray(engine.generate(replace(request, mask=hole((16, 16))))[0])
    assert np.array_equal(filled[:, :8], np.asarray(picture)[:, :8])
    assert not np.array_equal(filled, np.asarray(picture))


def test_a_trained_model_shows_what_it_has_on_the_way(run: Path) -> None:
    seen: list[bytes] = []
    steps: list[bytes] = []

    def trace(kind: str, index: int, array: NDArray[Any], facts: Mapping[str, Any]) -> None:
        if kind == "step":
            steps.append(to_picture(array[None]).tobytes())

    watch = Watch(trace=trace, preview=lambda index, image: seen.append(image.tobytes()), previews=3)
    request = ImageRequest(prompt="a disc", model=str(run), seed=1, num_inference_steps=4)
    TrainedEngine().generate(request, watch)
    assert seen == steps[:3] and len(seen[0]) == 16 * 16 * 4
