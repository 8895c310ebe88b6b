"""A hierarchical VAE: latents from one vector down to a fine grid, each level drawn given those above and the words.

After VDVAE (arXiv:2011.10650): one top-down path serves the prior and the posterior, bottleneck blocks, nearest
upsampling with a bias of its own at each level. Deviations: it works on 2x2 pixel patches, so nothing runs at full
resolution; each level halves the side, the coarsest is one cell; the first product of a block is normalised and
modulated by words and style; latents at coarse levels attend to the single words; the posterior is a change of the
prior in units of its deviation (NVAE, arXiv:2007.03898, section 3.2), which makes a code standard normal noise;
free bits and a warm-up of the KL instead of skipped updates; Laplace pixels, of which samples show the mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.models.layers import compile_each, rms_norm
from imagewright.models.technique import Cond, Graph
from imagewright.models.text import TextConfig
from imagewright.models.vae import GaussianVAE, gaussian_kl, laplace_nll

MAX_LOG_SIGMA = 5.0


@dataclass(frozen=True)
class HVAEConfig:
    """Levels from the coarsest (one cell) to the finest (`size` / 2 a side), each with `widths` channels, blocks of
    `middles` channels inside, `latents` channels a block, `blocks` top-down and `encoder_blocks` bottom-up; the first
    `attending` levels after the coarsest look at single words. `cond` channels carry words and style.

    `scale` of the Laplace pixels; `beta`, `free_bits` (nats a block), `warmup` steps of the KL; `drop_text`,
    `drop_style`: shares of rows trained without; `temperature` and `guidance`: defaults of sampling."""

    size: int = 64
    widths: tuple[int, ...] = (256, 256, 192, 128, 64)
    middles: tuple[int, ...] = (64, 64, 64, 48, 32)
    latents: tuple[int, ...] = (32, 16, 16, 8, 4)
    blocks: tuple[int, ...] = (2, 3, 3, 3, 2)
    encoder_blocks: tuple[int, ...] = (1, 1, 1, 1, 1)
    attending: int = 2
    cond: int = 192
    styles: int = 6
    text: TextConfig = field(default_factory=TextConfig)
    train_text: bool = False
    drop_text: float = 0.1
    drop_style: float = 0.15
    scale: float = 0.2
    beta: float = 1.0
    free_bits: float = 1.0
    warmup: int = 300
    temperature: float = 0.7
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.size % self.factor:
            raise ValueError(f"size {self.size} is no multiple of {self.factor}")

    @property
    def factor(self) -> int:
        """What the side of the pictures must be a multiple of."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def sides(self) -> tuple[int, ...]:
        """Cells a side of each level."""
        finer = [self.size >> i for i in range(1, len(self.widths))]
        return (1, *reversed(finer))


class Cell(nn.Module):
    """A bottleneck block (B, inside, h, w) -> (B, outside, h, w): 1x1, two 3x3, 1x1. With `cond`, the words shift and
    scale what the first product gives."""

    def __init__(self, inside: int, middle: int, outside: int, side: int, cond: int = 0) -> None:
        super().__init__()
        kernel = 3 if side > 1 else 1
        self.inward = nn.Conv2d(inside, middle, 1)
        self.norm = nn.GroupNorm(8, middle)
        self.words = nn.Linear(cond, 2 * middle) if cond else None
        self.conv1 = nn.Conv2d(middle, middle, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(middle, middle, kernel, padding=kernel // 2)
        self.outward = nn.Conv2d(middle, outside, 1)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        h = self.norm(self.inward(F.silu(x)))  # (B, middle, h, w)
        if self.words is not None:
            scale, shift = self.words(cond)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.outward(F.silu(self.conv2(F.silu(self.conv1(F.silu(h))))))

    def scaled(self, factor: float) -> Cell:
        """This cell with its last weights times `factor`: a deep residual path starts near the identity."""
        with torch.no_grad():
            self.outward.weight.mul_(factor)
            nn.init.zeros_(self.outward.bias)  # type: ignore[arg-type]
        return self


class Residual(nn.Module):
    """x + cell(x)."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell.scaled(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cell(x)


class WordAttention(nn.Module):
    """Each cell of a picture looks at the words: x + attention, (B, C, h, w)."""

    def __init__(self, width: int, text_width: int, inner: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(text_width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """x (B, C, h, w), text (B, L, text_width), mask (B, L) bool."""
        B, C, h, w = x.shape
        cells = rms_norm(x.flatten(2).transpose(1, 2))  # (B, h * w, C)
        q = self.query(cells).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, h * w, d)
        k, v = self.key_value(text).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, L, d)
        logits = rms_norm(q) @ rms_norm(k).transpose(-1, -2) + (~mask).to(q.dtype)[:, None, None] * -1e4
        seen = (logits.softmax(-1, dtype=logits.dtype) @ v).transpose(1, 2).flatten(2)  # (B, h * w, inner)
        return x + self.out(seen).transpose(1, 2).reshape(B, C, h, w)


class Block(nn.Module):
    """A group of latents in the top-down path: draw z given the state, take it into the state."""

    def __init__(self, config: HVAEConfig, level: int, depth: int) -> None:
        super().__init__()
        width, middle, side = config.widths[level], config.middles[level], config.sides[level]
        self.channels = config.latents[level]
        self.prior = Cell(width, middle, 2 * self.channels + width, side, config.cond).scaled(depth**-0.5)
        self.posterior = Cell(2 * width, middle, 2 * self.channels, side)
        self.inward = nn.Conv2d(self.channels, width, 1)
        self.mix = Cell(width, middle, width, side, config.cond).scaled(depth**-0.5)
        with torch.no_grad():
            self.inward.weight.mul_(depth**-0.5)
            self.posterior.outward.weight.mul_(0.1)
            self.prior.outward.weight[: 2 * self.channels].zero_()  # the prior starts as N(0, 1)

    def infer(self, state: Tensor, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The whitened latents (B, z, h, w) that `noise` draws from the posterior, and their KL (B,) in nats.

        With q = N(mu + sigma * d_mu, (sigma * d_sigma)^2) and p = N(mu, sigma^2) the prior falls out of the KL
        (arXiv:2007.03898, equation 2): that of N(d_mu, d_sigma^2) to N(0, 1)."""
        d_mu, raw = self.posterior(torch.cat([state, features], dim=1)).float().chunk(2, dim=1)
        log_sigma = bounded(raw)
        return d_mu + log_sigma.exp() * noise, gaussian_kl(d_mu, log_sigma).sum((1, 2, 3))

    def forward(self, state: Tensor, code: Tensor, cond: Tensor, guide: Tensor | None) -> Tensor:
        """The state (B, C, h, w) after z = mu + sigma * code, with `guide` (B, B) mixing the rows' prior means."""
        expected = self.prior(state, cond)
        mu, raw = expected[:, : 2 * self.channels].float().chunk(2, dim=1)
        if guide is not None:
            mu = (guide @ mu.flatten(1)).view_as(mu)
        z = mu + bounded(raw).exp() * code  # (B, z, h, w)
        state = state + expected[:, 2 * self.channels :] + self.inward(z.to(state.dtype))
        return state + self.mix(state, cond)


def bounded(raw: Tensor) -> Tensor:
    """log sigma, softly kept within +-MAX_LOG_SIGMA, so that no step can make a density explode."""
    return MAX_LOG_SIGMA * torch.tanh(raw / MAX_LOG_SIGMA)


class Level(nn.Module):
    """All blocks of one side, behind the way up from the level above."""

    def __init__(self, config: HVAEConfig, level: int) -> None:
        super().__init__()
        side, width = config.sides[level], config.widths[level]
        above = max(0, level - 1)
        self.ratio = side // config.sides[above]
        self.channels = config.latents[level]
        self.arrive = nn.Conv2d(config.widths[above], width, 1) if level else nn.Identity()
        self.places = nn.Parameter(torch.randn(width, side, side) * 0.02)
        attends = 0 < level <= config.attending
        self.attention = WordAttention(width, config.text.width) if attends else None
        self.blocks = nn.ModuleList(Block(config, level, sum(config.blocks)) for _ in range(config.blocks[level]))

    def enter(self, state: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The state of the level above, here."""
        state = self.arrive(state)
        if self.ratio > 1:
            state = F.interpolate(state, scale_factor=float(self.ratio), mode="nearest")
        state = state + self.places.to(state.dtype)
        return state if self.attention is None else self.attention(state, text, mask)


class Hierarchy(nn.Module):
    """The networks: features of the picture bottom-up, latents top-down."""

    def __init__(self, config: HVAEConfig) -> None:
        super().__init__()
        self.config = config
        widths, count = config.widths, len(config.widths)
        self.pixels_in = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, widths[-1], 3, padding=1))
        self.climb = nn.ModuleList(nn.Conv2d(widths[i + 1], widths[i], 1) for i in range(count - 1))
        self.encoder_blocks = nn.ModuleList(
            nn.Sequential(*(Residual(Cell(widths[i], config.middles[i], widths[i], config.sides[i])) for _ in range(n)))
            for i, n in enumerate(config.encoder_blocks)
        )
        self.pooled = nn.Linear(config.text.width, config.cond)
        self.style = nn.Embedding(config.styles, config.cond)
        self.cond = nn.Linear(config.cond, config.cond)
        self.start = nn.Linear(config.cond, widths[0])
        self.levels = nn.ModuleList(Level(config, i) for i in range(count))
        self.norm = nn.GroupNorm(8, widths[-1])
        self.pixels_out = nn.Sequential(nn.Conv2d(widths[-1], 16, 3, padding=1), nn.PixelShuffle(2))
        nn.init.normal_(self.style.weight, std=0.5)
        nn.init.constant_(self.pixels_out[0].bias, -1.0)  # type: ignore[arg-type]  # transparent, as most pixels are
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, pixels: Tensor) -> list[Tensor]:
        """(B, 4, H, W) -> of each level (B, C, side, side), the coarsest first."""
        x, found = self.pixels_in(pixels.contiguous(memory_format=torch.channels_last)), []
        for i in reversed(range(len(self.config.widths))):
            x = self.encoder_blocks[i](x)
            found.append(x)
            if i:
                x = self.climb[i - 1](F.avg_pool2d(x, self.config.sides[i] // self.config.sides[i - 1]))
        return found[::-1]

    def forward(
        self,
        noise: Tensor,
        text: Tensor,
        pooled: Tensor,
        text_mask: Tensor,
        style: Tensor,
        guide: Tensor | None = None,
        pixels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The picture (B, 4, H, W), the KL (B, blocks) and the code (B, N). Without `pixels`, `noise` is the code."""
        features = None if pixels is None else self.features(pixels)
        cond = F.silu(self.cond(F.silu(self.pooled(pooled) + self.style(style))))  # (B, cond)
        state = self.start(cond)[:, :, None, None].contiguous(memory_format=torch.channels_last)
        kls, codes, used = [], [], 0
        for i, level in enumerate(self.levels):
            side, channels = self.config.sides[i], self.config.latents[i]
            state = level.enter(state, text, text_mask)  # type: ignore[operator]
            for block in level.blocks:  # type: ignore[union-attr]
                code = noise[:, used : used + channels * side**2].view(-1, channels, side, side)
                used += channels * side**2
                if features is not None:
                    code, kl = block.infer(state, features[i], code)
                    kls.append(kl)
                    codes.append(code.flatten(1))
                state = block(state, code, cond, guide)
        made = self.pixels_out(F.silu(self.norm(state)))
        if features is None:
            return made, noise.new_zeros(noise.shape[0], 0), noise
        return made, torch.stack(kls, dim=1), torch.cat(codes, dim=1)


class HierarchicalVAE(GaussianVAE):
    """Words, style and noise to pictures, level by level.

    Guidance moves each prior mean away from that of the avoided words, with both rows drawing the same noise:
    mu = mu_avoided + guidance * (mu_wanted - mu_avoided), as arXiv:2207.12598 does with scores.
    """

    sampling: ClassVar[tuple[str, ...]] = ("temperature", "guidance")

    def __init__(self, config: HVAEConfig) -> None:
        super().__init__(config)
        self.network = Hierarchy(config)

    def compile_(self) -> None:
        """Compile the cells in place (torch.compile); parameter names stay."""
        cells = [module for module in self.network.modules() if isinstance(module, Cell)]
        compile_each([*cells, *self.text.layers])

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of a code at each level."""
        config = self.config
        each = zip(config.blocks, config.latents, config.sides, strict=True)
        return tuple(blocks * channels * side**2 for blocks, channels, side in each)

    def infer(self, pixels: Tensor, noise: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See GaussianVAE."""
        return self.network(noise, *condition, pixels=pixels)

    def generate(self, code: Tensor, *condition: Tensor) -> Tensor:
        """See GaussianVAE; `condition` may end with `guide` (B, B), which mixes the prior means of the rows."""
        return self.network(code, *condition)[0]

    def nll(self, made: Tensor, pixels: Tensor) -> Tensor:
        """See GaussianVAE."""
        return laplace_nll(made, pixels, self.config.scale)

    def rates(self, kl: Tensor) -> dict[str, Tensor]:
        """The mean KL of each level in nats, by its side: which levels are used."""
        each = zip(self.config.sides, kl.mean(0).split(self.config.blocks), strict=True)
        return {f"kl_{side}": groups.sum() for side, groups in each}

    def guided(self, cond: Cond, row: int, chosen: dict[str, Any]) -> tuple[Tensor, ...]:
        """Words of one row, or with guidance those of two and how they mix."""
        words, scale = self.wanted_and_avoided(cond, row), chosen["guidance"]
        if scale == 1:
            return self.condition(words[:1])
        return *self.condition(words), torch.tensor([[scale, 1 - scale]] * 2, device=words.pooled.device)

    def graphs(self) -> dict[str, Graph]:
        """generator (code, words and guide -> pixels) and encoder (pixels and words -> code)."""
        graphs = super().graphs()
        plain = graphs["generator"]
        guided = Graph(
            plain.module,
            (*plain.example, torch.eye(2)),
            (*plain.inputs, "guide"),
            plain.outputs,
            dynamic={"guide": {1: "batch"}},
        )
        return {**graphs, "generator": guided}
