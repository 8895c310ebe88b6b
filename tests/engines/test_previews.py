"""What a picture looks like on the way: real, evenly spaced, as finished as the picture, and only if wanted."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagewright.engines.embedded import EmbeddedEngine
from imagewright.request import ImageRequest, ImageResult
from imagewright.watch import Watch
from imagewright.workshop import Workshop

WORKSHOP = Workshop()
LOOKS = {"stickers-vae": 1}  # it has two levels, and what the second leaves is the picture
MODELS = [model.name for model in EmbeddedEngine().models()]


def made(previews: int = 3, **fields: Any) -> tuple[ImageResult, list[Image.Image]]:
    seen: dict[int, Image.Image] = {}

    def preview(index: int, image: Image.Image) -> None:
        assert index not in seen
        seen[index] = image

    request = ImageRequest(**{"prompt": "a red ball", "seed": 4, "num_inference_steps": 8, **fields})
    [result] = WORKSHOP.make_many([request], [Watch(preview=preview, previews=previews)])
    assert isinstance(result, ImageResult), result
    assert list(seen) == list(range(len(seen)))
    return result, list(seen.values())


def off(a: Image.Image, b: Image.Image) -> float:
    """Mean difference of premultiplied pixels."""
    first, second = (np.asarray(x.convert("RGBA").convert("RGBa"), float) for x in (a, b))
    return float(np.abs(first - second).mean())


@pytest.mark.parametrize("name", MODELS)
def test_previews_come_to_be_the_picture(name: str) -> None:
    result, seen = made(model=name)
    assert len(seen) == LOOKS.get(name, 3)
    assert {image.size for image in seen} == {result[0].size} and {image.mode for image in seen} == {result[0].mode}
    far = [off(image, result[0]) for image in seen]
    assert far == sorted(set(far), reverse=True) and far[-1] > 0
    assert all(off(first, second) > 0 for first, second in pairwise(seen))
    assert result[0].tobytes() == made(0, model=name)[0][0].tobytes()  # looking on changes nothing


def test_they_are_of_the_first_picture_of_a_request() -> None:
    result, seen = made(n=3)
    assert len(seen) == 3
    assert off(seen[2], result[0]) < min(off(seen[2], other) for other in result.images[1:])


def test_there_are_no_more_than_steps_before_the_last() -> None:
    assert [len(made(3, num_inference_steps=steps)[1]) for steps in (1, 2, 3, 4, 9)] == [0, 1, 2, 3, 3]
    assert len(made(1)[1]) == 1 and made(0)[1] == []
    assert len(made(3, num_inference_steps=8, stop=0.25)[1]) == 1


def test_they_have_the_size_and_background_of_the_picture() -> None:
    result, seen = made(size=(90, 60), background="#00ff00")
    assert {image.size for image in (*seen, result[0])} == {(90, 60)}
    assert {image.getpixel((0, 0)) for image in (*seen, result[0])} == {(0, 255, 0)}


def test_they_keep_what_the_mask_keeps() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    mask = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 35, 50))
    for name in ("stickers-diffusion", "stickers-autoregressive"):
        result, seen = made(model=name, image=picture, mask=mask)
        for image in (*seen, result[0]):
            assert np.array_equal(np.asarray(image.convert("RGB"))[:, 35:], np.asarray(picture)[:, 35:])
        assert off(seen[0], seen[1]) > 0


@given(st.integers(0, 8), st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_they_are_evenly_spaced_and_never_the_end(previews: int, advances: list[int]) -> None:
    watch, total = Watch(preview=lambda index, image: None, previews=previews), sum(advances)
    before, due = 0, []
    for advance in advances:
        if (index := watch.due(before, before + advance, total)) is not None:
            due.append((index, before + advance))
        before += advance
    assert [index for index, _ in due] == sorted({index for index, _ in due}) and len(due) <= previews
    assert all(done < total for _, done in due)
    if set(advances) == {1}:
        assert len(due) == min(previews, total - 1)
        gaps = np.diff([0, *(done for _, done in due), total])
        assert gaps.max() - gaps.min() <= 1


def test_nobody_computes_what_nobody_sees() -> None:
    def never() -> Any:
        raise AssertionError

    Watch(previews=3).seen("step", 1, 4, never)
    Watch(preview=lambda index, image: None, previews=0).seen("step", 1, 4, never)
    with pytest.raises(AssertionError):
        Watch(preview=lambda index, image: None, previews=3).seen("step", 1, 4, never)
