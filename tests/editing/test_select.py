"""Things found by words. Which words fit is the judge's matter: here it is one that knows colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from editing.scenes import alpha, over
from PIL import Image, ImageDraw

from imagewright.editing import masks
from imagewright.editing import select as selecting
from imagewright.errors import PromptError, RequestError
from imagewright.pictures import open_picture

COLOURS = {"a red disc": (220, 30, 30), "a blue box": (30, 60, 220), "a white cat": (255, 255, 255)}


class ColourJudge:
    """A picture fits words by how much of what is visible in it has their colour."""

    def look(self, pictures: list[Image.Image]) -> np.ndarray:
        rows = []
        for picture in pictures:
            pixels = np.asarray(picture).reshape(-1, 4).astype(float)
            seen = pixels[pixels[:, 3] > 128][:, :3]
            rows.append([12 * (np.abs(seen - c).max(1) < 60).mean() - 6 for c in COLOURS.values()])
        return np.array(rows)

    def read(self, prompts: list[str]) -> np.ndarray:
        return np.array([[float(prompt == name) for name in COLOURS] for prompt in prompts])

    def probability(self, products: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-products))


def scene(side: int, touching: bool = False) -> tuple[Image.Image, Image.Image, Image.Image]:
    """A picture of a disc and a box, and each alone."""
    scale = side / 100
    disc, box = Image.new("RGBA", (side, side)), Image.new("RGBA", (side, side))
    ImageDraw.Draw(disc).ellipse([8 * scale, 30 * scale, 48 * scale, 70 * scale], fill=COLOURS["a red disc"])
    left = 44 if touching else 55
    ImageDraw.Draw(box).rectangle([left * scale, 35 * scale, 92 * scale, 65 * scale], fill=COLOURS["a blue box"])
    return Image.alpha_composite(disc, box), disc, box


def iou(found: Image.Image, truth: np.ndarray) -> float:
    one, other = np.asarray(found) >= 128, truth > 0.5
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("side", [64, 400])
@pytest.mark.parametrize("ground", [None, "#f0d040"])
@pytest.mark.parametrize("touching", [False, True])
def test_each_of_two_things_is_found(side: int, ground: str | None, touching: bool) -> None:
    picture, disc, box = scene(side, touching)
    shown = over(picture, ground) if ground else picture
    visible = alpha(disc) * (1 - alpha(box))
    assert iou(selecting.select(shown, "the red disc", ColourJudge()).area, visible) > 0.9
    found = selecting.select(shown, "the  blue box", ColourJudge())
    assert iou(found.area, alpha(box)) > 0.93
    assert found.score > 0.9
    inside = masks.bounds(np.asarray(found.area) >= 128)
    assert found.box == inside
    assert masks.hole(found.mask).sum() == (np.asarray(found.area) >= 128).sum()


def test_what_is_not_there_is_an_error_with_the_score() -> None:
    picture, *_ = scene(64)
    with pytest.raises(RequestError, match=r"'a white cat' was not found: .* fits with 0\.00"):
        selecting.select(picture, "a white cat", ColourJudge())


def test_no_words_and_nothing_to_see_are_errors() -> None:
    with pytest.raises(PromptError, match="No words"):
        selecting.select(scene(64)[0], "  ", ColourJudge())
    with pytest.raises(RequestError, match="nothing in this picture"):
        selecting.select(Image.new("RGBA", (50, 50)), "a red disc", ColourJudge())


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (3000, 2)])
def test_odd_sizes_do_not_break_it(size: tuple[int, int]) -> None:
    picture = Image.new("RGBA", size, COLOURS["a red disc"])
    found = selecting.select(picture, "a red disc", ColourJudge())
    assert found.area.size == size and found.box == (0, 0, *size)


def test_a_busy_picture_is_cut_into_a_bounded_number_of_candidates() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 4), np.uint8)
    noise[..., 3] = 255
    found = selecting.candidates(noise)
    assert 1 <= len(found) <= 3 * selecting.MOST
    assert all(mask.any() for mask in found)


def test_the_shipped_judge_finds_what_the_shipped_names_say() -> None:
    picture, disc, _ = scene(96)
    found = selecting.select(picture, "the red circle")
    assert iou(found.area, alpha(disc)) > 0.9


def test_words_become_captions() -> None:
    assert selecting.phrase("the hat") == "a hat"
    assert selecting.phrase("The  orange hat") == "an orange hat"
    assert selecting.phrase("two cats") == "two cats"
    assert selecting.phrase("the") == "the"


def test_the_mask_file_is_one_that_edits_take(tmp_path: Path) -> None:
    picture, _, box = scene(64)
    masks.save(selecting.select(picture, "the blue box", ColourJudge()).mask, tmp_path / "m.png")
    mask, said = masks.fitted(open_picture(tmp_path / "m.png"), picture.size)
    assert not said and iou(Image.fromarray(masks.hole(mask).astype(np.uint8) * 255), alpha(box)) > 0.93
