"""The picture tokenizer: an autoencoder whose latents are codes, which the autoregressive models predict.

The network is the Autoencoder's. Its latents are quantised by

    fsq   rounding each channel to a few levels     finite scalar quantisation, arXiv:2309.15505
    vq    the nearest of K learned vectors          VQ-VAE, arXiv:1711.00937

and with several `scales` by residual quantisation from coarse to fine in one code space (arXiv:2404.02905,
algorithms 1 and 2). Deviations: FSQ's levels lie symmetrically on [-1, 1] whether their number is even or odd, and
tanh is the network's own last step; codes that VQ no longer uses are put where the data is; scales are resampled by
fixed matrices (area down, linear up), which every runtime can multiply by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import Batch, Draws
from imagewright.models.autoencoder import Autoencoder, AutoencoderConfig, restoration
from imagewright.models.technique import Cond
from imagewright.watch import Watch

FORGET = 0.98  # per batch, of how often each code was used
DEAD = 0.05  # of the mean use: a code below is restarted


@dataclass(frozen=True)
class TokenizerConfig(AutoencoderConfig):
    """`quantiser`: fsq with `levels` per latent channel, or vq with a `codebook` of that many vectors and the weight
    `commitment`. `coarse_scales`: sides of the code maps before the one that is as fine as the latents."""

    widths: tuple[int, ...] = (48, 96, 160)
    latent: int = 4
    noise: float = 0.0
    quantiser: Literal["fsq", "vq"] = "fsq"
    levels: tuple[int, ...] = (8, 8, 8, 8)
    codebook: int = 4096
    commitment: float = 0.25
    coarse_scales: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.adversarial:
            raise ValueError("The picture tokenizer has no adversarial loss.")
        if self.quantiser == "fsq" and len(self.levels) != self.latent:
            raise ValueError(f"There are {len(self.levels)} levels for {self.latent} latent channels.")

    @property
    def scales(self) -> tuple[int, ...]:
        """Sides of the code maps, coarse to fine; the last is the latents'."""
        return (*self.coarse_scales, self.latent_shape[1])

    @property
    def codes(self) -> int:
        """How many different codes there are."""
        return math.prod(self.levels) if self.quantiser == "fsq" else self.codebook

    @property
    def positions(self) -> int:
        """Codes of one picture, over all scales."""
        return sum(side * side for side in self.scales)


class FSQ(nn.Module):
    """Codes are mixed-radix numbers of the channels' levels."""

    levels: Tensor
    radix: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("radix", torch.tensor([1, *levels[:-1]]).cumprod(0), persistent=False)

    def codes(self, z: Tensor) -> Tensor:
        """(..., C) -> (...) int64."""
        digits = ((z.clamp(-1, 1) + 1) / 2 * (self.levels - 1)).round().long()
        return (digits * self.radix).sum(-1)

    def values(self, codes: Tensor) -> Tensor:
        """(...) -> (..., C) in [-1, 1]."""
        digits = torch.div(codes[..., None], self.radix, rounding_mode="floor") % self.levels
        return digits * 2 / (self.levels - 1) - 1


class VQ(nn.Module):
    """Codes are rows of a learned `codebook` (K, C)."""

    used: Tensor

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(0.5 * torch.randn(size, channels))
        self.register_buffer("used", torch.zeros(size))  # so that the first batch places the codes

    def codes(self, z: Tensor) -> Tensor:
        """(..., C) -> (...) int64, the nearest row."""
        book = self.codebook.detach()
        return (book.square().sum(1) - 2 * z.detach() @ book.T).argmin(-1)

    def values(self, codes: Tensor) -> Tensor:
        """(...) -> (..., C)."""
        return F.embedding(codes, self.codebook)

    @torch.no_grad()
    def restart(self, z: Tensor, codes: Tensor, draws: Draws) -> None:
        """Put codes that are hardly used where vectors of this batch are. z (B, N, C), codes (B, N).

        Which vectors is drawn for the global batch, so that all processes restart the same codes at the same places.
        """
        size, (_, N, C) = len(self.codebook), z.shape
        counts = _summed(torch.bincount(codes.flatten(), minlength=size).to(self.used))
        self.used.lerp_(counts * (size / counts.sum()), 1 - FORGET)
        picks = (torch.rand(size, generator=draws.generator, device=draws.generator.device) * draws.total * N).long()
        picks = (picks - draws.start * N).to(z.device)
        own = (picks >= 0) & (picks < z.shape[0] * N)
        vectors = torch.zeros(size, C, device=z.device)
        vectors[own] = z.reshape(-1, C)[picks[own]].float()
        vectors = _summed(vectors)
        dead = self.used < DEAD
        self.codebook[dead] = vectors[dead]
        self.used[dead] = 1.0


def _summed(x: Tensor) -> Tensor:
    """`x` added up over the processes that train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
    return x


class PictureTokenizer(Autoencoder):
    """`tokens`: (B, 4, H, W) -> codes (B, N) int64, coarse scales first; `pictures`: back.

    `encode` and `decode` are the Autoencoder's: continuous latents before, and any latents after quantising.
    """

    config: TokenizerConfig

    def __init__(self, config: TokenizerConfig) -> None:
        if config.detail:
            raise ValueError("A tokenizer makes pictures of one size only.")
        super().__init__(config)
        self.quantiser = FSQ(config.levels) if config.quantiser == "fsq" else VQ(config.codebook, config.latent)
        many = len(config.scales) > 1
        self.spread = nn.ModuleList(_halfway(config.latent) for _ in config.scales if many)
        side = config.scales[-1]
        for i, scale in enumerate(config.scales):
            self.register_buffer(f"down{i}", _resample(side, scale, "area"), persistent=False)
            self.register_buffer(f"up{i}", _resample(scale, side, "linear"), persistent=False)

    @property
    def learned(self) -> bool:
        """Whether anything between codes and latents is: FSQ of one scale has nothing to teach."""
        return isinstance(self.quantiser, VQ) or len(self.spread) > 0

    def widened(self, values: Tensor, index: int) -> Tensor:
        """What the values (B, s, s, C) of one scale add to the latents, (B, C, h, w)."""
        values = values.permute(0, 3, 1, 2)  # (B, C, s, s)
        if not self.spread:
            return values
        up = getattr(self, f"up{index}")
        wide = up @ values @ up.T
        return (wide + self.spread[index](wide)) / 2

    def narrowed(self, z: Tensor, index: int) -> Tensor:
        """Latents (B, C, h, w) at the side of one scale, (B, C, s, s)."""
        down = getattr(self, f"down{index}")
        return down @ z @ down.T if self.spread else z

    def quantise(self, z_e: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """z_e (B, C, h, w) -> the z_q (B, C, h, w) after each scale, what was quantised (B, N, C), codes (B, N)."""
        with torch.autocast(z_e.device.type, enabled=False):
            z_e = z_e.float()
            z_q, sums, vectors, codes = torch.zeros_like(z_e), [], [], []
            for index in range(len(self.config.scales)):
                rest = self.narrowed(z_e.detach() - z_q.detach(), index).permute(0, 2, 3, 1)  # (B, s, s, C)
                found = self.quantiser.codes(rest)
                z_q = z_q + self.widened(self.quantiser.values(found), index)
                sums.append(z_q)
                vectors.append(rest.flatten(1, 2))
                codes.append(found.flatten(1))
            return sums, torch.cat(vectors, dim=1), torch.cat(codes, dim=1)

    def tokens(self, pixels: Tensor) -> Tensor:
        """(B, 4, H, W) in [-1, 1] -> (B, N) int64."""
        return self.quantise(self.encode(pixels))[2]

    def sums(self, codes: Tensor, made: Tensor | None = None) -> list[Tensor]:
        """The z_q (B, C, h, w) after each scale of codes (B, N); where `made` (B, N) is 0 a code counts for nothing."""
        values = self.quantiser.values(codes)  # (B, N, C)
        if made is not None:
            values = values * made[..., None]
        parts = values.split([side * side for side in self.config.scales], dim=1)
        squares = [part.unflatten(1, (side, side)) for part, side in zip(parts, self.config.scales, strict=True)]
        return list(accumulate(self.widened(square, index) for index, square in enumerate(squares)))

    def pictures(self, codes: Tensor, made: Tensor | None = None) -> Tensor:
        """(B, N) -> (B, 4, H, W), about [-1, 1] (not clamped); `made` as in `sums`."""
        return self.decode(self.sums(codes, made)[-1])

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """The Autoencoder's, through the codes; with learned vectors also both terms of arXiv:1711.00937,
        equation 3, averaged over the scales. `used`: how many codes the batch uses, `perplexity`: how evenly."""
        pixels, config = batch.pixels, self.config
        assert pixels is not None
        z_e = self.encode(pixels).float()
        sums, vectors, codes = self.quantise(z_e)
        z_q = z_e + (sums[-1] - z_e).detach()  # straight through
        if config.noise:
            z_q = z_q + config.noise * batch.draws.randn(*z_q.shape[1:]).to(z_q)
        losses = restoration(self.decode(z_q).float(), pixels)
        if self.learned:
            losses["codebook"] = torch.stack([F.mse_loss(z, z_e.detach()) for z in sums]).mean()
            losses["commitment"] = torch.stack([F.mse_loss(z_e, z.detach()) for z in sums]).mean()
            losses["loss"] = losses["loss"] + losses["codebook"] + config.commitment * losses["commitment"]
        with torch.no_grad():
            ones = torch.ones(codes.numel(), device=codes.device)  # not bincount: a GPU would have to wait for it
            share = torch.zeros(config.codes, device=codes.device).index_add_(0, codes.flatten(), ones) / len(ones)
            losses["used"] = (share > 0).sum().float()
            losses["perplexity"] = torch.special.entr(share).sum().exp()
        if isinstance(self.quantiser, VQ) and self.training and torch.is_grad_enabled():
            self.quantiser.restart(vectors, codes, batch.draws)
        return losses

    @torch.no_grad()
    def sample(self, cond: Cond, seeds: Sequence[int], *, watch: Watch = Watch(), **options: Any) -> Tensor:
        """Decoded random codes: a tokenizer has no prior, so this shows only that the decoder runs."""
        shape, count = self.config.positions, self.config.codes
        rows = [np.random.Generator(np.random.Philox(seed)).integers(count, size=shape) for seed in seeds]
        return self.pictures(torch.from_numpy(np.stack(rows))).clamp(-1, 1)

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Through the codes and back, clamped to [-1, 1]."""
        return self.pictures(self.tokens(pixels)).clamp(-1, 1)


def _halfway(channels: int) -> nn.Conv2d:
    """What arXiv:2404.02905 calls phi, starting near the identity."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight)
    return conv


def _resample(side: int, to: int, mode: str) -> Tensor:
    """The matrix (to, side) that resamples one axis."""
    rows = torch.eye(side)[None]
    return (rows if side == to else F.interpolate(rows, size=to, mode=mode))[0].T.contiguous()
