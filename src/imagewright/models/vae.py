"""The RGBA autoencoder whose latents the diffusion model works on.

A plain convolutional autoencoder (arXiv:2112.10752, section 3.1) that works on 2x2 pixel patches from its first
layer on, so no convolution runs at full resolution. It deviates from a VAE in its bottleneck: latents are bounded by
tanh and blurred with noise while training (a fixed posterior width) instead of a learned variance, which keeps them
smooth for diffusion without a KL weight to tune. Pixels are premultiplied RGBA in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imagewright.data.batch import Batch
from imagewright.models.layers import ResidualConv
from imagewright.models.technique import Cond, Technique
from imagewright.watch import Watch


@dataclass(frozen=True)
class AutoencoderConfig:
    """`size` pixels a side; one level per entry of `widths`, each halving the side after the first (which works at
    size / 2); `encoder_blocks` and `decoder_blocks` per level; `latent` channels; `noise` added to training latents."""

    size: int = 64
    channels: int = 4
    widths: tuple[int, ...] = (64, 128, 256)
    encoder_blocks: tuple[int, ...] = (1, 1, 1)
    decoder_blocks: tuple[int, ...] = (1, 2, 2)
    latent: int = 16
    noise: float = 0.1

    @property
    def factor(self) -> int:
        """Pixels per latent cell and side."""
        return int(2 ** len(self.widths))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one picture's latents."""
        side = self.size // self.factor
        return self.latent, side, side


class Autoencoder(Technique):
    """`encode`: (B, 4, H, W) -> (B, C, H/f, W/f) in (-1, 1); `decode`: back, f = 2 ** len(widths)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        down: list[nn.Module] = [
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * config.channels, widths[0], 3, padding=1),
        ]
        for i, width in enumerate(widths):
            down += [ResidualConv(width) for _ in range(config.encoder_blocks[i])]
            if i + 1 < len(widths):
                down.append(nn.Conv2d(width, widths[i + 1], 2, stride=2))
        self.encoder = nn.Sequential(*down, nn.GroupNorm(8, widths[-1]), nn.SiLU(), _conv(widths[-1], config.latent))
        up: list[nn.Module] = [_conv(config.latent, widths[-1])]
        for i in reversed(range(len(widths))):
            up += [ResidualConv(widths[i]) for _ in range(config.decoder_blocks[i])]
            if i > 0:  # a 1x1 convolution and a pixel shuffle: cheaper than a transposed one, no checkerboard overlap
                up += [nn.Conv2d(widths[i], 4 * widths[i - 1], 1), nn.PixelShuffle(2)]
        up += [
            nn.GroupNorm(8, widths[0]),
            nn.SiLU(),
            _conv(widths[0], 4 * config.channels),
            nn.PixelShuffle(2),
        ]
        self.decoder = nn.Sequential(*up)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def pixels(self) -> int:
        """Side of the pictures."""
        return self.config.size

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 4, H, W) in [-1, 1] -> (B, C, h, w) in (-1, 1)."""
        return torch.tanh(self.encoder(pixels.contiguous(memory_format=torch.channels_last)))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 4, H, W), about [-1, 1] (not clamped)."""
        return self.decoder(latents.contiguous(memory_format=torch.channels_last))

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """L1 plus L1 of the gradients (edges), after arXiv:2006.09661's use of image gradients."""
        pixels = batch.pixels
        assert pixels is not None
        latents = self.encode(pixels)
        noise = batch.draws.randn(*latents.shape[1:]).to(latents)
        return restoration(self.decode(latents + self.config.noise * noise).float(), pixels)

    @torch.no_grad()
    def sample(self, cond: Cond, seeds: Sequence[int], *, watch: Watch = Watch(), **options: Any) -> Tensor:
        """Decoded noise: an autoencoder has no prior, so this shows only that the decoder runs."""
        from imagewright.models.samplers import noise_source

        rows = [torch.from_numpy(noise_source(s, self.config.latent_shape)()) for s in seeds]
        return self.decode(torch.tanh(torch.stack(rows))).clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Through the bottleneck and back, clamped to [-1, 1]."""
        return self.decode(self.encode(pixels)).clamp(-1, 1)


def restoration(restored: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """How far `restored` is from `pixels`, both (B, 4, H, W): `loss` (l1 and that of the edges), `l1`, `psnr` in dB."""
    l1 = (restored - pixels).abs().mean()
    edges = sum((_gradient(restored, axis) - _gradient(pixels, axis)).abs().mean() for axis in (2, 3))
    with torch.no_grad():
        psnr = -10 * torch.log10(((restored - pixels) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)).mean()
    return {"loss": l1 + edges, "l1": l1, "psnr": psnr}


def _conv(inside: int, outside: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1)


def _gradient(x: Tensor, axis: int) -> Tensor:
    return x.diff(dim=axis)
