"""The upscaler: twice the side, sharper than bicubic, true to the colours, learned from what a model redraws."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from imagewright.data.batch import Batch, Draws
from imagewright.data.loader import CaptionedFolder
from imagewright.engines.embedded import EmbeddedEngine, ExportedModel
from imagewright.errors import OptionError
from imagewright.export import export
from imagewright.models.upscaler import Upscaler, UpscalerConfig
from imagewright.request import ImageRequest
from imagewright.text import Tokenizer
from imagewright.training import command
from imagewright.training.checkpoint import load_model
from imagewright.training.redrawn import CLEAR, STRAYS, RedrawnSource, redraw

TINY = UpscalerConfig(size=32, width=16, blocks=1, deep=16, fine=8, adversarial=0.0)
QUICK = {"steps": "2", "batch": "4", "sample_every": "0", "heldout_every": "1"}


def squares(seed: int, side: int = 32, rows: int = 8) -> Tensor:
    """White squares on clear ground, (rows, 4, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.full((rows, 4, side, side), -1.0)
    for picture in pictures:
        x, y, w, h = torch.randint(4, side // 2, (4,), generator=generator).tolist()
        picture[:, y : y + h, x : x + w] = 1
    return pictures


def batch(seed: int, strayed: float = 0.0) -> Batch:
    large = squares(seed)
    return Batch(
        Draws(0, seed, 0, len(large), len(large)),
        pixels=large,
        drawn=F.avg_pool2d(large, 2),
        strayed=torch.full((len(large),), strayed),
    )


def trained(steps: int, strayed: float = 0.0) -> Upscaler:
    torch.manual_seed(0)
    model = Upscaler(TINY)
    optimizer = torch.optim.Adam([p for group in model.param_groups().values() for p in group], 3e-3)
    for step in range(steps):
        optimizer.zero_grad()
        model.loss(batch(step, strayed))["loss"].backward()
        optimizer.step()
    return model.eval()


def test_begins_as_bicubic_and_ends_nearer_to_the_truth() -> None:
    small, large = F.avg_pool2d(squares(99), 2), squares(99)
    bicubic = F.interpolate(small, scale_factor=2, mode="bicubic", align_corners=False)
    model = trained(200)
    with torch.no_grad():
        assert torch.equal(Upscaler(TINY).enlarge(small), bicubic)
        made = model.enlarge(small)
    assert (made - large).abs().mean() < 0.7 * (bicubic - large).abs().mean()


@pytest.mark.parametrize("height,width", [(4, 4), (16, 24), (20, 8)])
def test_any_size_of_whole_cells(height: int, width: int) -> None:
    with torch.no_grad():
        assert Upscaler(TINY).enlarge(torch.zeros(1, 4, height, width)).shape == (1, 4, 2 * height, 2 * width)


def test_pictures_that_strayed_teach_coarse_colours_only() -> None:
    model = Upscaler(TINY)
    far = dataclasses.replace(batch(0, 1.0), pixels=squares(5))  # the picture meant is another one
    losses = model.loss(far)
    assert losses["near"] == 0 and losses["loss"] == losses["coarse"]
    assert model.loss(dataclasses.replace(far, strayed=torch.zeros(8)))["near"] > 0


def test_the_discriminator_has_its_own_phase_and_parameters() -> None:
    model = Upscaler(dataclasses.replace(TINY, adversarial=0.1))
    critic, main = (
        {id(p) for group in model.param_groups(phase).values() for p in group} for phase in ("discriminator", "main")
    )
    assert critic == {id(p) for p in model.discriminator.parameters()} and not critic & main
    assert len(critic | main) == len(list(model.parameters()))
    model.loss(batch(0), "discriminator")["loss"].backward()
    assert all(p.grad is not None for p in model.discriminator.parameters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> CaptionedFolder:
    """Forty discs and squares named by what they show."""
    out = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        picture = Image.new("RGBA", (64, 64))
        draw = ImageDraw.Draw(picture)
        shape = (draw.ellipse, draw.rectangle)[i % 2]
        colour = ("red", "green", "blue", "orange")[i % 4]
        shape((4 + i // 4, 6, 40 + i // 4, 50), fill=colour)
        picture.save(out / f"{colour}_{('disc', 'square')[i % 2]}-{i:02d}.png")
    return CaptionedFolder(out)


@pytest.fixture(scope="module")
def drawer(folder: CaptionedFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a tiny diffusion model."""
    out = tmp_path_factory.mktemp("drawer") / "run"
    quick = QUICK | {f"autoencoder.{name}": value for name, value in QUICK.items()}
    command.run("diffusion", folder.path, "tiny", out, quick)
    return out


def test_what_a_model_redraws_is_kept_and_drawn_from(folder: CaptionedFolder, drawer: Path, tmp_path: Path) -> None:
    model, told = load_model(drawer).eval(), []
    cache = redraw(model, folder, 300, tmp_path, progress=lambda done, of: told.append((done, of)))
    assert told == [(128, 300), (256, 300), (300, 300)]
    assert redraw(model, folder, 300, tmp_path) == cache and len(told) == 3
    source = RedrawnSource(folder, 64, Tokenizer(), cache, 32)
    assert sorted(set(source.strayed.tolist())) == pytest.approx(STRAYS[:3])
    rows = source.rows[:128].numpy()
    with torch.no_grad():  # the first 128 went through the autoencoder only
        restored = model.encoder.decode(model.encoder.encode(folder.pixels(rows, 32))).clamp(-1, 1)
    assert (source.drawn[:128].permute(0, 3, 1, 2) / 127.5 - 1 - restored).abs().mean() < 0.01
    many = source.batch(0, 0, 0, 400, 400)
    assert many.drawn is not None and many.strayed is not None and many.pixels is not None
    clear = (many.drawn == F.avg_pool2d(many.pixels, 2)).flatten(1).all(1)
    assert clear.float().mean() == pytest.approx(CLEAR, abs=0.08) and (many.strayed[clear] == 0).all()
    assert source.batch(0, 0, 0, 4, 400).pixels.shape == (4, 4, 64, 64)  # type: ignore[union-attr]
    cropped = RedrawnSource(folder, 64, Tokenizer(), cache, 20).batch(0, 0, 0, 400, 400)
    assert cropped.pixels is not None and cropped.drawn is not None and cropped.pixels.shape == (400, 4, 40, 40)
    assert torch.allclose(cropped.drawn[clear], F.avg_pool2d(cropped.pixels[clear], 2), atol=1e-6)
    half = source.batch(0, 0, 200, 400, 400)
    assert half.drawn is not None and torch.equal(half.drawn, many.drawn[200:])


def test_trained_exported_and_used_for_whole_pictures(folder: CaptionedFolder, drawer: Path, tmp_path: Path) -> None:
    out = tmp_path / "upscaler"
    command.run("upscaler", folder.path, "tiny", out, QUICK, start=drawer)
    assert command.run("upscaler", folder.path, "tiny", out, QUICK | {"steps": "3"}, start=drawer).step == 3
    model = export(drawer, tmp_path / "model", name="discs", bits=8, upscaler=out)
    made = ExportedModel(model)
    request = ImageRequest(prompt="a red disc", seed=3, size=(64, 64))
    (picture,), _ = made.generate(request)
    assert picture.size == (64, 64)
    (small,), _ = made.generate(dataclasses.replace(request, size=(32, 32)))
    assert small.size == (32, 32), "no more than asked for"
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 4, 8, 12)).astype(np.float32)
    (large,) = onnxruntime.InferenceSession(model / "upscaler.onnx").run(None, {"pixels": pixels})
    with torch.no_grad():
        expected = load_model(out).enlarge(torch.from_numpy(pixels))  # type: ignore[operator]
    assert np.abs(large - expected.numpy()).max() < 0.05, "8 bits"
    engine = EmbeddedEngine([tmp_path])
    edited = dataclasses.replace(request, image=picture, mask=Image.new("RGBA", (64, 64)), size=None, model="discs")
    assert engine.generate(edited).images[0].size == (64, 64)


def test_what_cannot_be_is_said(folder: CaptionedFolder, drawer: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="learns from what a model draws"):
        command.run("upscaler", folder.path, "tiny", tmp_path / "a", QUICK)
    with pytest.raises(OptionError, match="draws 32 pixels"):
        command.run("upscaler", folder.path, "tiny", tmp_path / "b", QUICK, size=128, start=drawer)
    with pytest.raises(OptionError, match="cannot redraw"):
        redraw(load_model(drawer / "autoencoder"), folder, 4, tmp_path)
    with pytest.raises(OptionError, match="holds a Autoencoder|holds an Autoencoder"):
        export(drawer, tmp_path / "model", name="discs", upscaler=drawer / "autoencoder")
