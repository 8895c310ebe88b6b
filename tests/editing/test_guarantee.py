"""What the mask keeps stays, byte for byte: whatever the picture, the mask, the feather and the engine."""

from __future__ import annotations

import numpy as np
import pytest
from editing.painters import FIXED, FREE, WIDE, Noise, any_hole, anything
from PIL import Image

from imagewright.editing import masks, place
from imagewright.editing.matching import matched
from imagewright.engines.catalog import Catalog
from imagewright.errors import ModelError, RequestError
from imagewright.request import Capabilities, ImageRequest, ImageResult
from imagewright.workshop import Workshop

EACH = 50  # random masks in one test
CAN = {"fixed": FIXED, "free": FREE, "wide": WIDE}


def changed(before: Image.Image, after: Image.Image, hole: np.ndarray) -> tuple[int, int]:
    """Pixels that differ outside and inside the hole, as 8-bit pixels."""
    old, new = np.asarray(masks.eight_bit(before)), np.asarray(after)
    assert old.shape == new.shape and new.dtype == np.uint8
    differs = (old != new).any(axis=-1)
    return int((differs & ~hole).sum()), int((differs & hole).sum())


@pytest.mark.parametrize("kind", CAN)
@pytest.mark.parametrize("seed", range(6))
def test_nothing_outside_the_mask_changes(kind: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    engine = Noise(CAN[kind])
    for _ in range(EACH):
        picture = anything(random, most=200)
        hole = any_hole(random, picture.size)
        feather = int(random.integers(0, 40)) if random.integers(2) else 0
        request = ImageRequest(
            prompt="x", image=picture, mask=masks.mask_of(hole), feather=feather, seed=int(random.integers(2**32))
        )
        result = engine.generate(request)
        outside, inside = changed(picture, result[0], hole)
        assert outside == 0 == result.records[0]["changed_outside_mask"], (picture, feather)
        assert inside > 0 or hole.sum() < 10, "and what may change does"
        assert result.size == result[0].size == picture.size


@pytest.mark.parametrize("seed", range(2))
def test_nothing_changes_outside_the_mask_on_its_way_through_the_workshop(seed: int) -> None:
    random = np.random.default_rng([1, seed])
    workshop = Workshop()
    for _ in range(EACH):
        picture = anything(random, most=120)
        hole = any_hole(random, picture.size)
        background = ("auto", "white", "transparent", "#ff0000")[random.integers(4)]
        request = ImageRequest(
            prompt="x",
            model="fake/painter",
            image=picture,
            mask=masks.mask_of(hole),
            background=background,
            size=(32, 32) if random.integers(2) else None,
        )
        result = workshop.make(request)
        assert changed(picture, result[0], hole)[0] == 0
        said = {adjustment.field for adjustment in result.adjustments}
        assert ("background" in said) == (background != "auto")
        assert ("size" in said) == (request.size not in (None, picture.size))


@pytest.mark.parametrize("size", [(4096, 4096), (4096, 3), (1, 4096)])
def test_large_pictures(size: tuple[int, int]) -> None:
    random = np.random.default_rng(size)
    picture = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8))
    left, top = size[0] // 3, size[1] // 3
    hole = np.zeros((size[1], size[0]), bool)
    hole[top : top + 300, left : left + 200] = True
    request = ImageRequest(prompt="x", image=picture, mask=masks.mask_of(hole), feather=50, seed=1)
    outside, inside = changed(picture, Noise().generate(request)[0], hole)
    assert outside == 0 and inside > 0


def models_with_masks() -> list[str]:
    """Every model here that takes masks: one that is added joins by itself."""
    found = [info for listing in Catalog().listings() for info in listing.models if info.capabilities.mask]
    return [f"{info.engine}/{info.name}" for info in found]


@pytest.mark.parametrize("model", models_with_masks())
def test_every_model_keeps_what_the_mask_keeps(model: str) -> None:
    random = np.random.default_rng(7)
    workshop = Workshop()
    for _ in range(4):
        picture = anything(random, most=150, modes=("RGB", "RGBA"))
        hole = any_hole(random, picture.size)
        request = ImageRequest(
            prompt="a red apple", model=model, image=picture, mask=masks.mask_of(hole), num_inference_steps=1, feather=3
        )
        result = workshop.make(request)
        outside, inside = changed(picture, result[0], hole)
        assert outside == 0 and inside > 0


def test_shipped_models_are_among_them() -> None:
    assert "embedded/stickers-diffusion" in models_with_masks()


def test_a_result_that_breaks_the_promise_is_not_given_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(old: np.ndarray, new: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return new[..., : old.shape[-1]]

    monkeypatch.setattr(place, "_laid", careless)
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(ModelError, match="outside the mask"):
        Noise().generate(ImageRequest(prompt="x", image=picture, mask=masks.region("0,0,4,4", (8, 8))))


def fill(picture: Image.Image, region: str, can: Capabilities = FIXED, **fields: object) -> tuple[ImageResult, Noise]:
    engine = Noise(can)
    asked = {"prompt": "x", "seed": 1, "mask": masks.region(region, picture.size), **fields}
    return engine.generate(ImageRequest(image=picture, **asked)), engine  # type: ignore[arg-type]


def test_feather_softens_inwards() -> None:
    hole = masks.hole(masks.region("16,16,32,32", (64, 64)))
    weights = place._weights(hole, 4)
    assert np.allclose(weights[32, 15:22], [0, 0.2, 0.4, 0.6, 0.8, 1, 1])
    assert np.array_equal(weights > 0, hole) and np.array_equal(weights, weights.T)
    picture = Image.new("RGB", (64, 64))
    hard, soft = (np.asarray(fill(picture, "16,16,32,32", feather=feather)[0][0]) for feather in (0, 4))
    assert np.array_equal(hard[21:43, 21:43], soft[21:43, 21:43]), "the middle is all new"
    assert soft[16:48, 16].sum() < hard[16:48, 16].sum()


@pytest.mark.parametrize("feather", [3, 40, 200])
def test_a_deep_feather_is_measured_about_as_a_shallow_one(feather: int) -> None:
    hole = masks.hole(masks.region("100,0,900,1000", (1000, 1000)))
    weights = place._weights(hole, feather)
    assert np.array_equal(weights > 0, hole) and weights[:, -1].min() == 1
    exact = np.minimum(1, np.arange(1, 901) / (feather + 1))
    assert np.abs(weights[500, 100:] - exact).max() < 0.1


def test_the_model_s_error_beside_the_hole_is_taken_off_inside() -> None:
    """It drew everything 20 too dark, and something new in the middle: that keeps its own colour."""
    old = np.full((60, 60, 3), (180, 90, 40), np.uint8)
    new = np.concatenate([old - 20, np.full((60, 60, 1), 255, np.uint8)], axis=-1)
    new[28:32, 28:32, :3] = (0, 0, 255)
    hole = masks.hole(masks.region("10,10,40,40", (60, 60)))
    found = matched(new, old, hole, pixel=1)
    assert np.array_equal(found[~hole], new[~hole])
    assert np.abs(found[10, 10:50, :3].astype(int) - old[0, 0]).max() <= 2
    assert np.array_equal(found[28:32, 28:32], new[28:32, 28:32]), "beyond the reach of the correction"


def test_a_picture_without_surroundings_is_taken_as_drawn() -> None:
    new = np.random.default_rng(1).integers(0, 256, (8, 8, 4), np.uint8)
    assert np.array_equal(matched(new, new[..., :3], np.ones((8, 8), bool), pixel=1), new)


def test_a_feather_that_would_hide_the_edit_is_cut() -> None:
    result, _ = fill(Image.new("RGB", (64, 64)), "16,16,9,40", feather=30)
    (said,) = result.adjustments
    assert (said.field, said.requested, said.used) == ("feather", 30, 4)
    assert result.records[0]["feather"] == 4


def test_no_seam_at_the_picture_s_own_edge() -> None:
    full, _ = fill(Image.new("RGB", (64, 64)), "0,0,64,32")
    soft, _ = fill(Image.new("RGB", (64, 64)), "0,0,64,32", feather=8)
    assert np.array_equal(np.asarray(full[0])[:22], np.asarray(soft[0])[:22])


def test_a_transparent_patch_shows_the_surroundings_on_an_opaque_picture() -> None:
    old = np.full((32, 32, 3), (200, 30, 40), np.uint8)
    weights = np.zeros((32, 32), np.float32)
    weights[8:24, 8:24] = 1
    laid = place._laid(old, np.zeros((32, 32, 4), np.uint8), weights)
    assert np.array_equal(laid, old)


def test_a_transparent_picture_keeps_its_alpha() -> None:
    picture = Image.new("RGBA", (32, 32), (10, 20, 30, 0))
    result, _ = fill(picture, "0,0,8,8")
    assert result[0].mode == "RGBA" and result[0].getpixel((20, 20)) == (10, 20, 30, 0), "hidden colours too"


@pytest.mark.parametrize(
    ("size", "region", "box"),
    [
        ((100, 100), "40,40,4,4", (34, 34, 50, 50)),  # the native size around a small hole
        ((100, 100), "0,0,4,4", (0, 0, 16, 16)),  # inside the picture
        ((100, 100), "30,30,40,40", (20, 20, 80, 80)),  # half more than a large hole
        ((8, 8), "0,0,2,2", (0, 0, 8, 8)),  # a small picture as a whole
        ((100, 20), "20,0,60,20", (12, -28, 88, 48)),  # over the edges where the aspect wants it
        ((64, 64), "0,0,64,64", (0, 0, 64, 64)),
    ],
)
def test_the_model_sees_what_is_around_the_hole(
    size: tuple[int, int], region: str, box: tuple[int, int, int, int]
) -> None:
    hole = masks.hole(masks.region(region, size))
    found, drawn = place.frame(hole, FIXED)
    assert drawn == (16, 16)
    assert np.abs(np.subtract(found, box)).max() <= 2, found


def test_models_of_any_size_draw_the_part_as_it_is() -> None:
    picture = Image.new("RGB", (200, 200))
    result, engine = fill(picture, "80,80,10,10", FREE)
    (seen,) = engine.seen
    assert seen.size == seen.image.size == seen.mask.size == (64, 64), "a part of native size, not resampled"  # type: ignore[union-attr]
    result, engine = fill(picture, "0,80,200,20", FREE)
    assert engine.seen[0].size == (112, 40) and result[0].size == (200, 200)


def test_what_the_model_gets_is_the_cut_and_its_mask() -> None:
    values = np.zeros((100, 100, 3), np.uint8)
    values[40:44, 40:44] = 255
    _, engine = fill(Image.fromarray(values), "40,40,4,4")
    (seen,) = engine.seen
    assert seen.image is not None and seen.mask is not None
    white = np.asarray(seen.image)[..., 0] == 255
    assert np.array_equal(white, np.asarray(seen.mask.getchannel("A")) == 0) and white.sum() == 16


def test_a_hole_smaller_than_a_pixel_of_the_model_is_seen() -> None:
    picture = Image.new("RGB", (100, 100))
    hole = np.zeros((100, 100), bool)
    hole[50, :] = True
    engine = Noise()
    engine.generate(ImageRequest(prompt="x", image=picture, mask=masks.mask_of(hole), seed=1))
    assert engine.seen[0].mask is not None
    assert (np.asarray(engine.seen[0].mask.getchannel("A")) == 0).any(axis=0).all()


@pytest.mark.parametrize("kind", CAN)
@pytest.mark.parametrize("size", [(1, 1), (5, 90), (90, 5), (64, 64), (200, 150)])
def test_image_to_image_comes_back_at_the_picture_s_size(kind: str, size: tuple[int, int]) -> None:
    engine = Noise(CAN[kind])
    result = engine.generate(ImageRequest(prompt="x", image=Image.new("L", size), seed=1))
    assert result[0].size == result.size == size
    assert engine.seen[0].size == engine.seen[0].image.size  # type: ignore[union-attr]
    assert engine.seen[0].strength == 0.6 and "changed_outside_mask" not in result.records[0]


def test_image_to_image_at_another_size_keeps_the_picture_s_aspect() -> None:
    result = Workshop().make(
        ImageRequest(prompt="x", model="fake/painter", image=Image.new("RGB", (90, 60)), size=(60, 60))
    )
    assert result[0].size == (60, 60)
    assert {step["step"]: step["to"] for step in result.records[0]["refine"]} == {"pad": [60, 60]}


def test_the_same_part_is_seen_of_a_control_picture() -> None:
    from imagewright.request import Control

    control = Image.new("RGB", (200, 200), "black")
    control.paste((255, 255, 255), (80, 80, 88, 88))
    can = Capabilities(size=(16, 16), image=True, mask=True, features=("controls",))
    picture = Image.new("RGB", (100, 100))
    result, engine = fill(picture, "40,40,4,4", can, controls=(Control("edges", control),))
    seen = engine.seen[0].controls[0].image
    assert seen.size == (16, 16) and np.asarray(seen)[6:10, 6:10].min() > 200
    assert len(result.records[0]["controls_sha256"]) == 1


def test_the_record_tells_of_the_edit() -> None:
    result, _ = fill(Image.new("RGB", (64, 64)), "16,16,32,32")
    record = result.records[0]
    assert record["mask"] == {"area": 0.25, "box": [16, 16, 32, 32]}
    assert len(record["image_sha256"]) == len(record["mask_sha256"]) == 64
    assert (record["strength"], record["feather"], record["changed_outside_mask"]) == (1.0, 0, 0)


def test_jpeg_is_said_to_change_all_pixels() -> None:
    result, _ = fill(Image.new("RGB", (64, 64)), "16,16,32,32", output_format="jpeg")
    assert [adjustment.field for adjustment in result.adjustments] == ["output_format"]


def test_pictures_that_cannot_be_edited_are_refused() -> None:
    with pytest.raises(RequestError, match="4096"):
        ImageRequest(prompt="x", image=Image.new("L", (4097, 1)))
    with pytest.raises(RequestError, match="empty"):
        Noise().generate(ImageRequest(prompt="x", image=Image.new("L", (4, 4)), mask=Image.new("RGBA", (4, 4), "red")))
