"""Films, style mixing, layers and projection, on models whose answers are known."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from imagewright.data.batch import Batch
from imagewright.errors import OutputError, PictureError, RequestError, UnsupportedError
from imagewright.evaluation import explore
from imagewright.models.diffusion import Diffusion, DiffusionConfig
from imagewright.models.dit import DiTConfig
from imagewright.models.encoders import PixelsConfig
from imagewright.models.stylegan import StyleGAN, StyleGANConfig
from imagewright.models.technique import Cond, Technique
from imagewright.models.text import TextConfig

SIDE, LAYERS = 8, 4


class Known(Technique):
    """Its code is the level of each of the LAYERS bands of an opaque grey picture, top to bottom."""

    family: ClassVar[str] = "gan"
    sampling: ClassVar[tuple[str, ...]] = ("truncation",)
    pixels = SIDE
    layers = LAYERS
    encoder = SimpleNamespace(decode=lambda x: x)

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        raise AssertionError

    def sample(self, cond: Cond, seeds: Sequence[int], **options: Any) -> Tensor:
        raise AssertionError

    def code(self, seed: int) -> Tensor:
        return torch.full((1, LAYERS), seed / 10)

    def render(self, code: Tensor, words: Any, truncation: float = 0.5) -> Tensor:
        return self.synthesise(code[..., None] * truncation, words)

    def invert(self, pixels: Tensor, words: Any, truncation: float = 0.5) -> Tensor:
        return pixels[:, 0].reshape(-1, LAYERS, SIDE // LAYERS * SIDE).mean(2) / truncation

    def styles(self, code: Tensor, words: Any, **options: Any) -> Tensor:
        return code[..., None]

    def mix_layers(self, ws_a: Tensor, ws_b: Tensor, layers: range) -> Tensor:
        ws = ws_a.clone()
        ws[:, list(layers)] = ws_b[:, list(layers)]
        return ws

    def synthesise(self, ws: Tensor, words: Any, noise: Tensor | None = None) -> Tensor:
        level = ws.repeat_interleave(SIDE // LAYERS, 1)[..., None].expand(-1, -1, 3, SIDE).transpose(1, 2)
        return torch.cat([level, torch.ones_like(level[:, :1])], 1)


class Closed(Known):
    """Cannot invert."""

    def invert(self, pixels: Tensor, words: Any, **options: Any) -> Tensor:
        return Technique.invert(self, pixels, words, **options)


class Codeless(Known):
    """Draws without a code, as an autoregressive model does: each seed is a level."""

    def code(self, seed: int) -> Tensor:
        return Technique.code(self, seed)

    def sample(self, cond: Cond, seeds: Sequence[int], **options: Any) -> Tensor:
        return self.render(torch.full((len(seeds), LAYERS), seeds[0] / 10), None, 1.0)


def levels(picture: Image.Image) -> list[float]:
    """The code of a picture of Known with truncation 1, to one decimal."""
    return [round(picture.getpixel((3, band * 2 + 1))[0] / 127.5 - 1, 1) for band in range(LAYERS)]


def grey_file(path: Path, level: float) -> Path:
    Image.new("RGB", (SIDE, SIDE), (round((level + 1) * 127.5),) * 3).save(path)
    return path


def test_a_film_goes_evenly_from_one_end_to_the_other_and_back() -> None:
    model = Known()
    start, stop = explore.end(model, "", 2), explore.end(model, "", 8)
    told: list[tuple[int, int]] = []
    pictures = explore.film(
        model, start, stop, 4, options={"truncation": 1.0}, progress=lambda *done: told.append(done)
    )
    assert [levels(picture)[0] for picture in pictures] == [0.2, 0.4, 0.6, 0.8]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    both = explore.film(model, start, stop, 4, options={"truncation": 1.0}, there_and_back=True)
    assert [levels(picture)[0] for picture in both] == [0.2, 0.4, 0.6, 0.8, 0.6, 0.4]


def test_a_film_may_start_at_a_picture_and_shows_that_picture(tmp_path: Path) -> None:
    model, file = Known(), grey_file(tmp_path / "grey.png", -0.6)
    start, stop = explore.end(model, str(file), 0), explore.end(model, "", 6)
    pictures = explore.film(model, start, stop, 3)
    assert [levels(picture)[2] for picture in pictures] == [-0.6, 0.0, 0.6]  # not at the default truncation


def test_where_pictures_are_drawn_without_a_code_the_way_goes_between_their_codes() -> None:
    model = Codeless()
    pictures = explore.film(model, explore.end(model, "", 2), explore.end(model, "", 8), 3)
    assert [levels(picture)[0] for picture in pictures] == [0.2, 0.5, 0.8]


def test_a_prompt_is_an_error_where_no_words_are_read() -> None:
    with pytest.raises(UnsupportedError, match="no words"):
        explore.end(Known(), "a red fox", 0)


def test_words_and_noise_change_on_the_way_of_a_diffusion_model() -> None:
    torch.manual_seed(0)
    network = DiTConfig(width=32, depth=1, heads=2, patch=4)
    text = TextConfig(vocab=30522, width=32, depth=1, heads=2)
    model = Diffusion(DiffusionConfig(PixelsConfig(SIDE), network, text, steps=2)).eval()
    start, stop = explore.end(model, "red apple", 1), explore.end(model, "cat face", 2, "noto")
    assert start.words is not None and stop.words is not None
    middle = start.words.mix(stop.words, 0.5)
    assert torch.allclose(middle.pooled, (start.words.pooled + stop.words.pooled) / 2)
    pictures = explore.film(model, start, stop, 3)
    whole = model.sample(Cond(["red apple"], [0]), [1])
    assert pictures[0].tobytes() == explore._picture(whole).tobytes()
    with pytest.raises(UnsupportedError, match="style"):
        explore.words_for(model, "red apple", "oil")


@pytest.mark.parametrize(("name", "kind"), [("a.webp", "WEBP"), ("a.gif", "GIF")])
def test_a_film_is_written_with_every_picture_on_white(tmp_path: Path, name: str, kind: str) -> None:
    pictures = [Image.new("RGBA", (8, 8), (shade, 0, 0, 255)) for shade in (0, 120, 240)]
    explore.save_film([*pictures, Image.new("RGBA", (8, 8))], tmp_path / name, side=33, fps=10)
    with Image.open(tmp_path / name) as opened:
        frames = [frame.convert("RGB").getpixel((16, 16)) for frame in ImageSequence.Iterator(opened)]
        assert (opened.format, opened.size, opened.info["loop"], opened.info["duration"]) == (kind, (32, 32), 0, 100)
    assert len(frames) == 4
    for shade, frame in zip((0, 120, 240), frames, strict=False):
        assert abs(frame[0] - shade) < 12 and frame[1] < 12
    assert min(frames[3]) > 245


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_an_mp4_is_written_by_ffmpeg(tmp_path: Path) -> None:
    explore.save_film([Image.new("RGBA", (8, 8), "red")] * 3, tmp_path / "a.mp4", side=32)
    assert (tmp_path / "a.mp4").read_bytes()[4:8] == b"ftyp"


def test_films_that_cannot_be_written_are_refused_before_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OutputError, match="ffmpeg"):
        explore.check_film(Path("a.mp4"))
    with pytest.raises(RequestError, match="avi"):
        explore.check_film(Path("a.avi"))
    explore.check_film(Path("a.WEBP"))


def test_projection_gives_the_picture_its_reconstruction_and_how_near_it_is(tmp_path: Path) -> None:
    pixels = explore.pixels_of(grey_file(tmp_path / "grey.png", 0.5), SIDE)
    assert pixels.shape == (1, 4, SIDE, SIDE)
    found = explore.project(Known(), pixels)
    assert found.psnr > 100 and found.difference.getextrema() == (255, 255)
    pixels[0, :3, 0] += 0.4  # the upper half of a band, which no code can say
    found = explore.project(Known(), pixels)
    assert found.psnr == pytest.approx(-10 * torch.log10(torch.tensor(2 * 3 / 32 * 0.1**2)).item(), abs=0.1)
    assert found.difference.getpixel((0, 0)) < 240 and found.difference.getpixel((0, 7)) == 255
    assert [picture.size for picture in found.pictures] == [(SIDE, SIDE)] * 3


def test_what_cannot_be_inverted_or_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="cannot invert"):
        explore.project(Closed(), torch.zeros(1, 4, SIDE, SIDE))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(PictureError):
        explore.pixels_of(tmp_path / "bad.png", SIDE)


def test_the_mixing_table_takes_the_given_layers_from_the_column() -> None:
    table = explore.mixed(Known(), [1, 2], [7, 8, 9], range(1, 3), None)
    assert [[levels(picture) for picture in row] for row in table[1:]] == [
        [[r, r, r, r], [r, 0.7, 0.7, r], [r, 0.8, 0.8, r], [r, 0.9, 0.9, r]] for r in (0.1, 0.2)
    ]
    assert [levels(picture)[0] for picture in table[0]] == [0.5, 0.7, 0.8, 0.9]


def test_a_style_based_generator_can_be_mixed() -> None:
    torch.manual_seed(0)
    text = TextConfig(width=32, depth=1, heads=2)
    sizes = {"z": 8, "w": 16, "widths": (8, 8), "depths": (1, 2), "critic_widths": (8, 8)}
    model = StyleGAN(StyleGANConfig(PixelsConfig(SIDE), text, **sizes)).eval()  # type: ignore[arg-type]
    words = explore.words_for(model, "red apple")
    table = explore.mixed(model, [1], [2], range(model.layers), words)
    assert table[1][1].tobytes() == table[0][1].tobytes() != table[1][0].tobytes()  # all layers: the column's own
    rows = explore.layer_rows(model, 1, [2], words, parts=2)
    assert [layers.stop for layers, _, _ in rows] == [2, 3] and all(change > 0 for _, _, change in rows)


def test_each_row_of_the_layers_changes_its_own_range_only() -> None:
    rows = explore.layer_rows(Known(), 1, [9], None, parts=2)
    assert [layers for layers, _, _ in rows] == [range(0, 2), range(2, 4)]
    assert [[levels(picture) for picture in pictures] for _, pictures, _ in rows] == [
        [[0.1] * 4, [0.9, 0.9, 0.1, 0.1]],
        [[0.1] * 4, [0.1, 0.1, 0.9, 0.9]],
    ]
    assert [change for _, _, change in rows] == pytest.approx([0.4 * 3 / 4 / 2] * 2)


def test_layers_are_cut_and_read() -> None:
    assert explore.cut(10, 4) == [range(0, 2), range(2, 5), range(5, 8), range(8, 10)]
    assert explore.cut(3, 8) == [range(0, 1), range(1, 2), range(2, 3)]
    assert (explore.parse_layers("0-3"), explore.parse_layers("2")) == (range(0, 4), range(2, 3))
    for text in ("", "a", "3-1", "-1", "1-2-3", "1-"):
        with pytest.raises(RequestError, match="layers"):
            explore.parse_layers(text)


def test_models_without_layers_and_layers_without_models_are_refused() -> None:
    with pytest.raises(RequestError, match="no layer 4"):
        explore.mixed(Known(), [1], [2], range(3, 5), None)
    plain = torch.nn.Linear(1, 1)
    with pytest.raises(UnsupportedError, match="style a layer"):
        explore.layer_rows(plain, 1, [2], None)  # type: ignore[arg-type]
