"""Every family that is built here, with every verb that it knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagewright.engines.pretrained import PretrainedEngine
from imagewright.errors import UnsupportedError
from imagewright.request import ImageRequest, ImageResult
from imagewright.watch import Watch

Get = Callable[[str], Path]
FAMILIES = ("sd", "sdxl", "sd3", "flux")
SIZE = {"flux": (96, 96)}


def make(engine: PretrainedEngine, folder: Path, prompt: str = "a red fox", **fields: Any) -> ImageResult:
    """Two steps at the tiny models' own size."""
    given = {"num_inference_steps": 2, "seed": 3, "model": str(folder), **fields}
    return engine.generate(ImageRequest(prompt=prompt, **given), fields.pop("watch", Watch()))


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image.convert("RGB")).astype(int)


def picture(side: int = 64, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (side // 8, side // 8, 3), np.uint8)
    return Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)


def right_half(side: int = 64) -> Image.Image:
    """A mask that lets the right half change."""
    mask = Image.new("RGBA", (side, side), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (side // 2, 0, side, side))
    return mask


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_is_one_picture_however_many_are_asked_for(tiny: Get, shared: PretrainedEngine, family: str) -> None:
    size = SIZE.get(family, (64, 64))
    three = make(shared, tiny(family), n=3, size=size)
    alone = make(shared, tiny(family), seed=5, size=size)
    assert [record["seed"] for record in three.records] == [3, 4, 5]
    assert np.array_equal(pixels(three[2]), pixels(alone[0]))
    assert not np.array_equal(pixels(three[0]), pixels(three[1]))
    assert three[0].size == size and pixels(three[0]).std() > 1


@pytest.mark.parametrize("family", ["sd3", "flux"])  # for the others see test_words
def test_another_prompt_is_another_picture(tiny: Get, shared: PretrainedEngine, family: str) -> None:
    size = SIZE.get(family, (64, 64))
    one, other = (make(shared, tiny(family), prompt, size=size) for prompt in ("a red fox", "a wide blue sea"))
    assert not np.array_equal(pixels(one[0]), pixels(other[0]))


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_says_how_much_of_a_picture_changes(tiny: Get, shared: PretrainedEngine, family: str) -> None:
    source = picture()
    made = [make(shared, tiny(family), image=source, strength=s, num_inference_steps=4)[0] for s in (0.25, 1.0)]
    gaps = [np.abs(pixels(image) - pixels(source.resize(image.size))).mean() for image in made]
    assert not np.array_equal(pixels(made[0]), pixels(made[1]))
    assert all(image.size == (64, 64) for image in made) and min(gaps) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_keeps_what_it_covers(tiny: Get, shared: PretrainedEngine, family: str) -> None:
    source = picture()
    made = make(shared, tiny(family), image=source, mask=right_half())
    left, right = pixels(made[0])[:, :32], pixels(made[0])[:, 32:]
    assert np.array_equal(left, pixels(source)[:, :32])
    assert not np.array_equal(right, pixels(source)[:, 32:])
    assert made.records[0]["changed_outside_mask"] == 0


def test_a_picture_is_extended_through_its_mask(tiny: Get, shared: PretrainedEngine) -> None:
    canvas, mask = Image.new("RGB", (96, 64)), Image.new("RGBA", (96, 64), (0, 0, 0, 0))
    canvas.paste(picture(), (16, 0))
    mask.paste((0, 0, 0, 255), (16, 0, 80, 64))
    made = make(shared, tiny("sd"), image=canvas, mask=mask)
    assert made[0].size == (96, 64)
    assert np.array_equal(pixels(made[0])[:, 16:80], pixels(picture()))
    assert pixels(made[0])[:, :16].std() > 0


def test_an_editor_follows_instructions_and_nothing_else(tiny: Get, shared: PretrainedEngine) -> None:
    source = picture()
    info = shared.find(str(tiny("pix2pix")))
    assert "instruction" in info.capabilities.features and not info.capabilities.mask
    made = make(shared, tiny("pix2pix"), "make it blue", image=source, instruction=True)
    assert made[0].size == (64, 64) and not np.array_equal(pixels(made[0]), pixels(source))
    with pytest.raises(UnsupportedError, match="what to change"):
        make(shared, tiny("pix2pix"), image=source)
    with pytest.raises(UnsupportedError, match="words alone"):
        make(shared, tiny("pix2pix"))
    with pytest.raises(UnsupportedError, match="instruction"):
        make(shared, tiny("sd"), image=source, instruction=True)


def test_kontext_draws_and_edits(tiny: Get, shared: PretrainedEngine) -> None:
    folder = tiny("kontext")
    assert make(shared, folder, size=(96, 96))[0].size == (96, 96)
    made = make(shared, folder, "make it blue", image=picture(), instruction=True, size=(96, 96))
    assert made[0].size == (96, 96)


def test_a_model_made_to_fill_also_draws_with_all_of_the_picture_as_the_hole(
    tiny: Get, shared: PretrainedEngine
) -> None:
    folder = tiny("inpainting")
    assert make(shared, folder, image=picture(), mask=right_half()).records[0]["changed_outside_mask"] == 0
    assert pixels(make(shared, folder)[0]).std() > 1


def test_a_pipeline_that_nothing_here_names_draws_by_its_own_signature(tiny: Get, shared: PretrainedEngine) -> None:
    told: list[tuple[int, int]] = []
    folder, watch = str(tiny("pixart")), Watch(lambda done, total: told.append((done, total)))
    request = ImageRequest(prompt="a red fox", model=folder, seed=3, num_inference_steps=3, negative_prompt="grey")
    made = shared.generate(request, watch)
    assert made[0].size == (64, 64) and pixels(made[0]).std() > 1
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_size_that_the_model_was_not_trained_at_is_resampled_and_said(tiny: Get, shared: PretrainedEngine) -> None:
    made = make(shared, tiny("sd"), size=(256, 128))
    assert made.size == (256, 128) and made[0].size == (88, 48)
    assert [a.field for a in made.adjustments] == ["size"]
    assert make(shared, tiny("sd"), size=(72, 56))[0].size == (72, 56)
