"""An upscaler that also mends: small drawn pictures become twice as large, with the outlines that real ones have.

A small convolutional network adds to the bicubically enlarged picture what is missing (EDSR, arXiv:1707.02921, without
its norms), most of it worked out at half of the picture's resolution (as in ESPCN, arXiv:1609.05158). As in SRGAN
(arXiv:1609.04802) a discriminator of patches says what looks real, because a mean of all likely outlines is a blur. It
learns on what a model makes of real pictures that were noised to some degree (SDEdit, arXiv:2108.01073) and so has the
flaws of drawn ones beside the picture meant; the more noise, the less the two must agree, and the coarse colours
of what comes out are those of what went in. Pixels are premultiplied RGBA in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import Batch
from imagewright.models.technique import Cond, Graph, Phase, Technique, sort_parameters
from imagewright.models.vae import PatchDiscriminator
from imagewright.watch import Watch

FACTOR = 2
COARSE = 8  # pixels of the large picture that are seen as one where only coarse colours must stay


@dataclass(frozen=True)
class UpscalerConfig:
    """`size`: side of the large pictures. `width` and `blocks` at a quarter of it, `deep` channels at an eighth, `fine`
    at a half. `adversarial`: weight of the discriminator's opinion. `trusted`: up to which noise the picture meant is
    learned from, ever less. `redrawn`: how many pictures a model draws to learn from; of which
    training sees squares of `crop` pixels (divisible by 4)."""

    size: int = 128
    width: int = 64
    blocks: int = 3
    deep: int = 96
    fine: int = 24
    adversarial: float = 0.15
    trusted: float = 0.7
    redrawn: int = 15_360
    crop: int = 40


class Upscaler(Technique):
    """(B, 4, h, w) -> (B, 4, 2h, 2w); h and w divisible by 4."""

    phases = (Phase("discriminator", lr=0.3), Phase())

    def __init__(self, config: UpscalerConfig) -> None:
        super().__init__()
        self.config = config
        width, deep, fine = config.width, config.deep, config.fine
        self.near = _conv(4, fine)  # at h
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), _conv(16, width))  # h / 2
        self.down = nn.Conv2d(width, deep, 2, stride=2)  # h / 4
        self.bottom = Residual(deep)
        self.up = nn.Sequential(nn.Conv2d(deep, 4 * width, 1), nn.PixelShuffle(2))
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(config.blocks)))
        self.rise = nn.Sequential(nn.Conv2d(width, 4 * fine, 1), nn.PixelShuffle(2))
        self.last = nn.Sequential(Residual(fine), nn.SiLU(), _conv(fine, 4 * FACTOR**2), nn.PixelShuffle(FACTOR))
        nn.init.zeros_(self.last[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.last[2].bias)  # type: ignore[arg-type]
        self.discriminator = PatchDiscriminator(4)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def pixels(self) -> int:
        """Side of the large pictures."""
        return self.config.size

    def enlarge(self, pixels: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, 4, 2h, 2w), about [-1, 1] (not clamped)."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        h = self.stem(pixels)
        h = self.blocks(h + self.up(self.bottom(self.down(h))))
        more = self.last(self.near(pixels) + self.rise(h))
        return F.interpolate(pixels, scale_factor=FACTOR, mode="bicubic", align_corners=False) + more

    def param_groups(self, phase: str = "main") -> dict[str, list[nn.Parameter]]:
        """Those of the discriminator in its phase, else all others."""
        critic = set(self.discriminator.parameters())
        sorted_ = sort_parameters(self).items()
        return {name: [p for p in group if (p in critic) == (phase == "discriminator")] for name, group in sorted_}

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """Of the enlarged `batch.drawn`: L1 to `batch.pixels` and of the edges, by how far `batch.strayed` is trusted;
        L1 of coarse colours to what was enlarged; and the hinge losses of arXiv:1705.02894, section 3.3."""
        pixels, drawn, strayed = batch.pixels, batch.drawn, batch.strayed
        assert pixels is not None
        if drawn is None or strayed is None:  # held-out pictures: drawn by no model, only smaller
            drawn, strayed = F.avg_pool2d(pixels, FACTOR), pixels.new_zeros(len(pixels))
        large = self.enlarge(drawn).float()
        judged = self.discriminator(large)
        if phase == "discriminator":
            real = self.discriminator(pixels)
            return {"loss": (F.relu(1 - real) + F.relu(1 + judged)).mean(), "real": real.mean(), "made": judged.mean()}
        trust = (1 - strayed / self.config.trusted).clamp_min(0)  # (B,)
        near = (trust * _distance(large, pixels)).mean()
        coarse = _l1(F.avg_pool2d(large, COARSE), F.avg_pool2d(drawn, COARSE // FACTOR)).mean()
        loss = near + coarse - self.config.adversarial * judged.mean()
        return {"loss": loss, "near": near, "coarse": coarse, "judged": judged.mean()}

    @torch.no_grad()
    def sample(self, cond: Cond, seeds: Sequence[int], *, watch: Watch = Watch(), **options: Any) -> Tensor:
        """Enlarged noise: an upscaler draws nothing itself, so this shows only that it runs."""
        from imagewright.models.samplers import noise_source

        side = self.config.size // FACTOR
        rows = [torch.from_numpy(noise_source(seed, (4, side, side))()) for seed in seeds]
        return self.enlarge(torch.tanh(torch.stack(rows)).to(self.near.weight.device)).clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 4, H, W), made small and enlarged again, clamped to [-1, 1]."""
        return self.enlarge(F.avg_pool2d(pixels, FACTOR)).clamp(-1, 1)

    def graphs(self) -> dict[str, Graph]:
        """upscaler: pixels to larger ones, of any size."""
        side = self.config.size // FACTOR
        axes = {"pixels": {2: "height", 3: "width"}, "large": {2: "tall", 3: "wide"}}
        call = _Enlarging(self)
        return {"upscaler": Graph(call, (torch.rand(2, 4, side, side),), ("pixels",), ("large",), dynamic=axes)}


class _Enlarging(nn.Module):
    def __init__(self, upscaler: Upscaler) -> None:
        super().__init__()
        self.upscaler = upscaler
        self.training = upscaler.training

    def forward(self, pixels: Tensor) -> Tensor:
        return self.upscaler.enlarge(pixels)


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), 3x3, same shape (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(channels, channels), _conv(channels, channels)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


def _l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean of |a - b| over all but the rows -> (B,)."""
    return (a - b).abs().flatten(1).mean(1)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """L1, and that of the differences between neighbours, both ways -> (B,)."""
    edges = [_l1(a.diff(dim=axis), b.diff(dim=axis)) for axis in (2, 3)]
    return _l1(a, b) + edges[0] + edges[1]
