"""The RGBA autoencoder whose latents the diffusion model works on.

A plain convolutional autoencoder (arXiv:2112.10752, section 3.1) that works on 2x2 pixel patches from its first
layer on, so no convolution runs at full resolution. It deviates from a VAE in its bottleneck: latents are bounded by
tanh and blurred with noise while training (a fixed posterior width) instead of a learned variance, which keeps them
smooth for diffusion without a KL weight to tune. Pixels are premultiplied RGBA in [-1, 1].
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from imagewright.data.batch import Batch
from imagewright.models.layers import ResidualConv
from imagewright.models.technique import WORDS, Call, Cond, Graph, Prompted, Technique, Words
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


def gaussian_kl(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of each number, in nats. arXiv:1312.6114, appendix B, the negative of each term."""
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 1) - log_sigma


def laplace_nll(mean: Tensor, pixels: Tensor, scale: float) -> Tensor:
    """-log p (B,) of pixels under Laplace(mean, scale), in nats a number. Its best mean is a median: crisp edges."""
    return (pixels - mean).abs().flatten(1).mean(1) / scale + math.log(2 * scale)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """On the arc from each row of `a` (B, N) to that of `b`, its length between theirs. Half way on a straight line
    between two Gaussian samples is shorter than any sample (arXiv:1609.04468, section 2.1)."""
    length_a, length_b = (x.norm(dim=1, keepdim=True).clamp_min(1e-8) for x in (a, b))
    toward_a, toward_b = a / length_a, b / length_b
    angle = (toward_a * toward_b).sum(1, keepdim=True).clamp(-0.9999, 0.9999).acos()
    arc = (((1 - share) * angle).sin() * toward_a + (share * angle).sin() * toward_b) / angle.sin()
    return arc * torch.lerp(length_a, length_b, share)


def upper(code: Tensor, levels: Sequence[int], level: int) -> Tensor:
    """`code` (B, N) with the latents of all levels finer than `level` at their prior's mean."""
    kept = sum(levels[: level + 1])
    return torch.cat([code[:, :kept], torch.zeros_like(code[:, kept:])], dim=1)


class GaussianVAE(Prompted):
    """What plain and hierarchical VAEs share: the bound, Gaussian codes, sampling and export.

    A code (B, N) holds every latent of a picture, whitened: standard normal under the prior. The config has `beta`,
    `free_bits`, `warmup` and `temperature`. The objective is the negative of the evidence lower bound
    (arXiv:1312.6114, equation 3) in nats per dimension, with the KL weighed by beta (arXiv:1804.03599, equation 2).
    """

    family: ClassVar[str] = "vae"
    sampling: ClassVar[tuple[str, ...]] = ("temperature",)
    inputs: tuple[str, ...] = WORDS  # those that the networks look at

    @property
    @abstractmethod
    def levels(self) -> tuple[int, ...]:
        """How many numbers of a code belong to each level, from the coarsest on."""

    @abstractmethod
    def infer(self, pixels: Tensor, noise: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder makes of `pixels` (B, 4, H, W), the KL (B, groups) in nats, and the code (B, N) that
        `noise` (B, N) draws from the posterior; zeros give its means. `condition`: the words named in `inputs`."""

    @abstractmethod
    def generate(self, code: Tensor, *condition: Tensor) -> Tensor:
        """The pictures (B, 4, H, W) of codes (B, N)."""

    @abstractmethod
    def nll(self, made: Tensor, pixels: Tensor) -> Tensor:
        """-log p(pixels | code) (B,), in nats per dimension."""

    @property
    def dimensions(self) -> int:
        """Numbers of a picture that the likelihood speaks of."""
        return 4 * self.pixels**2

    @property
    def pixels(self) -> int:
        """Side of the pictures."""
        return self.config.size

    def condition(self, words: Words) -> tuple[Tensor, ...]:
        """Those of the words that the networks look at."""
        return tuple(value for name, value in zip(WORDS, words.flat(), strict=True) if name in self.inputs)

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """recon + weight * kl, both in nats per dimension; `kl` is logged as it is, without free bits.

        Free bits (arXiv:1606.04934, equation 15) hold for each row alone, so that the loss stays a mean over rows.
        """
        assert batch.pixels is not None
        noise = batch.draws.randn(sum(self.levels)).to(batch.pixels)
        made, kl, _ = self.infer(batch.pixels, noise, *self.condition(self.words(batch)))
        recon = self.nll(made.float(), batch.pixels).mean()
        paid = kl.clamp_min(self.config.free_bits).sum(1).mean() / self.dimensions
        return {
            "loss": recon + self.kl_weight(batch.step) * paid,
            "recon": recon,
            "kl": kl.sum(1).mean() / self.dimensions,
            **self.rates(kl),
        }

    def rates(self, kl: Tensor) -> dict[str, Tensor]:
        """More to log of the KL (B, groups)."""
        return {}

    def kl_weight(self, step: int | None) -> float:
        """beta, risen to over `warmup` steps; whole outside a run."""
        done = 1.0 if step is None or not self.config.warmup else min(1.0, step / self.config.warmup)
        return self.config.beta * done

    def noise(self, seed: int) -> Tensor:
        """Standard normal (1, N), the same on every machine."""
        from imagewright.models.samplers import noise_source

        return torch.from_numpy(noise_source(seed, (1, sum(self.levels)))()).to(next(self.parameters()).device)

    def code(self, seed: int) -> Tensor:
        """The code (1, N) that `sample` starts from with this seed and the config's temperature."""
        return self.noise(seed) * self.config.temperature

    @torch.no_grad()
    def sample(self, cond: Cond, seeds: Sequence[int], *, watch: Watch = Watch(), **options: Any) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1]: the mean of the likelihood, without its noise."""
        chosen, rows = self.chosen(options), []
        for row, seed in enumerate(seeds):
            code, condition = self.noise(seed) * chosen["temperature"], self.guided(cond, row, chosen)
            code = code.expand(len(condition[0]) if condition else 1, -1)
            if watch.tracing:
                for level in range(len(self.levels)):
                    made = self.generate(upper(code, self.levels, level), *condition)
                    watch.shown("level", level, made[0].float().clamp(-1, 1).cpu())
            rows.append(self.generate(code, *condition)[:1].float().clamp(-1, 1))
            watch.told(row + 1, len(seeds))
        return torch.cat(rows)

    def guided(self, cond: Cond, row: int, chosen: dict[str, Any]) -> tuple[Tensor, ...]:
        """What `generate` takes after the code for a row of `cond`."""
        return self.condition(self.wanted_and_avoided(cond, row)[:1])

    @torch.no_grad()
    def invert(self, pixels: Tensor, words: Words, **options: Any) -> Tensor:
        """The posterior's means (B, N)."""
        noise = pixels.new_zeros(len(pixels), sum(self.levels))
        return self.infer(pixels, noise, *self.condition(words))[2]

    @torch.no_grad()
    def render(self, code: Tensor, words: Words, **options: Any) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1] from codes."""
        return self.generate(code, *self.condition(words)).float().clamp(-1, 1)

    def mix(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """On the arc between two codes: see `slerp`."""
        return slerp(a, b, share)

    def graphs(self) -> dict[str, Graph]:
        """generator (code and words -> pixels) and encoder (pixels and words -> code)."""
        code = torch.randn(2, sum(self.levels))
        condition = self.condition(Words(*self.example_words()))
        pixels = 2 * torch.rand(2, 4, self.pixels, self.pixels) - 1

        def encode(pixels: Tensor, *condition: Tensor) -> Tensor:
            return self.infer(pixels, pixels.new_zeros(pixels.shape[0], code.shape[1]), *condition)[2]

        return {
            "generator": Graph(Call(self, self.generate), (code, *condition), ("code", *self.inputs), ("pixels",)),
            "encoder": Graph(Call(self, encode), (pixels, *condition), ("pixels", *self.inputs), ("code",)),
        }

    def runtime(self) -> dict[str, Any]:
        """How many numbers of a code belong to each level, and which words the networks look at."""
        return {"levels": list(self.levels), "inputs": list(self.inputs)}


def _conv(inside: int, outside: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1)


def _gradient(x: Tensor, axis: int) -> Tensor:
    return x.diff(dim=axis)
