"""What a diffusion model makes of training pictures that were noised to some degree: an upscaler learns from it.

A picture noised to t and denoised again (SDEdit, arXiv:2108.01073, section 3) has the flaws of the model's own pictures
and still resembles the one it began as, the less, the larger t was; at t = 0 only the autoencoder's flaws.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagewright.data.batch import Batch, Draws
from imagewright.data.loader import CaptionedFolder
from imagewright.errors import OptionError
from imagewright.models.diffusion import Diffusion
from imagewright.models.samplers import SAMPLERS, guided
from imagewright.models.upscaler import FACTOR
from imagewright.text import Tokenizer
from imagewright.training.sources import PixelSource, weights_digest

ROWS = 128  # drawn at once
STRAYS = (0.0, 0.3, 0.5, 0.7, 1.0)  # by turns, a batch each
STEPS = 5  # from t = 1; fewer from less
CLEAR = 0.25  # share of the rows that no model drew: real pictures, only smaller
SCENES = 0.25  # share of scenes among what is redrawn


class RedrawnSource(PixelSource):
    """Pixels as of PixelSource, with what a model drew in their place at half their size (`Batch.drawn`).

    `crop`: training sees squares of so many of the drawn pixels."""

    def __init__(self, folder: CaptionedFolder, size: int, tokenizer: Tokenizer, cache: Path, crop: int) -> None:
        super().__init__(folder, size, tokenizer, condition="none")
        self.crop = min(crop, size // FACTOR)
        with safe_open(str(cache), framework="pt") as file:
            self.rows, self.strayed = file.get_tensor("rows"), file.get_tensor("strayed")
            self.drawn = file.get_tensor("drawn")

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        """Rows [start, stop) of the global batch of a step."""
        kind, pick, *corner = np.random.default_rng([seed, step]).random((4, total))[:, start:stop]
        entries = torch.from_numpy((pick * len(self.rows)).astype(np.int64))
        pixels = self.folder.pixels(self.rows[entries].numpy(), self.size)
        drawn = self.drawn[entries].permute(0, 3, 1, 2).float() / 127.5 - 1
        clear = torch.from_numpy(kind < CLEAR)
        drawn = torch.where(clear[:, None, None, None], F.avg_pool2d(pixels, FACTOR), drawn)
        corners = (np.stack(corner, axis=1) * (drawn.shape[-1] - self.crop + 1)).astype(np.int64)
        return Batch(
            draws=Draws(seed, step, start, stop, total),
            pixels=_cropped(pixels, FACTOR * corners, FACTOR * self.crop),
            drawn=_cropped(drawn, corners, self.crop),
            strayed=torch.where(clear, 0.0, self.strayed[entries]),
            step=step,
        )


def _cropped(pictures: Tensor, corners: np.ndarray, side: int) -> Tensor:
    """The squares of `side` pixels of pictures (B, C, H, W) whose upper left corners (B, 2) these are, as (y, x)."""
    squares = zip(pictures, corners.tolist(), strict=True)
    return torch.stack([picture[:, y : y + side, x : x + side] for picture, (y, x) in squares])


@torch.no_grad()
def redraw(
    model: Any,
    folder: CaptionedFolder,
    count: int,
    out: Path,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `count` training pictures as `model` redraws them below `out`: their rows in the folder (N,), how far they
    `strayed` (N,) and what was `drawn` (N, h, w, 4) in bytes. The file's name holds a hash of the model's weights, the
    data's manifest, the count and the seed; an existing one is kept. Raises OptionError unless it is a diffusion model.
    """
    if not isinstance(model, Diffusion):
        raise OptionError(
            f"A {type(model).__name__} cannot redraw pictures.", "Name the run of a diffusion model with --from."
        )
    path = out / f"redrawn-{weights_digest(model, folder.manifest, str(count), str(seed))[:16]}.safetensors"
    if path.exists():
        return path
    device, side = next(model.parameters()).device, model.pixels
    rows = np.concatenate([folder.indices(seed, step, ROWS, scenes_share=SCENES) for step in range(-(-count // ROWS))])[
        :count
    ]
    drawn = torch.empty(count, side, side, 4, dtype=torch.uint8)
    strayed = torch.empty(count)
    for index, start in enumerate(range(0, count, ROWS)):
        chosen, t = rows[start : start + ROWS], STRAYS[index % len(STRAYS)]
        with torch.autocast(device.type, torch.bfloat16):
            made = _redrawn(model, folder, chosen, t, seed + index)
        drawn[start : start + ROWS] = ((made.float().cpu() + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
        strayed[start : start + ROWS] = t
        if progress is not None:
            progress(start + len(chosen), count)
    out.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"rows": torch.from_numpy(rows), "strayed": strayed, "drawn": drawn}, str(partial))
    partial.replace(path)
    return path


def _redrawn(model: Diffusion, folder: CaptionedFolder, rows: np.ndarray, t: float, seed: int) -> Tensor:
    """Pictures (B, 4, H, W) in [-1, 1] that the model makes of rows noised to `t`."""
    device = next(model.parameters()).device
    x0 = model.encoder.encode(folder.pixels(rows, model.pixels).to(device)).float()
    if t == 0:
        return model.encoder.decode(x0).clamp(-1, 1)
    captions = [folder.records[row]["text"] for row in rows]
    words = model.prompted(captions + [""] * len(rows), folder.styles(rows).tolist() + [0] * len(rows))
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(x0.shape, generator=generator).to(x0)

    def estimate(x: Tensor, t: float, twice: int) -> Tensor:
        blank = torch.zeros_like(x[:, :1])
        seen = [part.repeat(twice, 1, 1, 1) for part in (x, torch.zeros_like(x), blank)]
        times = torch.full((twice * len(x),), t, device=device)
        return model.denoised(seen[0], times, words[: twice * len(x)], seen[1], seen[2])

    def both(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        first, second = estimate(x, t, 2).chunk(2)
        return first, second

    denoise = guided(lambda x, t: estimate(x, t, 1), both, model.config.guidance, model.config.interval)
    alpha, sigma = model.process.levels(t)
    times = [t * one for one in model.process.times(max(2, round(t * STEPS)))]
    sampled = SAMPLERS["dpmpp_2m"](denoise, alpha * x0 + sigma * noise(), times, model.process, noise)
    return model.encoder.decode(sampled).clamp(-1, 1)
