"""The seam of what was filled in: a true continuation has none, a pasted patch has."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from imagewright.editing import masks
from imagewright.errors import RequestError
from imagewright.evaluation.seam import seam


def ground(seed: int, light: float = 120.0) -> Image.Image:
    """A slope with a little noise."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(-20, 20, 64)[None, :, None] + np.linspace(-10, 10, 64)[:, None, None]
    return Image.fromarray(np.clip(light + slope + rng.normal(0, 4, (64, 64, 3)), 0, 255).astype(np.uint8))


def half() -> Image.Image:
    hole = np.zeros((64, 64), bool)
    hole[:, 30:] = True
    return masks.mask_of(hole)


def test_a_true_continuation_has_no_seam_and_a_pasted_patch_has() -> None:
    same, pasted = ground(0), ground(1, light=160.0)
    assert seam(same, half(), same).ratio == pytest.approx(1, abs=0.25)
    other = seam(same, half(), pasted)
    assert other.ratio > 5
    assert other.across > 30 and other.inside < 10 and other.outside < 10


def test_a_smaller_step_is_a_smaller_seam() -> None:
    ratios = [seam(ground(0), half(), ground(1, light=120.0 + step)).ratio for step in (0, 5, 10, 20, 40)]
    assert ratios == sorted(ratios)


def test_what_stays_is_taken_from_before_and_hidden_colours_do_not_count() -> None:
    before, after = ground(0), ground(0)
    broken = np.asarray(after).copy()
    broken[:, :30] = 0
    assert seam(before, half(), Image.fromarray(broken)) == seam(before, half(), after)
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    hidden = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    assert seam(clear, half(), hidden).ratio == 1


def test_sizes_and_masks_without_a_border_are_errors() -> None:
    with pytest.raises(RequestError, match="Sizes differ"):
        seam(ground(0), half(), ground(0).resize((32, 32)))
    with pytest.raises(RequestError, match="no border"):
        seam(ground(0), masks.whole((64, 64)), ground(0))
