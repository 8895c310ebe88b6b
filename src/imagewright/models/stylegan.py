"""A style-based generator that follows words, and its critic (StyleGAN2, arXiv:1912.04958, at the size of icons).

A mapping network turns noise z, the caption and the style into w; each convolution of the synthesis network is
modulated by a w of its own (W+), so that styles can be mixed by layer. It works in the space of an encoder, pixels or
latents. Trained with R3GAN's relativistic loss and both zero-centred penalties (arXiv:2501.05441), a projection critic
(arXiv:1802.05637) that also sees real pictures with another caption (arXiv:1605.05396), and DiffAugment
(arXiv:2006.10738). Deviations: no equalised learning rates, path-length penalty or style mixing in training; the
penalties look at every `penalty_every`-th row of each batch instead of every so many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import STYLES, Batch
from imagewright.models.diffaugment import Augmentation
from imagewright.models.encoders import LatentsConfig, PixelsConfig, build_encoder
from imagewright.models.gan import relativistic, zero_centred_penalty
from imagewright.models.layers import rms_norm
from imagewright.models.samplers import noise_source
from imagewright.models.technique import WORDS, Call, Cond, Graph, Phase, Prompted, Words, sort_parameters
from imagewright.models.text import TextConfig
from imagewright.watch import Watch

LEAK = 0.2
GAIN = (2 / (1 + LEAK**2)) ** 0.5  # keeps the variance through a leaky rectifier
MEAN_DECAY = 0.995  # of the running mean of w
CANDIDATES = 16  # seeds that an inversion starts from the nearest of


@dataclass(frozen=True)
class StyleGANConfig:
    """`z`, `w`: lengths. `widths` and `depths`: channels and modulated convolutions at 4, 8, 16 ... cells a side;
    what is missing to the encoder's side comes from a pixel shuffle. `critic_widths`: channels of the critic at the
    same sides. `gamma`: weight of the penalties; `matching`: weight of telling the right caption from another;
    `augment`: share of the rows that are augmented. `truncation`: how far w goes from its mean; `guidance`: how far
    from the w of the negative prompt, 1 for not at all."""

    encoder: LatentsConfig | PixelsConfig = field(default_factory=LatentsConfig)
    text: TextConfig = field(default_factory=TextConfig)
    z: int = 64
    w: int = 256
    widths: tuple[int, ...] = (256, 96)
    depths: tuple[int, ...] = (3, 3)
    critic_widths: tuple[int, ...] = (256, 64)
    gamma: float = 1.0
    penalty_every: int = 4
    matching: float = 0.5
    augment: float = 0.5
    drop_text: float = 0.1
    drop_style: float = 0.15
    train_text: bool = False
    truncation: float = 1.0
    guidance: float = 1.0


class Mapping(nn.Module):
    """z, pooled words and style to w."""

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        self.words = nn.Linear(config.text.width, config.w)
        self.style = nn.Embedding(len(STYLES), config.w)
        self.first = nn.Linear(config.z + config.w, config.w)
        self.hidden = nn.ModuleList(nn.Linear(config.w, config.w) for _ in range(3))

    def forward(self, z: Tensor, pooled: Tensor, style: Tensor) -> Tensor:
        """z (B, z), pooled (B, text_width), style (B,) -> w (B, w), float32."""
        condition = rms_norm(self.words(pooled) + self.style(style))
        w = self.first(torch.cat([rms_norm(z).to(condition.dtype), condition], dim=1))
        for layer in self.hidden:
            w = layer(GAIN * F.leaky_relu(w, LEAK))
        return w.float()


class ModulatedConv(nn.Module):
    """A convolution whose input channels are scaled by a style, and whose output is scaled back to unit variance.

    arXiv:1912.04958, equations 1 and 3, as scaling before and after one shared convolution.
    """

    def __init__(self, inside: int, outside: int, w: int, kernel: int = 3, demodulate: bool = True) -> None:
        super().__init__()
        self.affine = nn.Linear(w, inside)
        nn.init.normal_(self.affine.weight, std=w**-0.5)
        nn.init.ones_(self.affine.bias)
        self.weight = nn.Parameter(torch.randn(outside, inside, kernel, kernel) * (inside * kernel**2) ** -0.5)
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (B, inside, h, w), w (B, w) -> (B, outside, h, w)."""
        style = self.affine(w)  # (B, inside)
        y = F.conv2d(x * style.to(x.dtype)[:, :, None, None], self.weight, padding=self.weight.shape[-1] // 2)
        if not self.demodulate:
            return y
        power = F.linear(style.square(), self.weight.square().sum((2, 3)))  # (B, outside): variance of y
        return y * torch.rsqrt(power + 1e-8).to(y.dtype)[:, :, None, None]


class StyledLayer(nn.Module):
    """Modulated convolution, noise, bias, leaky rectifier."""

    def __init__(self, inside: int, outside: int, w: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inside, outside, w)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outside))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """x (B, C, h, w), w (B, w), noise (B, 1, h, w)."""
        y = self.conv(x, w)
        y = y + (noise * self.strength + self.bias[:, None, None]).to(y.dtype)
        return GAIN * F.leaky_relu(y, LEAK)


class WordAttention(nn.Module):
    """Cells look at the tokens of the caption; what they find is added to them."""

    def __init__(self, channels: int, text_width: int, heads: int = 4, width: int = 128) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, width, bias=False)
        self.kv = nn.Linear(text_width, 2 * width, bias=False)
        self.out = nn.Linear(width, channels, bias=False)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """x (B, C, h, w), tokens (B, L, text_width), mask (B, L) -> (B, C, h, w)."""
        B, C, h, w = x.shape
        q = self.q(rms_norm(x.flatten(2).transpose(1, 2))).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, d)
        logits = rms_norm(q) @ rms_norm(k).transpose(-1, -2) * q.shape[-1] ** 0.5  # (B, H, h * w, L)
        found = logits.masked_fill(~mask[:, None, None], -1e4).softmax(-1).to(v.dtype) @ v
        return x + self.out(found.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(B, C, h, w).to(x.dtype)


class Stage(nn.Module):
    """The layers at one side: up from the stage below, styled layers, words, and its share of the picture."""

    def __init__(self, inside: int, outside: int, depth: int, side: int, picture: int, config: StyleGANConfig) -> None:
        super().__init__()
        self.side, self.depth = side, depth
        self.layers = nn.ModuleList(StyledLayer(outside if i else inside, outside, config.w) for i in range(depth))
        self.attention = WordAttention(outside, config.text.width) if side <= 8 else None
        self.to_picture = ModulatedConv(outside, picture, config.w, kernel=1, demodulate=False)

    def forward(
        self, x: Tensor, picture: Tensor | None, ws: Tensor, noise: Tensor, words: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """x (B, inside, h, w), picture (B, P, h, w) or None, ws (B, depth, w), noise (B, depth, side, side)."""
        if picture is not None:
            x, picture = _doubled(x), _doubled(picture)
        for i, layer in enumerate(self.layers):
            x = layer(x, ws[:, i], noise[:, i : i + 1])
            if i == 0 and self.attention is not None:
                x = self.attention(x, *words)
        share = self.to_picture(x, ws[:, -1])
        return x, share if picture is None else picture + share


class Synthesis(nn.Module):
    """W+, noise and words to x: a learned 4x4 constant, stages of twice the side each, pictures summed (skip)."""

    def __init__(self, config: StyleGANConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        sides = [4 * 2**i for i in range(len(config.widths))]
        self.shuffle = shape[1] // sides[-1]
        inputs = (config.widths[0], *config.widths)
        picture = shape[0] * self.shuffle**2
        self.constant = nn.Parameter(torch.randn(1, config.widths[0], 4, 4))
        self.stages = nn.ModuleList(
            Stage(inputs[i], width, config.depths[i], side, picture, config)
            for i, (width, side) in enumerate(zip(config.widths, sides, strict=True))
        )
        self.depths = config.depths
        self.noise_sides = tuple(side for side, depth in zip(sides, config.depths, strict=True) for _ in range(depth))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def layers(self) -> int:
        """Modulated layers, each with a w of its own."""
        return len(self.noise_sides)

    @property
    def noises(self) -> int:
        """Noise values of one picture, all layers' cells in a row."""
        return sum(side**2 for side in self.noise_sides)

    def forward(self, ws: Tensor, noise: Tensor, tokens: Tensor, mask: Tensor, shift: Tensor | None = None) -> Tensor:
        """ws (B, layers, w), noise (B, noises), tokens (B, L, text_width), mask (B, L) -> x (B, C, h, w), float32.

        `shift` (B, 2): move the input by this part of the side (down, right), to measure equivariance."""
        x = self.constant.expand(len(ws), -1, -1, -1)
        if shift is not None:
            x = shifted(x, shift)
        picture, layer, cell = None, 0, 0
        for stage in self.stages:
            cells = stage.depth * stage.side**2
            here = noise[:, cell : cell + cells].view(-1, stage.depth, stage.side, stage.side)
            x, picture = stage(x, picture, ws[:, layer : layer + stage.depth], here, (tokens, mask))
            layer, cell = layer + stage.depth, cell + cells
        return F.pixel_shuffle(picture, self.shuffle).float()


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    """x (B, C, h, w) moved by `shift` (B, 2), parts of the side (down, right), between cells linearly; the border
    goes on outside."""
    theta = torch.eye(2, 3, device=x.device).repeat(len(x), 1, 1)
    theta[:, :, 2] = -2 * shift.flip(1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class CriticBlock(nn.Module):
    """x + conv(lrelu(conv(lrelu(x)))), without normalisation, as R3GAN; the second convolution starts small."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_normal_(self.conv1.weight, LEAK)
        nn.init.normal_(self.conv2.weight, std=0.3 * (channels * 9) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(F.leaky_relu(x, LEAK)), LEAK)
        return x + self.conv2(h)


class Critic(nn.Module):
    """How real x looks for its words: a residual trunk and a projection onto them."""

    def __init__(self, config: StyleGANConfig, shape: tuple[int, int, int], features: int = 256) -> None:
        super().__init__()
        widths = tuple(reversed(config.critic_widths))
        shuffle = shape[1] // (4 * 2 ** (len(widths) - 1))
        trunk: list[nn.Module] = [
            nn.PixelUnshuffle(shuffle),
            nn.Conv2d(shape[0] * shuffle**2, widths[0], 3, padding=1),
        ]
        for i, width in enumerate(widths):
            trunk.append(CriticBlock(width))
            if i + 1 < len(widths):
                trunk += [nn.PixelUnshuffle(2), nn.Conv2d(4 * width, widths[i + 1], 1)]
        self.trunk = nn.Sequential(
            *trunk, nn.LeakyReLU(LEAK), nn.Flatten(), nn.Linear(16 * widths[-1], features), nn.LeakyReLU(LEAK)
        )
        self.alone = nn.Linear(features, 1)
        self.words = nn.Linear(config.text.width, features)
        self.style = nn.Embedding(len(STYLES), features)
        self.mixed = nn.Linear(features, features)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def judge(self, features: Tensor, words: Words) -> Tensor:
        """features (B, F) of `trunk` -> logits (B,), float32."""
        wanted = self.mixed(F.leaky_relu(self.words(words.pooled) + self.style(words.style), LEAK))  # (B, F)
        match = (rms_norm(wanted.float()) * features.float()).sum(1) * features.shape[1] ** -0.5
        return self.alone(features)[:, 0].float() + match

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """x (B, C, h, w) -> logits (B,)."""
        return self.judge(self.trunk(x), words)


class StyleGAN(Prompted):
    """Text and style to pictures in one step, with styles that can be mixed by layer."""

    family: ClassVar[str] = "gan"
    phases: ClassVar[tuple[Phase, ...]] = (
        Phase("discriminator", betas=(0.0, 0.99)),
        Phase("generator", betas=(0.0, 0.99)),
    )
    sampling: ClassVar[tuple[str, ...]] = ("truncation", "guidance")
    w_mean: Tensor

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__(config)
        self.encoder = build_encoder(config.encoder)
        self.mapper = Mapping(config)
        self.synthesis = Synthesis(config, self.encoder.shape)
        self.critic = Critic(config, self.encoder.shape)
        self.register_buffer("w_mean", torch.zeros(config.w))

    @property
    def pixels(self) -> int:
        """Side of the pictures."""
        encoder = self.config.encoder
        return encoder.size if isinstance(encoder, PixelsConfig) else encoder.autoencoder.size

    @property
    def layers(self) -> int:
        """Layers whose styles can be mixed."""
        return self.synthesis.layers

    def param_groups(self, phase: str = "main") -> dict[str, list[nn.Parameter]]:
        """The critic's, or those of the mapping, the synthesis and (if trained) the text encoder."""
        nets = [self.critic] if phase == "discriminator" else [self.mapper, self.synthesis, self.text]
        return sort_parameters(nn.ModuleList(nets))

    def mapping(self, z: Tensor, words: Words) -> Tensor:
        """z (B, z) -> W+ (B, layers, w): the same w for every layer."""
        return self._spread(self.mapper(z, words.pooled, words.style))

    def synthesise(self, ws: Tensor, words: Words, noise: Tensor | None = None) -> Tensor:
        """ws (B, layers, w), noise (B, noises; None: none) -> x (B, C, h, w) in the encoder's space."""
        if noise is None:
            noise = ws.new_zeros(len(ws), self.synthesis.noises)
        return self.synthesis(ws, noise, words.tokens, words.mask)

    def truncated(self, ws: Tensor, truncation: float) -> Tensor:
        """ws moved towards the mean w (arXiv:1812.04948, appendix B): all of the way at 0, not at all at 1."""
        return torch.lerp(self.w_mean.expand_as(ws), ws, truncation)

    def _spread(self, w: Tensor) -> Tensor:
        return w[:, None].expand(-1, self.layers, -1)

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """R3GAN's loss of the phase; the discriminator's with the penalties wherever gradients are enabled."""
        real = batch.latents
        if real is None:
            assert batch.pixels is not None
            real = self.encoder.encode(batch.pixels)
        draws, generating = batch.draws, phase == "generator"
        words = self.words(batch)
        z, noise = draws.randn(self.config.z).to(real), draws.randn(self.synthesis.noises).to(real)
        augment = Augmentation.drawn(draws, real.shape[-1], self.config.augment)
        with torch.set_grad_enabled(generating and torch.is_grad_enabled()):
            ws = self.mapping(z, words)
            made = self.synthesise(ws, words, noise)
        if generating:
            if self.training:
                self.w_mean.lerp_(ws[:, 0].detach().mean(0), 1 - MEAN_DECAY)
            return self._generator_loss(augment(real), augment(made), words)
        losses = self._discriminator_loss(augment(real), augment(made), words)
        if torch.is_grad_enabled():
            r1, r2 = self._penalties(real, made, words, augment, draws.start)
            losses["loss"] = losses["loss"] + self.config.gamma / 2 * (r1 + r2)
            losses |= {"r1": r1.detach(), "r2": r2.detach()}
        return losses

    def _generator_loss(self, real: Tensor, made: Tensor, words: Words) -> dict[str, Tensor]:
        with torch.no_grad():
            logit_real = self.critic(real, words)
        features = self.critic.trunk(made)
        logit = self.critic.judge(features, words)
        adversarial = relativistic(logit, logit_real)
        matching = relativistic(logit, self.critic.judge(features, others(words)))
        return {
            "loss": adversarial + self.config.matching * matching,
            "adversarial": adversarial.detach(),
            "matching": matching.detach(),
        }

    def _discriminator_loss(self, real: Tensor, made: Tensor, words: Words) -> dict[str, Tensor]:
        features_real, features_made = self.critic.trunk(torch.cat([real, made])).chunk(2)
        logit_real = self.critic.judge(features_real, words)
        adversarial = relativistic(logit_real, self.critic.judge(features_made, words))
        matching = relativistic(logit_real, self.critic.judge(features_real, others(words)))
        return {
            "loss": adversarial + self.config.matching * matching,
            "adversarial": adversarial.detach(),
            "matching": matching.detach(),
        }

    def _penalties(
        self, real: Tensor, made: Tensor, words: Words, augment: Augmentation, start: int
    ) -> tuple[Tensor, Tensor]:
        """R1 and R2, the means over every `penalty_every`-th row of the global batch, in float32."""
        every = self.config.penalty_every
        rows = slice(-start % every, None, every)
        seen, augment = words[rows], augment[rows]
        seen = Words(seen.tokens, seen.pooled.float(), seen.mask, seen.style)
        with torch.autocast(real.device.type, enabled=False):
            r1, r2 = (
                zero_centred_penalty(lambda x: self.critic(augment(x), seen), x[rows].float()).sum() * every / len(x)
                for x in (real, made)
            )
        return r1, r2

    @torch.no_grad()
    def sample(self, cond: Cond, seeds: Sequence[int], *, watch: Watch = Watch(), **options: Any) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1]. Each row is made alone, so a seed is one picture at any batch size."""
        chosen = self.chosen(options)
        rows: list[Tensor] = []
        for row, seed in enumerate(seeds):
            words = self.wanted_and_avoided(cond, row)
            rows.append(self._pictures(self.code(seed), words[:1], words[1:], **chosen))
            watch.told(len(rows), len(seeds))
        return torch.cat(rows)

    def _pictures(self, code: Tensor, wanted: Words, avoided: Words, truncation: float, guidance: float) -> Tensor:
        ws = self._styles(code, wanted, avoided, truncation, guidance)
        noise = code[:, self.config.z :][:, : self.synthesis.noises]
        return self.encoder.decode(self.synthesise(ws, wanted, noise)).float().clamp(-1, 1)

    def _styles(self, code: Tensor, wanted: Words, avoided: Words, truncation: float, guidance: float) -> Tensor:
        z, offset = code[:, : self.config.z], code[:, self.config.z + self.synthesis.noises :]
        ws, away = self.mapping(z, wanted), self.mapping(z, avoided)
        return self.truncated(away + guidance * (ws - away), truncation) + offset.view_as(ws)

    def styles(self, code: Tensor, words: Words, **options: Any) -> Tensor:
        """The W+ (B, layers, w) of codes, guided away from the empty caption."""
        return self._styles(code, words, self._no_words(len(code)), **self.chosen(options))

    def _no_words(self, rows: int) -> Words:
        return self.prompted([""] * rows, [0] * rows)

    def code(self, seed: int) -> Tensor:
        """z, the layers' noise, and what is added to W+ (0), side by side: (1, z + noises + layers * w)."""
        drawn = noise_source(seed, (1, self.config.z + self.synthesis.noises))()
        code = torch.from_numpy(drawn).to(self.w_mean.device)
        return F.pad(code, (0, self.layers * self.config.w))

    @torch.no_grad()
    def render(self, code: Tensor, words: Words, **options: Any) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1] from codes."""
        return self._pictures(code, words, self._no_words(len(code)), **self.chosen(options))

    def mix_layers(self, ws_a: Tensor, ws_b: Tensor, layers: range) -> Tensor:
        """`ws_a` (B, layers, w) with the styles of `layers` from `ws_b`: coarse form from the first, colour and
        texture from the last (style mixing, arXiv:1812.04948, section 3.1)."""
        from_b = torch.zeros(self.layers, 1, dtype=torch.bool, device=ws_a.device)
        from_b[list(layers)] = True
        return torch.where(from_b, ws_b, ws_a)

    @torch.no_grad()
    def invert(
        self,
        pixels: Tensor,
        words: Words,
        *,
        steps: int = 200,
        lr: float = 0.05,
        on_step: Callable[[int, int, float], None] | None = None,
        **options: Any,
    ) -> Tensor:
        """The codes (B, ...) whose pictures come nearest to `pixels` (B, 4, H, W), by gradient descent in W+.

        As arXiv:1912.04958, section 5, without noise, so that all of the picture is in the styles. It starts at the
        nearest of `CANDIDATES` seeds. `on_step` is told (done, steps, loss)."""
        target = self.encoder.encode(pixels)
        code = self._nearest(target, words, **options)
        start = self.styles(code, words, **options)
        seen = self.critic.trunk(target)
        ws = start.clone()
        optimizer = torch.optim.Adam([ws], lr=lr, betas=(0.9, 0.99))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps))
            with torch.enable_grad():
                leaf = ws.detach().requires_grad_(True)
                x = self.synthesise(leaf, words)
                loss = _distance(self.encoder.decode(x), pixels, 1) + _distance(x, target, 2)
                loss = (loss + 0.1 * _distance(self.critic.trunk(x), seen, 1)).sum()
                (ws.grad,) = torch.autograd.grad(loss, leaf)
            optimizer.step()
            if on_step is not None:
                on_step(step + 1, steps, float(loss))
        code[:, -ws[0].numel() :] = (ws - start).flatten(1)
        return code

    def _nearest(self, target: Tensor, words: Words, **options: Any) -> Tensor:
        """Of the codes of the first seeds, without noise, the one nearest to each row of x `target` (B, C, h, w)."""
        codes = torch.cat([self.code(seed) for seed in range(CANDIDATES)])
        codes[:, self.config.z :] = 0
        rows = torch.arange(len(target), device=target.device).repeat_interleave(CANDIDATES)
        tried = codes.repeat(len(target), 1)
        x = self.synthesise(self.styles(tried, words[rows], **options), words[rows])
        best = _distance(x, target[rows], 2).view(len(target), CANDIDATES).argmin(1)
        return codes[best]

    def graphs(self) -> dict[str, Graph]:
        """mapping (z and words to w), generator (W+, noise and words to x), critic (how real x looks for the words),
        decoder and encoder."""
        tokens, pooled, mask, style = self.example_words()
        z, noise = torch.randn(2, self.config.z), torch.randn(2, self.synthesis.noises)
        ws, x = torch.randn(2, self.layers, self.config.w), torch.randn(2, *self.encoder.shape)
        text, about, text_mask, which = WORDS

        def judged(x: Tensor, pooled: Tensor, style: Tensor) -> Tensor:
            return self.critic(x, Words(tokens, pooled, mask, style))

        return {
            "mapping": Graph(self.mapper, (z, pooled, style), ("z", about, which), ("w",)),
            "generator": Graph(self.synthesis, (ws, noise, tokens, mask), ("ws", "noise", text, text_mask), ("x",)),
            "critic": Graph(Call(self, judged), (x, pooled, style), ("x", about, which), ("logit",)),
            **self.encoder.graphs(),
        }

    def runtime(self) -> dict[str, Any]:
        """Lengths of z, of the noise and of W+, the layers of each stage, and the mean w."""
        return {
            "z": self.config.z,
            "noises": self.synthesis.noises,
            "depths": list(self.config.depths),
            "w_mean": self.w_mean.tolist(),
        }


def others(words: Words) -> Words:
    """Each row with the words of the row before: right or wrong captions of the same batch."""
    return Words(*(tensor.roll(1, 0) for tensor in words.flat()))


def _distance(a: Tensor, b: Tensor, power: int) -> Tensor:
    """Mean of |a - b| ** power over all but the rows -> (B,)."""
    return (a - b).abs().pow(power).flatten(1).mean(1)
