"""Masks from files, regions and colours: what may change, and clear errors for what cannot be one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagewright.editing import masks
from imagewright.errors import RequestError
from imagewright.pictures import open_picture


def test_transparent_may_change() -> None:
    mask = Image.new("RGBA", (4, 2), (255, 255, 255, 255))
    mask.putpixel((3, 1), (0, 0, 0, 0))
    mask.putpixel((2, 1), (0, 0, 0, 1))  # nearly transparent is not: what is not transparent stays
    assert np.argwhere(masks.hole(mask)).tolist() == [[1, 3]]


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "I;16"])
def test_without_alpha_white_may_change(mode: str) -> None:
    grey = np.zeros((2, 4), np.uint8)
    grey[0, 1] = 255
    mask = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    assert np.argwhere(masks.hole(mask)).tolist() == [[0, 1]]


@pytest.mark.parametrize("mask", [Image.new("RGBA", (4, 4), "white"), Image.new("L", (4, 4)), Image.new("RGB", (1, 1))])
def test_an_empty_mask_is_refused(mask: Image.Image) -> None:
    with pytest.raises(RequestError, match="nothing may change") as caught:
        masks.hole(mask)
    assert "transparent" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("1,2,3,4", (1, 2, 3, 4)),
        ("25%, 50%, 50%, 25%", (5, 5, 10, 2)),
        ("10px,0,100,100", (10, 0, 10, 10)),
        ("-5,-5,10,10", (0, 0, 5, 5)),
        ("0,0,0.5,1", None),
        ("20,0,1,1", None),
        ("0,0,-4,4", None),
        ("0,0,4", None),
        ("a,b,c,d", None),
        ("0,0,1e9,1", None),
        ("0,0," + "9" * 400 + ",1", None),
        ("", None),
    ],
)
def test_regions(text: str, box: tuple[int, int, int, int] | None) -> None:
    if box is None:
        with pytest.raises(RequestError) as caught:
            masks.region(text, (20, 10))
        assert caught.value.fix
    else:
        assert masks.told(masks.hole(masks.region(text, (20, 10))))["box"] == list(box)


def test_a_mask_can_be_turned_and_saved_and_read_again(tmp_path: Path) -> None:
    mask = masks.region("0,0,5,10", (20, 10))
    turned = masks.inverted(mask)
    assert not (masks.hole(mask) & masks.hole(turned)).any() and (masks.hole(mask) | masks.hole(turned)).all()
    masks.save(turned, tmp_path / "mask.png")
    again, said = masks.fitted(open_picture(tmp_path / "mask.png"), (20, 10))
    assert np.array_equal(masks.hole(again), masks.hole(turned)) and not said
    with pytest.raises(RequestError, match="empty"):
        masks.inverted(masks.whole((20, 10)))


def test_a_mask_of_another_scale_is_resized_and_that_is_said() -> None:
    found, (said,) = masks.fitted(masks.region("0,0,5,10", (20, 10)), (40, 20))
    assert masks.told(masks.hole(found))["box"] == [0, 0, 10, 20] and said.field == "mask"
    with pytest.raises(RequestError, match="20x10"):
        masks.fitted(masks.whole((20, 10)), (40, 40))
    with pytest.raises(RequestError, match="Nothing is left"):
        masks.fitted(masks.region("1,1,1,1", (100, 100)), (10, 10))


def test_a_hole_grows_by_pixels() -> None:
    hole = np.zeros((9, 9), bool)
    hole[4, 4] = True
    assert masks.grown(hole, 2).sum() == 25 and np.array_equal(masks.grown(hole, 0), hole)


def test_eight_bits() -> None:
    wide = Image.fromarray(np.array([[0, 128, 129, 65535]], np.uint16))
    assert np.asarray(masks.eight_bit(wide))[0, :, 0].tolist() == [0, 0, 1, 255]
    assert masks.eight_bit(Image.new("LA", (1, 1), (7, 9))).getpixel((0, 0)) == (7, 7, 7, 9)
    picture = Image.new("RGB", (1, 1))
    picture.info["exif"] = b"somewhere"
    assert masks.eight_bit(picture).info == {}


def test_a_camera_s_turn_is_undone(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert masks.upright(open_picture(tmp_path / "turned.jpg")).size == (2, 4)
