"""Whether a model's pictures differ between seeds, and whether they are copies of training pictures.

Both are measured on thumbnails of 16 x 16 pixels over white: enough to tell pictures apart, and cheap enough to do
beside every sheet of samples.

    spread   mean distance between pictures of different seeds without a prompt, over that between training pictures
    copies   share of pictures under held-out captions that are nearer to a training picture than nine in ten held-out
             pictures are; about 0.1 for a model that has learned without copying
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imagewright.data.splits import TRAIN
from imagewright.models.technique import Cond, Technique
from imagewright.training.observe import Checkup
from imagewright.training.sources import PixelSource

SIDE = 16
SEEDS = 8  # pictures whose spread is measured
COPIES = 24  # pictures that are looked up among those trained on
HELDOUT = 256  # real pictures that say how near is near
ROWS = 1024  # pictures made small at a time


def checkup_of(technique: Technique, source: PixelSource) -> Checkup | None:
    """What to look for in the pictures of `technique`; nothing in those of a model that makes none by itself."""
    return _Examiner(source, next(technique.parameters()).device) if technique.family else None


class _Examiner:
    def __init__(self, source: PixelSource, device: torch.device | str = "cpu") -> None:
        self.source, self.device = source, device

    def __call__(self, technique: Technique) -> dict[str, float]:
        """`spread`, and `copies` where pictures are held out."""
        made = thumbnails(technique.sample(Cond([""] * SEEDS, [0] * SEEDS), range(SEEDS)).cpu())
        found = {"spread": _spread(made) / self._usual_spread}
        batch = self.source.heldout(0, COPIES, 0)
        if batch is not None:
            assert batch.style is not None
            cond = Cond(batch.captions, batch.style.tolist())
            made = thumbnails(technique.sample(cond, range(len(batch))).cpu())
            found["copies"] = (nearest(made, self._trained) < self._near).float().mean().item()
        return found

    def _pictures(self, rows: np.ndarray) -> Tensor:
        parts = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
        folder, size = self.source.folder, self.source.size
        return torch.cat([thumbnails(folder.pixels(part, size, self.device)).cpu() for part in parts])

    @cached_property
    def _trained(self) -> Tensor:
        rows = [i for i, record in enumerate(self.source.folder.records) if record["split"] == TRAIN]
        return self._pictures(np.array(rows))

    @cached_property
    def _usual_spread(self) -> float:
        return max(_spread(self._pictures(self.source.folder.indices(0, 0, 64))), 1e-6)

    @cached_property
    def _near(self) -> float:
        """The distance to a training picture that one in ten held-out pictures falls below."""
        heldout = self._pictures(self.source.folder.heldout(HELDOUT))
        return nearest(heldout, self._trained).quantile(0.1).item()


def thumbnails(pixels: Tensor) -> Tensor:
    """(B, 4, H, W) premultiplied in [-1, 1] -> (B, 3 * SIDE * SIDE) over white."""
    over_white = pixels[:, :3] + 1 - pixels[:, 3:]  # (B, 3, H, W)
    return F.interpolate(over_white.float(), size=(SIDE, SIDE), mode="area").flatten(1)


def nearest(queries: Tensor, pictures: Tensor) -> Tensor:
    """Root mean square distance (B,) from each query (B, D) to the nearest of the pictures (N, D)."""
    distances: Tensor = torch.cdist(queries, pictures) / queries.shape[1] ** 0.5  # (B, N)
    return distances.amin(1)


def _spread(pictures: Tensor) -> float:
    """Mean distance between two different ones of the pictures (B, D)."""
    return torch.pdist(pictures).mean().item()
