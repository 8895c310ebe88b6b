"""An instruction changes what it changes; the rest is the original at its own resolution."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from imagewright.editing.place import Cut, cut
from imagewright.request import Capabilities, ImageRequest

CAN = Capabilities(size=(64, 64), image=True, features=("instruction",))


def cut_of(picture: Image.Image, **fields: object) -> Cut:
    request = ImageRequest(prompt="make it blue", image=picture, instruction=True, strength=1.0, **fields)  # type: ignore[arg-type]
    made, said = cut(request, CAN)
    assert made is not None and not said
    return made


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """A fine pattern, which nothing that is drawn at 64 pixels can keep."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(120, 136, (size[1], size[0], len(mode)))
    if mode == "RGBA":
        pixels[..., 3] = 255
    return Image.fromarray(pixels.astype(np.uint8), mode)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_what_was_not_changed_is_the_original_byte_for_byte(mode: str) -> None:
    picture = noise((400, 300), mode)
    made = cut_of(picture)
    drawn = made.request.image.copy()  # type: ignore[union-attr]
    ImageDraw.Draw(drawn).rectangle((10, 20, 24, 34), fill="blue")
    result, told = made.restored(drawn)
    assert result.size == picture.size and result.mode == mode
    same = (np.asarray(result) == np.asarray(picture)).all(-1)
    assert told["changed_outside_mask"] == 0 and told["instruction"]
    assert same.mean() == pytest.approx(1 - told["changed"], abs=0.02) and 0.02 < told["changed"] < 0.3
    assert tuple(np.asarray(result.convert("RGB"))[130, 110]) == (0, 0, 255), "inside it is what was drawn"


def test_nothing_changed_gives_the_original(tmp_path: object) -> None:
    picture = noise((200, 200))
    made = cut_of(picture)
    result, told = made.restored(made.request.image)  # type: ignore[arg-type]
    assert told["changed"] == 0 and np.array_equal(np.asarray(result), np.asarray(picture))


def test_a_picture_drawn_all_anew_is_taken_whole() -> None:
    result, told = cut_of(noise((200, 200))).restored(Image.new("RGBA", (64, 64), "#004400"))
    assert told["changed"] == 1 and result.size == (200, 200)
    assert (np.asarray(result.convert("RGB")) == (0, 0x44, 0)).all()


def test_a_background_can_become_transparent_where_the_original_had_no_alpha() -> None:
    picture = noise((256, 256))
    made = cut_of(picture)
    drawn = made.request.image.convert("RGBA")  # type: ignore[union-attr]
    drawn.paste((0, 0, 0, 0), (0, 0, 30, 64))
    result, _ = made.restored(drawn)
    assert result.mode == "RGBA" and result.getpixel((20, 128)) == (0, 0, 0, 0)
    assert result.convert("RGB").getpixel((220, 128)) == picture.getpixel((220, 128))
