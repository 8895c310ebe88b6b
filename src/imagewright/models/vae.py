"""Variational autoencoders.

`VAE` is the one of arXiv:1312.6114: the articles' two layers on grey pictures, or the autoencoder's convolutions around
one Gaussian vector; words and style go into both of its halves. `GaussianVAE` is what it shares with the hierarchical
one (hvae.py). Pixels are premultiplied RGBA in [-1, 1].
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import Batch
from imagewright.models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    conv_decoder,
    conv_encoder,
    restoration,
)
from imagewright.models.start import departed
from imagewright.models.technique import WORDS, Call, Cond, Graph, Prompted, Words
from imagewright.models.text import TextConfig
from imagewright.source import Source
from imagewright.watch import Watch


def gaussian_kl(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) of each number, in nats. arXiv:1312.6114, appendix B, the negative of each term."""
    return 0.5 * (mu.square() + (2 * log_sigma).exp() - 1) - log_sigma


def laplace_nll(mean: Tensor, x: Tensor, scale: float) -> Tensor:
    """-log p (B,) of x under Laplace(mean, scale), in nats a number. Its best mean is a median: crisp edges."""
    return (x - mean).abs().flatten(1).mean(1) / scale + math.log(2 * scale)


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

    A code (B, N) holds every latent of a picture, whitened: standard normal under the prior. The networks work on x:
    the pixels, or what an encoder makes of them. The config has `beta`, `free_bits`, `warmup` and `temperature`. The
    objective is the negative of the evidence lower bound (arXiv:1312.6114, equation 3) in nats per dimension, with the
    KL weighed by beta (arXiv:1804.03599, equation 2).
    """

    family: ClassVar[str] = "vae"
    sampling: ClassVar[tuple[str, ...]] = ("temperature",)
    inputs: tuple[str, ...] = WORDS  # those that the networks look at

    @property
    @abstractmethod
    def levels(self) -> tuple[int, ...]:
        """How many numbers of a code belong to each level, from the coarsest on."""

    @abstractmethod
    def infer(self, x: Tensor, noise: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder makes of `x` (B, C, h, w), the KL (B, groups) in nats, and the code (B, N) that `noise`
        (B, N) draws from the posterior; zeros give its means. `condition`: the words named in `inputs`."""

    @abstractmethod
    def generate(self, code: Tensor, *condition: Tensor) -> Tensor:
        """The x (B, C, h, w) of codes (B, N)."""

    @abstractmethod
    def nll(self, made: Tensor, x: Tensor) -> Tensor:
        """-log p(x | code) (B,), in nats per dimension."""

    def encoded(self, pixels: Tensor) -> Tensor:
        """The x (B, C, h, w) of pixels (B, 4, H, W)."""
        return pixels

    def decoded(self, x: Tensor) -> Tensor:
        """The pixels (B, 4, H, W) of x, about [-1, 1] (not clamped)."""
        return x

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one x."""
        return 4, self.pixels, self.pixels

    @property
    def dimensions(self) -> int:
        """Numbers of x that the likelihood speaks of."""
        return math.prod(self.shape)

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
        x = batch.latents
        if x is None:
            assert batch.pixels is not None
            x = self.encoded(batch.pixels)
        noise = batch.draws.randn(sum(self.levels)).to(x)
        return self.bound(x, noise, self.condition(self.words(batch)) if self.inputs else (), batch)

    def bound(self, x: Tensor, noise: Tensor, condition: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """What `loss` gives, for the x (B, C, h, w) of the rows of `batch` and the noise (B, N) of their codes."""
        made, kl, _ = self.infer(x, noise, *condition)
        recon = self.nll(made.float(), x).mean()
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

    @property
    def edits(self) -> tuple[str, ...]:
        """A code belongs to the whole of a picture: it can be left and met half way, but has no part for a hole."""
        return "image", "images"

    @torch.no_grad()
    def sample(
        self,
        cond: Cond,
        seeds: Sequence[int],
        *,
        watch: Watch = Watch(),
        source: Source | None = None,
        **options: Any,
    ) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1]: the mean of the likelihood, without its noise."""
        chosen = self.chosen(options)
        rows: list[Tensor] = []
        for row, seed in enumerate(seeds):
            code, condition = self.noise(seed) * chosen["temperature"], self.guided(cond, row, chosen)
            if source is not None:
                words = self.condition(self.wanted_and_avoided(cond, row)[:1])
                noise = code.new_zeros(1, sum(self.levels))
                shown = [self.encoded(pixels) for pixels in torch.from_numpy(source.pixels).to(code.device).split(1)]
                each = [self.infer(x, noise, *words)[2].cpu().numpy() for x in shown]
                code = torch.from_numpy(departed(each, code.cpu().numpy(), source.strength)).to(code.device)
            code = code.expand(len(condition[0]) if condition else 1, -1)
            if watch.tracing:
                for level in range(len(self.levels)):
                    watch.shown("level", level, self._first(upper(code, self.levels, level), condition)[0].cpu())
            rows.append(self._first(code, condition))
            watch.told(row + 1, len(seeds))
        return torch.cat(rows)

    def _first(self, code: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """The picture (1, 4, H, W) of the first row."""
        return self.decoded(self.generate(code, *condition)[:1].float()).clamp(-1, 1)

    def guided(self, cond: Cond, row: int, chosen: dict[str, Any]) -> tuple[Tensor, ...]:
        """What `generate` takes after the code for a row of `cond`."""
        return self.condition(self.wanted_and_avoided(cond, row)[:1])

    @torch.no_grad()
    def invert(self, pixels: Tensor, words: Words, **options: Any) -> Tensor:
        """The posterior's means (B, N)."""
        noise = pixels.new_zeros(len(pixels), sum(self.levels))
        return self.infer(self.encoded(pixels), noise, *self.condition(words))[2]

    @torch.no_grad()
    def render(self, code: Tensor, words: Words, **options: Any) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1] from codes."""
        return self.decoded(self.generate(code, *self.condition(words)).float()).clamp(-1, 1)

    def mix(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """On the arc between two codes: see `slerp`."""
        return slerp(a, b, share)

    def graphs(self) -> dict[str, Graph]:
        """generator (code and words -> pixels) and encoder (pixels and words -> code)."""
        return self.both_ways("encoder", "pixels")

    def both_ways(self, inference: str, x: str) -> dict[str, Graph]:
        """generator (code and words -> x) and the part `inference` (x and words -> code), with the name of x."""
        condition, numbers = self.condition(Words(*self.example_words())), sum(self.levels)

        def found(x: Tensor, *condition: Tensor) -> Tensor:
            return self.infer(x, x.new_zeros(x.shape[0], numbers), *condition)[2]

        examples = torch.randn(2, numbers), 2 * torch.rand(2, *self.shape) - 1
        return {
            "generator": Graph(Call(self, self.generate), (examples[0], *condition), ("code", *self.inputs), (x,)),
            inference: Graph(Call(self, found), (examples[1], *condition), (x, *self.inputs), ("code",)),
        }

    def runtime(self) -> dict[str, Any]:
        """How many numbers of a code belong to each level, which words the networks look at, and the edits."""
        return {"levels": list(self.levels), "inputs": list(self.inputs), "edits": list(self.edits)}


@dataclass(frozen=True)
class VAEConfig:
    """`size` pixels a side. With `widths`, the Autoencoder's levels of one block each and RGBA pixels; without, one
    layer of `hidden` units on each side and grey pixels. `latent` numbers make a code. `conditional`: words and style
    go into both halves, through `cond` channels. `scale` of the Laplace pixels; `beta`, `free_bits` (nats a number of
    the code), `warmup` steps of the KL; `drop_text`, `drop_style`: shares of rows trained without; `temperature`: the
    default of sampling."""

    size: int = 64
    widths: tuple[int, ...] = (64, 128, 256)
    hidden: int = 400
    latent: int = 128
    conditional: bool = True
    cond: int = 128
    styles: int = 6
    text: TextConfig = field(default_factory=TextConfig)
    train_text: bool = False
    drop_text: float = 0.1
    drop_style: float = 0.15
    scale: float = 0.2
    beta: float = 1.0
    free_bits: float = 0.0
    warmup: int = 300
    temperature: float = 0.7

    @property
    def factor(self) -> int:
        """What the side of the pictures must be a multiple of."""
        return int(2 ** len(self.widths))

    @property
    def autoencoder(self) -> AutoencoderConfig:
        """The convolutional networks around the code."""
        once = (1,) * len(self.widths)
        return AutoencoderConfig(self.size, 4, self.widths, once, once, latent=16)


class VAE(GaussianVAE):
    """One Gaussian vector a picture: arXiv:1312.6114, with words and style as arXiv:1406.5298's M2 has its labels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        self.inputs = ("pooled", "style") if config.conditional else ()
        cond = config.cond if config.conditional else 0
        if config.conditional:
            self.pooled = nn.Linear(config.text.width, cond)
            self.style = nn.Embedding(config.styles, cond)
        if config.widths:
            shape = config.autoencoder.latent_shape
            inside = math.prod(shape)
            self.encoder = nn.Sequential(conv_encoder(config.autoencoder), nn.SiLU(), nn.Flatten())
            decoder = conv_decoder(config.autoencoder)
            nn.init.constant_(decoder[-2].bias, -1.0)  # type: ignore[arg-type]  # transparent, as most pixels are
            self.decoder = nn.Sequential(nn.Unflatten(1, shape), decoder)
        else:
            inside = config.hidden
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(config.size**2, inside), nn.ReLU())
            square = nn.Unflatten(1, (1, config.size, config.size))
            self.decoder = nn.Sequential(nn.ReLU(), nn.Linear(inside, config.size**2), square)
        self.posterior = nn.Linear(inside + cond, 2 * config.latent)
        self.lift = nn.Linear(config.latent + cond, inside)

    @property
    def levels(self) -> tuple[int, ...]:
        """One."""
        return (self.config.latent,)

    @property
    def dimensions(self) -> int:
        """See GaussianVAE: a grey pixel counts once."""
        return super().dimensions if self.config.widths else self.config.size**2

    def infer(self, x: Tensor, noise: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See GaussianVAE: z = mu + sigma * noise (arXiv:1312.6114, section 2.4)."""
        features = self.encoder(x if self.config.widths else 2 * grey(x) - 1)
        mu, log_sigma = self.posterior(self._with(features, condition)).float().chunk(2, dim=1)  # (B, latent)
        code = mu + log_sigma.exp() * noise
        return self._made(code, condition), gaussian_kl(mu, log_sigma), code

    def generate(self, code: Tensor, *condition: Tensor) -> Tensor:
        """See GaussianVAE."""
        made = self._made(code, condition)
        if self.config.widths:
            return made
        shade = 2 * torch.sigmoid(made) - 1
        return F.pad(shade.expand(-1, 3, -1, -1), (0, 0, 0, 0, 0, 1), value=1.0)  # alpha 1

    def nll(self, made: Tensor, x: Tensor) -> Tensor:
        """See GaussianVAE: Laplace, or Bernoulli for grey pixels (arXiv:1312.6114, appendix C.1)."""
        if self.config.widths:
            return laplace_nll(made, x, self.config.scale)
        return F.binary_cross_entropy_with_logits(made, grey(x), reduction="none").flatten(1).mean(1)

    def _made(self, code: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """RGBA pixels, or the logits of grey ones (B, 1, H, W)."""
        return self.decoder(self.lift(self._with(code, condition)))

    def _with(self, x: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """`x` (B, n), and behind it what is wanted."""
        if not condition:
            return x
        pooled, style = condition
        return torch.cat([x, F.silu(self.pooled(pooled) + self.style(style)).to(x.dtype)], dim=1)


def grey(pixels: Tensor) -> Tensor:
    """Premultiplied RGBA (B, 4, H, W) in [-1, 1] -> the mean of the colours over white (B, 1, H, W) in [0, 1]."""
    colours = (pixels[:, :3].mean(1, keepdim=True) + 1) / 2
    return (colours + (1 - pixels[:, 3:]) / 2).clamp(0, 1)


@torch.no_grad()
def rate_distortion(
    model: Autoencoder | GaussianVAE, pixels: Tensor, words: Words | None = None
) -> tuple[float, float]:
    """Bits a pixel that a code of `pixels` (B, 4, H, W) holds, and the PSNR in dB of what it restores, both means.

    Of a VAE: the KL from the posterior to the prior given `words` (None: empty captions). Of the Autoencoder: at most
    what a channel with peak amplitude 1 and Gaussian noise carries, log2(1 + sqrt(2 / (pi e)) / noise) bits a number
    (McKellips, Simple tight bounds on capacity for the peak-limited discrete-time channel, 2004), and at most
    log2(1 + var / noise^2) / 2 given the latents' variance (Cover and Thomas, Elements of Information Theory, 9.1).
    """
    area = pixels.shape[-2] * pixels.shape[-1]
    if isinstance(model, GaussianVAE):
        words = words or model.prompted([""] * len(pixels), [0] * len(pixels))
        noise = torch.cat([model.noise(seed) for seed in range(len(pixels))])
        _, kl, code = model.infer(model.encoded(pixels), noise, *model.condition(words))
        bits = kl.sum(1).mean().item() / math.log(2)
        restored = model.render(code, words)
    else:
        latents, width = model.encode(pixels), model.config.noise
        peak = math.log2(1 + math.sqrt(2 / (math.pi * math.e)) / width)
        power = 0.5 * torch.log2(1 + latents.var((0, 2, 3)) / width**2)  # (C,)
        bits = power.clamp(max=peak).sum().item() * latents.shape[2] * latents.shape[3]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
        restored = model.decode(latents + width * noise).clamp(-1, 1)
    return bits / area, restoration(restored, pixels)["psnr"].item()
