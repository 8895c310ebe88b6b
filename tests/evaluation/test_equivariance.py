"""EQ-T: exact for pictures that move as they should, closed form for one that stays, and high for alias-free layers."""

import math

import pytest
import torch
from torch import Tensor

from imagewright.data.batch import Draws
from imagewright.evaluation.equivariance import eq_t, equivariance
from imagewright.models.encoders import PixelsConfig
from imagewright.models.stylegan import StyleGAN, StyleGANConfig
from imagewright.models.technique import Words
from imagewright.models.text import TextConfig

SIDE = 16


def wave(shift: Tensor) -> Tensor:
    """Two waves a picture, moved exactly."""
    at = (torch.arange(SIDE) + 0.5) / SIDE
    y, x = (at - shift[:, axis, None] for axis in (0, 1))
    return (torch.sin(9 * y[:, :, None] + 4 * x[:, None, :]) * torch.cos(5 * x[:, None, :]))[:, None]


def test_a_picture_that_moves_exactly() -> None:
    assert eq_t(wave, 4, SIDE) > 100


def test_a_ramp_that_stays_has_the_error_of_its_moves() -> None:
    ramp = torch.arange(SIDE).float().expand(1, 1, SIDE, SIDE) / SIDE  # brighter by 1 / SIDE a column
    error = count = 0
    for move in range(8):
        down, right = ((5 * Draws(0, move, 0, 1, 1).rand(2)).floor() - 2)[0].tolist()
        pixels = (SIDE - abs(down)) * (SIDE - abs(right))
        error += pixels * (right / SIDE) ** 2
        count += pixels
    want = 10 * math.log10(4 * count / error)
    assert eq_t(lambda shift: ramp, 1, SIDE) == pytest.approx(want, abs=1e-3)


def test_alias_free_layers_move_their_details() -> None:
    text = TextConfig(width=32, depth=1, heads=2, max_tokens=8)
    words = Words(torch.randn(2, 8, 32), torch.randn(2, 32), torch.ones(2, 8, dtype=torch.bool), torch.zeros(2).long())
    found = {}
    for alias_free in (True, False):
        torch.manual_seed(0)
        config = StyleGANConfig(
            PixelsConfig(size=SIDE), text, z=16, w=32, widths=(16, 16), depths=(2, 2), critic_widths=(8, 8),
            alias_free=alias_free,
        )  # fmt: skip
        model = StyleGAN(config)
        found[alias_free] = equivariance(model, words, [0, 1])
        pictures = model.synthesise(model.mapping(torch.randn(2, 16), words), words)
        assert pictures.std() > 0.3  # an empty picture would move perfectly
    assert found[True] > 50
    assert found[False] < 25
