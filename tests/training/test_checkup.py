"""What a look at the pictures finds: copies, pictures that are all alike, and neither in honest ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imagewright.data.loader import CaptionedFolder
from imagewright.data.splits import TRAIN
from imagewright.models.technique import Cond
from imagewright.text import Tokenizer
from imagewright.training.checkup import _Examiner, checkup_of, nearest, thumbnails
from imagewright.training.sources import PixelSource


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> PixelSource:
    """Two hundred pictures of four random quarters each."""
    out, rng = tmp_path_factory.mktemp("quarters"), np.random.default_rng(0)
    for i in range(200):
        small = rng.integers(0, 256, (2, 2, 3), np.uint8)
        Image.fromarray(small.repeat(16, axis=0).repeat(16, axis=1)).save(out / f"quarters-{i:03d}.png")
    return PixelSource(CaptionedFolder(out), 32, Tokenizer())


class Showing:
    """Shows the given pictures by turns, whatever is asked."""

    def __init__(self, pictures: Tensor) -> None:
        self.pictures = pictures

    def sample(self, cond: Cond, seeds: range) -> Tensor:
        return self.pictures[torch.arange(len(seeds)) % len(self.pictures)]


def _findings(source: PixelSource, pictures: Tensor) -> dict[str, float]:
    return _Examiner(source)(Showing(pictures))  # type: ignore[arg-type]


def test_copies_are_told_from_new_pictures_of_the_same_kind(source: PixelSource) -> None:
    trained = np.array([i for i, r in enumerate(source.folder.records) if r["split"] == TRAIN])
    copies = source.folder.pixels(trained[:30], 32)
    rng = torch.Generator().manual_seed(1)
    quarters = torch.rand(30, 3, 2, 2, generator=rng).repeat_interleave(16, 2).repeat_interleave(16, 3) * 2 - 1
    new = torch.cat([quarters, torch.ones(30, 1, 32, 32)], dim=1)
    found = {name: _findings(source, pictures) for name, pictures in (("copies", copies), ("new", new))}
    assert found["copies"]["copies"] == 1.0 and found["new"]["copies"] < 0.5
    assert all(0.7 < f["spread"] < 1.4 for f in found.values())


def test_pictures_that_are_all_alike_have_no_spread(source: PixelSource) -> None:
    alike = source.folder.pixels([3], 32) + 0.01 * torch.randn(8, 4, 32, 32)
    assert _findings(source, alike)["spread"] < 0.05


def test_distances_are_root_mean_squares() -> None:
    pictures = torch.tensor([[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]])
    torch.testing.assert_close(nearest(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), pictures), torch.tensor([0.5**0.5, 0.0]))


def test_thumbnails_lie_on_white() -> None:
    clear = torch.full((1, 4, 28, 28), -1.0)
    assert torch.equal(thumbnails(clear), torch.ones(1, 3 * 16 * 16))


def test_a_model_that_makes_no_pictures_is_not_examined(source: PixelSource) -> None:
    from imagewright.models import registry
    from imagewright.training.presets import PRESETS

    for technique, examined in (("autoencoder", False), ("diffusion", True)):
        model = registry.build(PRESETS[technique]["tiny"].model)
        assert (checkup_of(model, source) is not None) == examined
