"""Augmentations that the critic sees of real and made pictures alike (DiffAugment, arXiv:2006.10738).

Translation by up to an eighth of the side and cutout of a box of half the side, on pixels or latents. No flips and no
colour: captions speak of left, right and blue. Deviation: a real picture and the made one beside it get the same
augmentation, because the relativistic loss compares them in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imagewright.data.batch import Draws


@dataclass(frozen=True)
class Augmentation:
    """One augmentation a row: `shift` (B, 2) in whole cells (down, right) and `keep` (B, 1, side, side), 0 inside the
    box that is cut out. Call it on (B, C, side, side)."""

    shift: Tensor
    keep: Tensor

    @classmethod
    def drawn(cls, draws: Draws, side: int, share: float) -> Augmentation:
        """Random augmentations of `share` of the rows; the others stay as they are."""
        u = draws.rand(5)  # shift y, x; centre of the box y, x; whether
        reach = max(1, side // 8)
        chosen = u[:, 4:] < share  # (B, 1)
        shift = ((2 * reach + 1) * u[:, :2]).floor().long() - reach
        centre = (u[:, 2:4] * side).floor()
        cells = torch.arange(side, device=u.device)
        inside = (cells - centre[:, :, None]).add(0.5).abs() < side / 4  # (B, 2, side)
        box = inside[:, 0, :, None] & inside[:, 1, None, :] & chosen[..., None]  # (B, side, side)
        return cls(shift * chosen, (~box)[:, None].float())

    def __getitem__(self, rows: slice) -> Augmentation:
        return Augmentation(self.shift[rows], self.keep[rows])

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, side, side) moved, zero where nothing comes from, and cut out."""
        rows, columns = (self._moved(x.shape[-1], axis).to(x) for axis in (0, 1))
        x = torch.einsum("bij,bcjk,blk->bcil", rows, x, columns)
        return x * self.keep.to(x)

    def _moved(self, side: int, axis: int) -> Tensor:
        """(B, side, side): row i takes cell i - shift; a product with it is a shift that autograd knows twice over."""
        cells = torch.arange(side, device=self.shift.device)
        return (cells[None, :, None] - cells[None, None, :] == self.shift[:, axis, None, None]).float()
