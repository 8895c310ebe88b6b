"""The seam between pixels and what a model works on. Diffusion runs on either and knows neither.

An encoder has `shape` (C, h, w), `encode(pixels) -> x` with about unit variance, `decode(x) -> pixels`, and `graphs`
for export.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from imagewright.models.technique import Call, Graph
from imagewright.models.vae import Autoencoder, AutoencoderConfig


@dataclass(frozen=True)
class PixelsConfig:
    """Work on the pixels themselves: `size` a side, `channels` of premultiplied RGBA."""

    size: int = 32
    channels: int = 4


@dataclass(frozen=True)
class LatentsConfig:
    """Work on the latents of an autoencoder that is part of the model, frozen."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)


class Pixels(nn.Module):
    """The identity, scaled: premultiplied RGBA in [-1, 1] has a deviation near 0.5 of its own."""

    scale = 2.0

    def __init__(self, config: PixelsConfig) -> None:
        super().__init__()
        self.shape = (config.channels, config.size, config.size)

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels * self.scale

    def decode(self, x: Tensor) -> Tensor:
        return x / self.scale

    def graphs(self) -> dict[str, Graph]:
        return _both_ways(self)


class KLLatents(nn.Module):
    """Latents of a frozen autoencoder, each channel shifted and scaled to zero mean and unit deviation."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: LatentsConfig) -> None:
        super().__init__()
        self.shape = config.autoencoder.latent_shape
        self.autoencoder = Autoencoder(config.autoencoder).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(self.shape[0], 1, 1))
        self.register_buffer("std", torch.ones(self.shape[0], 1, 1))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        return (self.autoencoder.encode(pixels).float() - self.mean) / self.std

    def decode(self, x: Tensor) -> Tensor:
        return self.autoencoder.decode(x * self.std + self.mean)

    def graphs(self) -> dict[str, Graph]:
        return _both_ways(self)

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Set mean and std from raw autoencoder latents (N, C, h, w)."""
        self.mean.copy_(latents.mean((0, 2, 3)).view_as(self.mean))
        self.std.copy_(latents.std((0, 2, 3)).view_as(self.std).clamp_min(1e-3))


def build_encoder(config: PixelsConfig | LatentsConfig) -> Pixels | KLLatents:
    """The encoder that a config type names."""
    return Pixels(config) if isinstance(config, PixelsConfig) else KLLatents(config)


def _both_ways(encoder: Pixels | KLLatents) -> dict[str, Graph]:
    """decoder (x -> pixels) and encoder (pixels -> x), for export."""
    x = torch.randn(2, *encoder.shape)
    with torch.no_grad():
        pixels = encoder.decode(x)
    return {
        "decoder": Graph(Call(encoder, encoder.decode), (x,), ("x",), ("pixels",)),
        "encoder": Graph(Call(encoder, encoder.encode), (pixels,), ("pixels",), ("x",)),
    }
