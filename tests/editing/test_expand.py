"""Larger canvases: geometry, steps that see enough, and the picture's own pixels unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from editing.painters import anything
from PIL import Image

from imagewright import verbs
from imagewright.editing import expand, masks
from imagewright.editing.expand import Margins
from imagewright.errors import RequestError


def test_margins_in_pixels_and_percent() -> None:
    assert expand.margins((200, 100), left="10", up="50%") == Margins(10, 0, 50, 0)
    assert expand.zoom_out((100, 51), 1.5) == Margins(25, 25, 12, 13)
    assert expand.pan((100, 50), "up", "20%") == Margins(up=10, down=-10)
    assert expand.pan((100, 50), "left", "99") == Margins(left=99, right=-99)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: expand.margins((10, 10)),
        lambda: expand.margins((10, 10), left="-1"),
        lambda: expand.margins((10, 10), left="one"),
        lambda: expand.zoom_out((10, 10), 1),
        lambda: expand.zoom_out((10, 10), float("nan")),
        lambda: expand.zoom_out((1, 1), 1.2),
        lambda: expand.pan((10, 10), "north"),
        lambda: expand.pan((10, 10), "up", "100%"),
        lambda: expand.steps((10, 10), Margins(left=5000)),
        lambda: Margins(left=-10).around((10, 10)),
    ],
)
def test_what_cannot_be_is_refused(wrong: object) -> None:
    with pytest.raises(RequestError) as caught:
        wrong()  # type: ignore[operator]
    assert caught.value.fix


@pytest.mark.parametrize("seed", range(40))
def test_steps_add_up_and_each_sees_enough(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = tuple(int(side) for side in random.integers(1, 500, 2))
    wanted = Margins(*(int(side) for side in random.integers(0, 700, 4) * random.integers(0, 2, 4)))
    steps = expand.steps(size, wanted)
    assert np.array_equal(np.sum([step.sides for step in steps] or [(0, 0, 0, 0)], axis=0), wanted.sides)
    for step in steps:
        larger = step.around(size)
        assert all(new <= max(old + 1, old * (1 + expand.REACH)) for new, old in zip(larger, size, strict=True))
        size = larger


@pytest.mark.parametrize("seed", range(30))
def test_the_picture_stays_as_it_is_in_its_canvas(seed: int) -> None:
    random = np.random.default_rng(seed)
    picture = anything(random, most=90)
    left, right, up, down = (int(side) for side in random.integers(0, 120, 4) * random.integers(0, 2, 4))
    if not any((left, right, up, down)):
        left = 1
    result = verbs.expand(picture, "x", left=left, right=right, up=up, down=down, model="fake/painter", seed=seed)
    width, height = picture.size
    assert result[0].size == result.size == (width + left + right, height + up + down)
    kept = result[0].crop((left, up, left + width, up + height))
    assert np.array_equal(np.asarray(kept), np.asarray(masks.eight_bit(picture)))
    new = np.asarray(result[0].convert("RGB")).reshape(-1, 3)
    assert len(np.unique(new, axis=0)) > 1 and result.records[0]["changed_outside_mask"] == 0


@pytest.mark.parametrize("direction", expand.DIRECTIONS)
def test_panning_keeps_the_size_and_what_is_still_there(direction: str) -> None:
    picture = anything(np.random.default_rng(3), most=90, modes=("RGB",)).resize((60, 40))
    result = verbs.expand(picture, "x", pan=direction, amount="25%", model="fake/painter", seed=1)
    assert result[0].size == (60, 40)
    old, new = np.asarray(picture), np.asarray(result[0])
    far = 15 if direction in ("left", "right") else 10
    kept = {
        "left": (new[:, far:], old[:, :-far]),
        "right": (new[:, :-far], old[:, far:]),
        "up": (new[far:], old[:-far]),
        "down": (new[:-far], old[far:]),
    }
    assert np.array_equal(*kept[direction])


def test_zooming_out_further_than_a_model_sees_takes_steps() -> None:
    told: list[tuple[int, int]] = []
    picture = Image.new("RGB", (40, 40))
    result = verbs.expand(
        picture, "x", zoom_out=4, model="fake/painter", seed=1, n=2, progress=lambda *now: told.append(now)
    )
    assert [image.size for image in result] == [(160, 160)] * 2
    assert [record["strips"] for record in result.records] == [4, 4]
    assert [record["seed"] for record in result.records] == [1, 2]
    assert told == sorted(told) and told[-1][0] == told[-1][1]


def test_one_way_at_a_time() -> None:
    with pytest.raises(RequestError, match="one way"):
        verbs.expand(Image.new("RGB", (8, 8)), "x", left=4, zoom_out=2, model="fake/painter")


def test_without_words_the_picture_goes_on_by_itself() -> None:
    picture = Image.new("RGB", (60, 40), "#2266aa")
    result = verbs.expand(picture, right=30, up="50%")
    assert result[0].size == (90, 60) and result.records[0]["changed_outside_mask"] == 0
    assert (np.asarray(result[0]) == (0x22, 0x66, 0xAA)).all(), "an even ground goes on evenly"
    assert result.model == "" and [step["verb"] for step in result.records[0]["edits"]["steps"]] == ["expand"]
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8))
    moved = verbs.expand(noisy, pan="left", amount="25%")[0]
    assert moved.size == noisy.size
    assert np.array_equal(np.asarray(moved)[:, 15:], np.asarray(noisy)[:, :45])


def test_a_sticker_that_touches_its_edge_gets_no_frame() -> None:
    sticker = Image.new("RGBA", (64, 64), (250, 10, 10, 0))
    sticker.paste((255, 160, 0, 255), (0, 20, 64, 40))
    assert expand.even_edge(sticker) == (0, 0, 0, 0)
    larger = np.asarray(verbs.expand(sticker, zoom_out=1.5)[0])
    assert larger.shape == (96, 96, 4) and larger[:16].max() == larger[:, :16].max() == 0
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8))
    assert expand.even_edge(noise) is None
