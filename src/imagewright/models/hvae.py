"""A hierarchical VAE: latents from one vector down to a fine grid, each level drawn given those above and the words.

After VDVAE (arXiv:2011.10650): one top-down path serves the prior and the posterior, bottleneck blocks, nearest
upsampling with a bias of its own at each level. It works in the space of an encoder. Deviations: pixels are taken in
2x2 patches, so nothing runs at full resolution; each level halves the side, the coarsest is one cell; the first product
of a block is normalised and modulated by words and style; the posterior is a change of the prior in units of its
deviation (NVAE, arXiv:2007.03898, section 3.2), which makes a code standard normal noise; free bits and a warm-up of
the KL instead of skipped updates; a Laplace likelihood, of which samples show the mean.

What words say goes two ways: into the prior of each group of latents, and around it, through transformer blocks whose
cells attend to the single words (`readers`). The likelihood is wide (`scale`), so that a code holds only what words do
not tell. And some rows of each batch are drawn blind, from the means of their priors instead of their posteriors, which
is how pictures are drawn later (the hybrid objective of Sohn et al., Learning structured output representation using
deep conditional generative models, 2015, section 4.2); without, the way around is hardly learned, because a few nats
name a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import STYLES, Batch
from imagewright.models.encoders import KLLatents, LatentsConfig, PixelsConfig
from imagewright.models.layers import Block as TransformerBlock
from imagewright.models.layers import compile_each, rms_norm, rotary_table, text_bias
from imagewright.models.technique import Cond, Graph
from imagewright.models.text import TextConfig
from imagewright.models.vae import GaussianVAE, gaussian_kl, laplace_nll

MAX_LOG_SIGMA = 5.0
HEAD = 64  # channels of an attention head


@dataclass(frozen=True)
class HVAEConfig:
    """Levels from the coarsest (one cell) to the finest (every cell of latents, 2x2 pixels), each with `widths`
    channels, cells of `middles` channels inside, `blocks` top-down groups of `latents` channels, `readers` transformer
    blocks (half of them before the latents), `finishers` cells behind all that, and `encoder_blocks` bottom-up; the
    first `attending` levels after the coarsest look at single words before their latents. `readers` and `finishers` may
    be empty: none. `cond` channels carry words and style.

    `scale` of the Laplace likelihood; `beta`, `free_bits` (nats a group), `warmup` steps of the KL; every
    `blind_every`-th row is drawn without its posterior (0: none); `drop_text`, `drop_style`: shares of rows trained
    without; `temperature` and `guidance`: defaults of sampling."""

    encoder: LatentsConfig | PixelsConfig = field(default_factory=LatentsConfig)
    widths: tuple[int, ...] = (256, 96, 64)
    middles: tuple[int, ...] = (32, 32, 32)
    latents: tuple[int, ...] = (16, 8, 0)
    blocks: tuple[int, ...] = (2, 1, 0)
    readers: tuple[int, ...] = (2, 2, 0)
    finishers: tuple[int, ...] = (0, 0, 2)
    encoder_blocks: tuple[int, ...] = (1, 1, 1)
    mlp_ratio: int = 4
    attending: int = 0
    cond: int = 128
    styles: int = len(STYLES)
    text: TextConfig = field(default_factory=TextConfig)
    train_text: bool = False
    drop_text: float = 0.1
    drop_style: float = 0.15
    scale: float = 0.5
    beta: float = 1.0
    free_bits: float = 1.0
    warmup: int = 0
    blind_every: int = 2
    temperature: float = 0.7
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if self.blind_every == 1:
            raise ValueError("blind_every 1 would leave no row to learn a code from")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of what the networks work on."""
        encoder = self.encoder
        if isinstance(encoder, LatentsConfig):
            return encoder.autoencoder.latent_shape
        return encoder.channels, encoder.size, encoder.size

    @property
    def fold(self) -> int:
        """Numbers a side of x that the finest level has in one cell."""
        return 1 if isinstance(self.encoder, LatentsConfig) else 2

    @property
    def factor(self) -> int:
        """What the side of x must be a multiple of."""
        return self.fold * int(2 ** (len(self.widths) - 2))

    @property
    def sides(self) -> tuple[int, ...]:
        """Cells a side of each level."""
        finest = self.shape[1] // self.fold
        return (1, *(finest >> i for i in reversed(range(len(self.widths) - 1))))


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
    """x + cell(x), and what the words say of it."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell.scaled(0.3)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        return x + self.cell(x, cond)


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


class Reading(nn.Module):
    """Transformer blocks whose cells attend to each other and to the words, (B, C, side, side) at both ends."""

    def __init__(self, config: HVAEConfig, level: int) -> None:
        super().__init__()
        width = config.widths[level]
        heads = max(1, width // HEAD)
        self.modulation = nn.Linear(config.cond, 6 * width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, config.text.width, config.mlp_ratio) for _ in range(config.readers[level])
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(self.modulation.weight)  # each block starts as the identity
        nn.init.zeros_(self.modulation.bias)
        cos, sin = rotary_table(config.sides[level], width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, state: Tensor, blocks: slice, words: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """`state` (B, C, h, w) through some of the blocks; `words`: modulating (B, cond), text, mask."""
        cond, text, mask = words
        modulation = self.modulation(cond).unflatten(1, (6, -1))  # (B, 6, C)
        x = state.flatten(2).transpose(1, 2)  # (B, N, C)
        bias, cos, sin = text_bias(mask, x.shape[1], x.dtype), self.cos.to(x.dtype), self.sin.to(x.dtype)
        for block in self.blocks[blocks]:
            x = block(x, modulation, text, bias, cos, sin)
        return x.transpose(1, 2).reshape(state.shape).contiguous(memory_format=torch.channels_last)


class Level(nn.Module):
    """All that happens at one side, behind the way up from the level above."""

    def __init__(self, config: HVAEConfig, level: int) -> None:
        super().__init__()
        side, width = config.sides[level], config.widths[level]
        above, readers = max(0, level - 1), config.readers or (0,) * len(config.widths)
        self.ratio = side // config.sides[above]
        self.channels = config.latents[level]
        self.shuffles = bool(self.ratio > 1 and readers[above])  # the transformer's cells hold what is inside of them
        arriving = width * self.ratio**2 if self.shuffles else width
        self.arrive = nn.Conv2d(config.widths[above], arriving, 1) if level else nn.Identity()
        self.places = nn.Parameter(torch.randn(width, side, side) * 0.02)
        attends = 0 < level <= config.attending
        self.attention = WordAttention(width, config.text.width) if attends else None
        self.blocks = nn.ModuleList(Block(config, level, sum(config.blocks)) for _ in range(config.blocks[level]))
        self.reading = Reading(config, level) if readers[level] else None
        count = config.finishers[level] if config.finishers else 0
        self.finishers = nn.ModuleList(
            Residual(Cell(width, config.middles[level], width, side, config.cond)) for _ in range(count)
        )

    def enter(self, state: Tensor, words: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The state of the level above, here, before the latents."""
        state = self.arrive(state)
        if self.shuffles:
            state = F.pixel_shuffle(state, self.ratio)
        elif self.ratio > 1:
            state = F.interpolate(state, scale_factor=float(self.ratio), mode="nearest")
        state = state + self.places.to(state.dtype)
        if self.attention is not None:
            state = self.attention(state, *words[1:])
        return state if self.reading is None else self.reading(state, slice(None, self._first), words)

    def leave(self, state: Tensor, words: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """The state behind the latents."""
        if self.reading is not None:
            state = self.reading(state, slice(self._first, None), words)
        for finisher in self.finishers:
            state = finisher(state, words[0])
        return state

    @property
    def _first(self) -> int:
        """Transformer blocks before the latents."""
        assert self.reading is not None
        return len(self.reading.blocks) // 2


class Hierarchy(nn.Module):
    """The networks: features of x bottom-up, latents top-down. Raises ValueError for sizes that do not fit."""

    def __init__(self, config: HVAEConfig) -> None:
        super().__init__()
        if config.shape[1] % config.factor:
            raise ValueError(f"a side of {config.shape[1]} is no multiple of {config.factor}")
        self.config = config
        widths, count, fold = config.widths, len(config.widths), config.fold
        inside = config.shape[0] * fold**2
        self.pixels_in = nn.Sequential(_unfolded(fold), nn.Conv2d(inside, widths[-1], 3, padding=1))
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
        self.pixels_out = nn.Sequential(nn.Conv2d(widths[-1], inside, 3, padding=1), _folded(fold))
        nn.init.normal_(self.style.weight, std=0.5)
        # pixels start transparent, as most are; latents at their mean
        nn.init.constant_(self.pixels_out[0].bias, 0.0 if fold == 1 else -1.0)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, x: Tensor) -> list[Tensor]:
        """(B, C, h, w) -> of each level (B, width, side, side), the coarsest first."""
        x, found = self.pixels_in(x.contiguous(memory_format=torch.channels_last)), []
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
        x: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x as it is made (B, C, h, w), the KL (B, groups) and the code (B, N). Without `x`, `noise` is the code."""
        features = None if x is None else self.features(x)
        cond = F.silu(self.cond(F.silu(self.pooled(pooled) + self.style(style))))  # (B, cond)
        words = cond, text, text_mask
        state = self.start(cond)[:, :, None, None].contiguous(memory_format=torch.channels_last)
        kls, codes, used = [], [], 0
        for i, level in enumerate(self.levels):
            side, channels = self.config.sides[i], self.config.latents[i]
            state = level.enter(state, words)  # type: ignore[operator]
            for block in level.blocks:  # type: ignore[union-attr]
                code = noise[:, used : used + channels * side**2].view(-1, channels, side, side)
                used += channels * side**2
                if features is not None:
                    code, kl = block.infer(state, features[i], code)
                    kls.append(kl)
                    codes.append(code.flatten(1))
                state = block(state, code, cond, guide)
            state = level.leave(state, words)  # type: ignore[operator]
        made = self.pixels_out(F.silu(self.norm(state)))
        if guide is not None and self.config.readers:
            made = (guide @ made.float().flatten(1)).view_as(made)
        if features is None:
            return made, noise.new_zeros(noise.shape[0], 0), noise
        return made, torch.stack(kls, dim=1), torch.cat(codes, dim=1)


def _unfolded(fold: int) -> nn.Module:
    return nn.Identity() if fold == 1 else nn.PixelUnshuffle(fold)


def _folded(fold: int) -> nn.Module:
    return nn.Identity() if fold == 1 else nn.PixelShuffle(fold)


class HierarchicalVAE(GaussianVAE):
    """Words, style and noise to pictures, level by level.

    Guidance moves each prior mean away from that of the avoided words, with both rows drawing the same noise:
    mu = mu_avoided + guidance * (mu_wanted - mu_avoided), as arXiv:2207.12598 does with scores; where there are
    readers, what is made of both rows too.
    """

    sampling: ClassVar[tuple[str, ...]] = ("temperature", "guidance")

    def __init__(self, config: HVAEConfig) -> None:
        super().__init__(config)
        self.encoder = KLLatents(config.encoder) if isinstance(config.encoder, LatentsConfig) else None
        self.network = Hierarchy(config)

    def compile_(self) -> None:
        """Compile the cells and transformer blocks in place (torch.compile); parameter names stay."""
        parts = [m for m in self.network.modules() if isinstance(m, Cell | TransformerBlock)]
        compile_each([*parts, *self.text.layers])

    @property
    def pixels(self) -> int:
        """Side of the pictures."""
        encoder = self.config.encoder
        return encoder.autoencoder.size if isinstance(encoder, LatentsConfig) else encoder.size

    @property
    def shape(self) -> tuple[int, int, int]:
        """See GaussianVAE."""
        return self.config.shape

    def encoded(self, pixels: Tensor) -> Tensor:
        """See GaussianVAE."""
        return pixels if self.encoder is None else self.encoder.encode(pixels)

    def decoded(self, x: Tensor) -> Tensor:
        """See GaussianVAE."""
        return x if self.encoder is None else self.encoder.decode(x)

    @property
    def levels(self) -> tuple[int, ...]:
        """Numbers of a code at each level that has latents."""
        config = self.config
        each = zip(config.blocks, config.latents, config.sides, strict=True)
        return tuple(blocks * channels * side**2 for blocks, channels, side in each if blocks)

    def infer(self, x: Tensor, noise: Tensor, *condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See GaussianVAE."""
        return self.network(noise, *condition, x=x)

    def generate(self, code: Tensor, *condition: Tensor) -> Tensor:
        """See GaussianVAE; `condition` may end with `guide` (B, B), which mixes the rows."""
        return self.network(code, *condition)[0]

    def nll(self, made: Tensor, x: Tensor) -> Tensor:
        """See GaussianVAE."""
        return laplace_nll(made, x, self.config.scale)

    def bound(self, x: Tensor, noise: Tensor, condition: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """The mean over rows of the bound and, for the blind ones of them, of -log p(x | means of the priors).

        `blind` is the latter alone. Outside of a run no row counts as blind, and `blind` tells of all of them."""
        every, rows = self.config.blind_every, torch.arange(len(x), device=x.device)
        if not every or len(x) < every:
            return super().bound(x, noise, condition, batch)
        blind, seeing, share = rows, rows, 0.0
        if batch.step is not None:
            first = -batch.draws.start % every
            blind, seeing = rows[first::every], torch.cat([rows[k::every] for k in range(every) if k != first])
            share = len(blind) / len(rows)
        made = self.generate(torch.zeros_like(noise[blind]), *(each[blind] for each in condition))
        found = self.nll(made.float(), x[blind]).mean()
        losses = super().bound(x[seeing], noise[seeing], tuple(each[seeing] for each in condition), batch)
        return {**losses, "loss": (1 - share) * losses["loss"] + share * found, "blind": found}

    def rates(self, kl: Tensor) -> dict[str, Tensor]:
        """The mean KL of each level in nats, by its side: which levels are used."""
        each = zip(self.config.sides, kl.mean(0).split(self.config.blocks), strict=True)
        return {f"kl_{side}": groups.sum() for side, groups in each if len(groups)}

    def guided(self, cond: Cond, row: int, chosen: dict[str, Any]) -> tuple[Tensor, ...]:
        """Words of one row, or with guidance those of two and how they mix."""
        words, scale = self.wanted_and_avoided(cond, row), chosen["guidance"]
        if scale == 1:
            return self.condition(words[:1])
        return *self.condition(words), torch.tensor([[scale, 1 - scale]] * 2, device=words.pooled.device)

    def graphs(self) -> dict[str, Graph]:
        """generator (code, words and guide -> pixels) and encoder (pixels and words -> code); on latents x instead of
        pixels, with the encoder's decoder and encoder, and what infers a code is `posterior`."""
        latents = self.encoder
        parts = super().graphs() if latents is None else self.both_ways("posterior", "x")
        plain = parts["generator"]
        guided = replace(
            plain,
            example=(*plain.example, torch.eye(2)),
            inputs=(*plain.inputs, "guide"),
            dynamic={"guide": {1: "batch"}},
        )
        return {**parts, "generator": guided, **({} if latents is None else latents.graphs())}

    def runtime(self) -> dict[str, Any]:
        """See GaussianVAE; on latents also the parts that lead from a picture to a code."""
        more = {} if self.encoder is None else {"encoding": ["encoder", "posterior"]}
        return {**super().runtime(), **more}
