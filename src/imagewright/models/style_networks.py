"""The networks of the style-based GAN: mapping, synthesis and critic (StyleGAN2, arXiv:1912.04958).

Shapes: B pictures, C channels, L tokens. Deviations: the convolutions are modulated by scaling what goes in and out of
one shared convolution, which is the same product and much faster on a CPU; w also holds the words and the style;
cells look at the words' tokens, between convolutions or in transformer blocks at 4x4 cells (both as GigaGAN,
arXiv:2303.05511); the critic has no normalisation (R3GAN, arXiv:2501.05441) and meets the words in a projection
(arXiv:1802.05637).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import STYLES
from imagewright.models.encoders import LatentsConfig, PixelsConfig
from imagewright.models.layers import Block, rms_norm, rotary_table, text_bias
from imagewright.models.technique import Words
from imagewright.models.text import TextConfig

LEAK = 0.2
GAIN = (2 / (1 + LEAK**2)) ** 0.5  # keeps the variance through a leaky rectifier
HEAD = 64  # channels of a block's head, at most
MLP_RATIO = 3  # of a block: with 4 a block less would fit into the same bytes
GATE = 0.3  # how far a block's gates are open at first


@dataclass(frozen=True)
class StyleGANConfig:
    """`z`, `w`: lengths. `widths` and `depths`: channels and modulated convolutions at 4, 8, 16 ... cells a side;
    what is missing to the encoder's side comes from a pixel shuffle. `blocks`: transformer blocks after the
    convolutions at 4 cells. `critic_widths`: channels of the critic at the same sides. `gamma`: weight of the
    penalties; `matching`: weight of telling the right caption from another; `augment`: share of the rows that are
    augmented. `pull`: weight of the distance to a row's own picture; `alone`: first steps in which that is all that
    the generator learns from; `tries`: of so many z a row that lost its style is pulled with the best (1: not at all).
    `truncation`: how far w goes from its mean; `guidance`: how far from the w of the negative prompt, 1 for not at
    all. `alias_free`: the synthesis network of aliasfree.py."""

    encoder: LatentsConfig | PixelsConfig = field(default_factory=LatentsConfig)
    text: TextConfig = field(default_factory=TextConfig)
    z: int = 64
    w: int = 256
    widths: tuple[int, ...] = (256, 96)
    depths: tuple[int, ...] = (3, 3)
    blocks: int = 0
    critic_widths: tuple[int, ...] = (256, 64)
    gamma: float = 2.0
    penalty_every: int = 4
    matching: float = 0.5
    augment: float = 0.5
    pull: float = 0.0
    alone: int = 0
    tries: int = 1
    drop_text: float = 0.1
    drop_style: float = 0.15
    train_text: bool = False
    truncation: float = 1.0
    guidance: float = 1.0
    alias_free: bool = False

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"A row cannot be tried with {self.tries} z.")
        if self.alone and not self.pull:
            raise ValueError("Without a pull there is nothing to learn alone.")
        if self.blocks and (self.alias_free or len(self.widths) < 2):
            raise ValueError("Blocks need a stage above theirs that is not alias_free.")


class Mapping(nn.Module):
    """z, pooled words and style to w."""

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__()
        self.words = nn.Linear(config.text.width, config.w)
        self.style = nn.Embedding(len(STYLES), config.w)
        self.first = nn.Linear(config.z + config.w, config.w)
        self.hidden = nn.ModuleList(nn.Linear(config.w, config.w) for _ in range(3))
        keep_variance(self)

    def forward(self, z: Tensor, pooled: Tensor, style: Tensor) -> Tensor:
        """z (B, z), pooled (B, text_width), style (B,) -> w (B, w), float32."""
        condition = rms_norm(self.words(pooled) + self.style(style))
        w = self.first(torch.cat([rms_norm(z).to(condition.dtype), condition], dim=1))
        for layer in self.hidden:
            w = layer(GAIN * F.leaky_relu(w, LEAK))
        return w.float()


def keep_variance(network: nn.Module) -> None:
    """Draw the weights of linear layers and convolutions so that they keep the variance of what goes in."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


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
        gain = torch.linalg.vector_norm(self.weight, dim=(2, 3))  # in a graph this keeps no squared copy of the weight
        power = F.linear(style.square(), gain.square())  # (B, outside): variance of y
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


class BlockStage(nn.Module):
    """The stage at 4x4 cells with transformer blocks after its styled layers: cells look at cells and words at once.
    Each block has a w. What they know of a cell's quarters goes up by a pixel shuffle, which a doubling would blur."""

    cos: Tensor
    sin: Tensor

    def __init__(self, outside: int, picture: int, config: StyleGANConfig, side: int = 4) -> None:
        super().__init__()
        width, heads = config.widths[0], max(1, config.widths[0] // HEAD)
        self.layers = nn.ModuleList(StyledLayer(width, width, config.w) for _ in range(config.depths[0]))
        self.modulation = nn.Linear(config.w, 6 * width)
        self.blocks = nn.ModuleList(Block(width, heads, config.text.width, MLP_RATIO) for _ in range(config.blocks))
        self.up = nn.Linear(width, 4 * outside)
        self.to_picture = ModulatedConv(width, 4 * picture, config.w, kernel=1, demodulate=False)
        cos, sin = rotary_table(side, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        keep_variance(self.blocks)
        keep_variance(self.up)
        nn.init.normal_(self.modulation.weight, std=GATE * config.w**-0.5)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.offset.data[2::3] = GATE

    def forward(
        self, x: Tensor, picture: None, ws: Tensor, noise: Tensor, words: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """x (B, C, h, w), no picture yet, ws (B, depth + blocks, w), noise (B, depth, h, w) -> (B, outside, 2 h, 2 w)
        and the share of the picture (B, P, 2 h, 2 w)."""
        tokens, mask = words
        depth, (h, w) = len(self.layers), x.shape[2:]
        for i, layer in enumerate(self.layers):
            x = layer(x, ws[:, i], noise[:, i : i + 1])
        cells = x.flatten(2).transpose(1, 2)  # (B, h * w, C)
        bias = text_bias(mask, h * w, cells.dtype)
        for i, block in enumerate(self.blocks, start=depth):
            modulation = self.modulation(ws[:, i]).unflatten(1, (6, -1)).to(cells.dtype)
            cells = block(cells, modulation, tokens.to(cells.dtype), bias, self.cos, self.sin)
        cells = rms_norm(cells)
        x, up = (y.transpose(1, 2).unflatten(2, (h, w)) for y in (cells, self.up(cells)))
        return F.pixel_shuffle(up, 2), F.pixel_shuffle(self.to_picture(x, ws[:, -1]), 2)


class Stage(nn.Module):
    """The layers at one side: up from the stage below, styled layers, words, and its share of the picture."""

    def __init__(self, inside: int, outside: int, depth: int, side: int, picture: int, config: StyleGANConfig) -> None:
        super().__init__()
        self.side = side
        self.layers = nn.ModuleList(StyledLayer(outside if i else inside, outside, config.w) for i in range(depth))
        looks = side <= 8 and not config.blocks  # blocks have looked already
        self.attention = WordAttention(outside, config.text.width) if looks else None
        self.to_picture = ModulatedConv(outside, picture, config.w, kernel=1, demodulate=False)

    def forward(
        self, x: Tensor, picture: Tensor | None, ws: Tensor, noise: Tensor, words: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """x (B, inside, h, w), picture (B, P, h, w) or None, ws (B, depth, w), noise (B, depth, side, side)."""
        if picture is not None and picture.shape[-1] != self.side:
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
        self.shuffle, rest = divmod(shape[1], sides[-1])
        if self.shuffle < 1 or rest:
            raise ValueError(f"{shape[1]} cells a side are no multiple of the last stage's {sides[-1]}.")
        inputs = [config.widths[0], *config.widths]
        picture = shape[0] * self.shuffle**2
        self.constant = nn.Parameter(torch.randn(1, config.widths[0], 4, 4))
        stages: list[nn.Module] = []
        if config.blocks:
            inputs[1] = config.widths[1]
            stages.append(BlockStage(inputs[1], picture, config))
        for i in range(len(stages), len(sides)):
            stages.append(Stage(inputs[i], config.widths[i], config.depths[i], sides[i], picture, config))
        self.stages = nn.ModuleList(stages)
        self.convs, self.sides = config.depths, sides
        self.depths = (config.depths[0] + config.blocks, *config.depths[1:])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def layers(self) -> int:
        """Modulated layers, each with a w of its own."""
        return sum(self.depths)

    @property
    def noises(self) -> int:
        """Noise values of one picture, all layers' cells in a row."""
        return sum(depth * side**2 for depth, side in zip(self.convs, self.sides, strict=True))

    def forward(self, ws: Tensor, noise: Tensor, tokens: Tensor, mask: Tensor, shift: Tensor | None = None) -> Tensor:
        """ws (B, layers, w), noise (B, noises), tokens (B, L, text_width), mask (B, L) -> x (B, C, h, w), float32.

        `shift` (B, 2): move the input by this part of the side (down, right), to measure equivariance."""
        x = self.constant.expand(ws.shape[0], -1, -1, -1)  # not len(): a traced export would fix it
        if shift is not None:
            x = shifted(x, shift)
        picture, layer, cell = None, 0, 0
        for stage, depth, convs, side in zip(self.stages, self.depths, self.convs, self.sides, strict=True):
            here = noise[:, cell : cell + convs * side**2].unflatten(1, (convs, side, side))
            x, picture = stage(x, picture, ws[:, layer : layer + depth], here, (tokens, mask))
            layer, cell = layer + depth, cell + convs * side**2
        assert picture is not None
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

    def start_small(self) -> None:
        """Let the block begin near the identity."""
        with torch.no_grad():
            self.conv2.weight *= 0.3

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(F.leaky_relu(x, LEAK)), LEAK)
        return x + self.conv2(h)


class Critic(nn.Module):
    """How real x looks for its words: a residual trunk and a projection onto them."""

    def __init__(self, config: StyleGANConfig, shape: tuple[int, int, int], features: int = 256) -> None:
        super().__init__()
        widths = tuple(reversed(config.critic_widths))
        shuffle, rest = divmod(shape[1], 4 * 2 ** (len(widths) - 1))
        if shuffle < 1 or rest:
            raise ValueError(f"{len(widths)} critic_widths do not fit {shape[1]} cells a side.")
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
        keep_variance(self)
        for block in (module for module in self.trunk if isinstance(module, CriticBlock)):
            block.start_small()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def judge(self, features: Tensor, words: Words) -> Tensor:
        """features (B, F) of `trunk` -> logits (B,), float32."""
        wanted = self.mixed(F.leaky_relu(self.words(words.pooled) + self.style(words.style), LEAK))  # (B, F)
        match = (rms_norm(wanted.float()) * features.float()).sum(1) * features.shape[1] ** -0.5
        return self.alone(features)[:, 0].float() + match

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """x (B, C, h, w) -> logits (B,)."""
        return self.judge(self.trunk(x), words)
