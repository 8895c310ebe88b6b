"""The seam between pixels and what a model works on. Diffusion runs on either and knows neither.

An encoder has `shape` (C, h, w), `encode(pixels) -> x` with about unit variance, `decode(x) -> pixels`, and `graphs`
for export. Codes are for the autoregressive models: whole numbers of `shape` (h, w), or (N,) in several scales.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from imagewright.models.autoencoder import Autoencoder, AutoencoderConfig
from imagewright.models.technique import Call, Graph
from imagewright.models.vqvae import PictureTokenizer, TokenizerConfig


@dataclass(frozen=True)
class PixelsConfig:
    """Work on the pixels themselves: `size` a side, `channels` of premultiplied RGBA."""

    size: int = 32
    channels: int = 4


@dataclass(frozen=True)
class LatentsConfig:
    """Work on the latents of an autoencoder that is part of the model, frozen."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)


@dataclass(frozen=True)
class CodesConfig:
    """Work on the codes of a picture tokenizer that is part of the model, frozen."""

    autoencoder: TokenizerConfig = field(default_factory=TokenizerConfig)


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

    def decode_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `decode` gives, and the same pictures twice as large; of an autoencoder with detail only."""
        return self.autoencoder.decode_both(x * self.std + self.mean)

    def graphs(self) -> dict[str, Graph]:
        """decoder and encoder; the decoder of an autoencoder with detail also gives `large` pictures."""
        graphs = _both_ways(self)
        if self.autoencoder.detail is not None:
            call, outputs = Call(self, self.decode_both), ("pixels", "large")
            graphs["decoder"] = replace(graphs["decoder"], module=call, outputs=outputs)
        return graphs

    @torch.no_grad()
    def fit(self, latents: Tensor) -> None:
        """Set mean and std from raw autoencoder latents (N, C, h, w)."""
        self.mean.copy_(latents.mean((0, 2, 3)).view_as(self.mean))
        self.std.copy_(latents.std((0, 2, 3)).view_as(self.std).clamp_min(1e-3))


class Codes(nn.Module):
    """Codes of a frozen picture tokenizer, int64."""

    def __init__(self, config: CodesConfig) -> None:
        super().__init__()
        self.config = config.autoencoder
        side = self.config.scales[-1]
        self.shape = (self.config.positions,) if self.config.coarse_scales else (side, side)
        self.autoencoder = PictureTokenizer(self.config).requires_grad_(False)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """In float32 even under autocast: rounding could move a code to its neighbour."""
        with torch.autocast(pixels.device.type, enabled=False):
            return self.autoencoder.tokens(pixels.float()).unflatten(1, self.shape)

    def decode(self, x: Tensor, made: Tensor | None = None) -> Tensor:
        """`made`, shaped like the codes x: 0 where a code is still to come and counts for nothing."""
        return self.autoencoder.pictures(x.flatten(1), None if made is None else made.flatten(1))

    def graphs(self) -> dict[str, Graph]:
        codes, size = torch.zeros(2, *self.shape, dtype=torch.long), self.config.size
        pixels = torch.zeros(2, self.config.channels, size, size)
        return {
            "decoder": Graph(Call(self, self.decode), (codes, torch.ones(codes.shape)), ("x", "made"), ("pixels",)),
            "encoder": Graph(Call(self, self.encode), (pixels,), ("pixels",), ("x",)),
        }


def build_encoder(config: PixelsConfig | LatentsConfig) -> Pixels | KLLatents:
    """The encoder that a config type names."""
    return Pixels(config) if isinstance(config, PixelsConfig) else KLLatents(config)


def _both_ways(encoder: Pixels | KLLatents) -> dict[str, Graph]:
    """decoder (x -> pixels) and encoder (pixels -> x), for export."""
    x = torch.randn(2, *encoder.shape)
    with torch.no_grad():
        pixels = encoder.decode(x)
    return {
        "decoder": Graph(Call(encoder, encoder.decode), (x,), ("x",), ("pixels",), precise=True),
        "encoder": Graph(Call(encoder, encoder.encode), (pixels,), ("pixels",), ("x",)),
    }
