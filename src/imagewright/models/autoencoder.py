"""The RGBA autoencoder whose latents the diffusion model and the GAN work on.

Plain and convolutional (arXiv:2112.10752, section 3.1), on 2x2 pixel patches from its first layer on, so no convolution
runs at full resolution. It deviates from a VAE in its bottleneck: latents are bounded by tanh and blurred with noise
while training (a fixed posterior width) instead of a learned variance, which keeps them smooth for diffusion without a
KL weight to tune. Pixels are premultiplied RGBA in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import Batch
from imagewright.models.layers import ResidualConv, compile_each
from imagewright.models.technique import Cond, Phase, Technique, sort_parameters
from imagewright.watch import Watch

LARGE = 2  # times the side of the pictures that an autoencoder with `detail` also makes
HEAD = 4  # of the decoder's layers make pixels of its last features


@dataclass(frozen=True)
class AutoencoderConfig:
    """`size` pixels a side; one level per entry of `widths`, each halving the side after the first (which works at
    size / 2); `encoder_blocks` and `decoder_blocks` per level; `latent` channels; `noise` added to training latents;
    `adversarial`: weight of a patch discriminator's opinion (0: there is none). `detail`: channels of the part that
    makes pictures of twice the size from the decoder's last features (0: there is none). `frozen`: the encoder stays as
    it is, for the models that know its latents."""

    size: int = 64
    channels: int = 4
    widths: tuple[int, ...] = (64, 128, 256)
    encoder_blocks: tuple[int, ...] = (1, 1, 1)
    decoder_blocks: tuple[int, ...] = (1, 2, 2)
    latent: int = 16
    noise: float = 0.1
    adversarial: float = 0.0
    detail: int = 0
    frozen: bool = False

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
        self.encoder, self.decoder = conv_encoder(config), conv_decoder(config)
        self.encoder.requires_grad_(not config.frozen)
        self.detail = conv_detail(config) if config.detail else None
        self.discriminator = PatchDiscriminator(config.channels) if config.adversarial else None
        if config.adversarial and config.detail:
            raise ValueError("A discriminator and detail do not go together.")
        if config.adversarial:
            self.phases = (Phase("discriminator"), Phase())  # type: ignore[misc]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def pixels(self) -> int:
        """Side of the pictures that it learns from: of the larger ones, if it makes them."""
        return self.config.size * (1 if self.detail is None else LARGE)

    def compile_(self) -> None:
        """Compile encoder and decoder in place (torch.compile); parameter names stay."""
        compile_each([self.encoder, self.decoder])

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 4, H, W) in [-1, 1] -> (B, C, h, w) in (-1, 1)."""
        return torch.tanh(self.encoder(pixels.contiguous(memory_format=torch.channels_last)))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 4, H, W), about [-1, 1] (not clamped)."""
        return self.decoder(latents.contiguous(memory_format=torch.channels_last))

    def decode_both(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> what `decode` gives, and the same picture twice as large, with more detail."""
        assert self.detail is not None
        features = self.decoder[:-HEAD](latents.contiguous(memory_format=torch.channels_last))
        pixels = self.decoder[-HEAD:](features)
        larger = F.interpolate(pixels, scale_factor=LARGE, mode="bilinear", align_corners=False)
        return pixels, larger + self.detail(features)

    def param_groups(self, phase: str = "main") -> dict[str, list[nn.Parameter]]:
        """Those of the discriminator in its phase, else all others."""
        critic = set() if self.discriminator is None else set(self.discriminator.parameters())
        sorted_ = sort_parameters(self).items()
        return {name: [p for p in group if (p in critic) == (phase == "discriminator")] for name, group in sorted_}

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """L1 plus L1 of the gradients (edges), after arXiv:2006.09661's use of image gradients.

        With a discriminator also the hinge losses of arXiv:1705.02894, section 3.3, under a fixed weight: the adaptive
        one of arXiv:2012.09841, equation 7, would not be a mean over rows."""
        pixels = batch.pixels
        assert pixels is not None
        small = pixels if self.detail is None else F.avg_pool2d(pixels, LARGE)
        latents = self.encode(small)
        noise = batch.draws.randn(*latents.shape[1:]).to(latents)
        noised = latents + self.config.noise * noise
        if self.detail is not None:
            return _restorations(*self.decode_both(noised), small, pixels)
        restored = self.decode(noised).float()
        if self.discriminator is None:
            return restoration(restored, pixels)
        judged = self.discriminator(restored)
        if phase == "discriminator":
            real = self.discriminator(pixels)
            return {"loss": (F.relu(1 - real) + F.relu(1 + judged)).mean(), "real": real.mean(), "made": judged.mean()}
        losses = restoration(restored, pixels)
        return {**losses, "loss": losses["loss"] - self.config.adversarial * judged.mean(), "judged": judged.mean()}

    @torch.no_grad()
    def sample(self, cond: Cond, seeds: Sequence[int], *, watch: Watch = Watch(), **options: Any) -> Tensor:
        """Decoded noise: an autoencoder has no prior, so this shows only that the decoder runs."""
        from imagewright.models.samplers import noise_source

        rows = [torch.from_numpy(noise_source(s, self.config.latent_shape)()) for s in seeds]
        return self.decode(torch.tanh(torch.stack(rows))).clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Through the bottleneck and back, clamped to [-1, 1]."""
        if self.detail is None:
            return self.decode(self.encode(pixels)).clamp(-1, 1)
        return self.decode_both(self.encode(F.avg_pool2d(pixels, LARGE)))[1].clamp(-1, 1)


def conv_encoder(config: AutoencoderConfig) -> nn.Sequential:
    """(B, channels, H, W) -> (B, latent, h, w), unbounded."""
    widths = config.widths
    down: list[nn.Module] = [nn.PixelUnshuffle(2), _conv(4 * config.channels, widths[0])]
    for i, width in enumerate(widths):
        down += [ResidualConv(width) for _ in range(config.encoder_blocks[i])]
        if i + 1 < len(widths):
            down.append(nn.Conv2d(width, widths[i + 1], 2, stride=2))
    return nn.Sequential(*down, nn.GroupNorm(8, widths[-1]), nn.SiLU(), _conv(widths[-1], config.latent))


def conv_decoder(config: AutoencoderConfig) -> nn.Sequential:
    """(B, latent, h, w) -> (B, channels, H, W)."""
    widths = config.widths
    up: list[nn.Module] = [_conv(config.latent, widths[-1])]
    for i in reversed(range(len(widths))):
        up += [ResidualConv(widths[i]) for _ in range(config.decoder_blocks[i])]
        if i > 0:  # a 1x1 convolution and a pixel shuffle: cheaper than a transposed one, no checkerboard overlap
            up += [nn.Conv2d(widths[i], 4 * widths[i - 1], 1), nn.PixelShuffle(2)]
    up += [nn.GroupNorm(8, widths[0]), nn.SiLU(), _conv(widths[0], 4 * config.channels), nn.PixelShuffle(2)]
    return nn.Sequential(*up)


def conv_detail(config: AutoencoderConfig) -> nn.Sequential:
    """The decoder's last features (B, widths[0], H / 2, W / 2) -> what twice its picture lacks, (B, channels, 2H, 2W);
    nothing at first."""
    fine, out = config.detail, nn.Conv2d(config.detail, 4 * config.channels, 3, padding=1)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)  # type: ignore[arg-type]
    rise = [nn.Conv2d(config.widths[0], 4 * fine, 1), nn.PixelShuffle(2), ResidualConv(fine)]
    return nn.Sequential(*rise, nn.GroupNorm(8, fine), nn.SiLU(), out, nn.PixelShuffle(LARGE))


class PatchDiscriminator(nn.Module):
    """Whether each patch looks real: (B, C, H, W) -> (B, 1, H/8, W/8), after arXiv:1611.07004, section 3.2.2, with
    group norms, because batch norms would mix the rows."""

    def __init__(self, channels: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for inside in (width, 2 * width):
            layers += [nn.Conv2d(inside, 2 * inside, 4, stride=2, padding=1), nn.GroupNorm(8, 2 * inside)]
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, _conv(4 * width, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels).float()


def restoration(restored: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """How far `restored` is from `pixels`, both (B, 4, H, W): `loss` (l1 and that of the edges), `l1`, `psnr` in dB."""
    l1 = (restored - pixels).abs().mean()
    edges = sum((_gradient(restored, axis) - _gradient(pixels, axis)).abs().mean() for axis in (2, 3))
    with torch.no_grad():
        psnr = -10 * torch.log10(((restored - pixels) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)).mean()
    return {"loss": l1 + edges, "l1": l1, "psnr": psnr}


def _restorations(small: Tensor, large: Tensor, smaller: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    """`restoration` of both sizes, (B, 4, H, W) and twice that; logged is that of the large pictures."""
    found = restoration(large.float(), pixels)
    return {**found, "loss": found["loss"] + restoration(small.float(), smaller)["loss"]}


def _conv(inside: int, outside: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1)


def _gradient(x: Tensor, axis: int) -> Tensor:
    return x.diff(dim=axis)
