"""A convolutional U-Net for diffusion (DDPM, arXiv:2006.11239, appendix B; ADM, arXiv:2105.05233, section 3).

Called like the DiT: time, pooled text and style modulate every residual block by scale and shift after its group norm;
the lowest resolutions attend to themselves and to the text. Deviations: the input is folded by pixel-unshuffling, so
that the widest convolutions run on few pixels; one attention reads image and text together (JointAttention) instead of
two after each other; rotary positions over two axes; the known picture and its mask come in as further channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.models.layers import JointAttention, rotary_table, text_bias, timestep_embedding

GROUPS = 8


@dataclass(frozen=True)
class UNetConfig:
    """`channels` and `side` of the input, folded in patches of `patch` a side; `widths` (multiples of 8) of the levels,
    each at half the side of the one before; `blocks` a level on the way down (one more on the way up);
    `attention`: how many of the lowest levels attend, with `head` channels a head; `text_width` of the text encoder's
    outputs; `styles` known by index."""

    channels: int = 4
    side: int = 64
    patch: int = 4
    widths: tuple[int, ...] = (64, 128, 192)
    blocks: int = 2
    attention: int = 2
    head: int = 32
    text_width: int = 256
    styles: int = 6
    dropout: float = 0.0


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The layer with weight and bias 0, so that what it adds starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Modulated(nn.Module):
    """A residual block of two 3x3 convolutions, (B, C, h, w) -> (B, out, h, w), with `cond` (B, D) as scale and shift
    of the second norm (arXiv:2105.05233, equation 3)."""

    def __init__(self, channels: int, out: int, cond: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, channels), nn.GroupNorm(GROUPS, out)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(out, out, 3, padding=1))  # the block starts as its skip
        self.modulation = zeroed(nn.Linear(cond, 2 * out))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.modulation(cond)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))


class TextAttention(nn.Module):
    """x + attention of the pixels to themselves and to the text, at one resolution; same shape (B, C, h, w)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, head: int, text_width: int, side: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.attention = JointAttention(width, width // head, text_width)
        zeroed(self.attention.out)
        cos, sin = rotary_table(side, head)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor, text: Tensor, text_mask: Tensor, maps: list[Tensor] | None) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C)
        bias = text_bias(text_mask, h.shape[1], h.dtype)
        h = self.attention(h, text, bias, self.cos.to(h.dtype), self.sin.to(h.dtype), maps)
        return x + h.transpose(1, 2).reshape(x.shape)


class Stage(nn.Module):
    """A residual block, then attention where the level has it."""

    def __init__(self, channels: int, level: int, config: UNetConfig) -> None:
        super().__init__()
        out, levels = config.widths[level], len(config.widths)
        attends = level >= levels - config.attention
        self.shows = level == levels - config.attention  # its attention maps are the finest there are
        self.residual = Modulated(channels, out, config.widths[-1], config.dropout)
        side = sides(config)[level]
        self.attention = TextAttention(out, config.head, config.text_width, side) if attends else None

    def forward(self, x: Tensor, cond: Tensor, text: Tensor, text_mask: Tensor, maps: list[Tensor] | None) -> Tensor:
        x = self.residual(x, cond)
        return x if self.attention is None else self.attention(x, text, text_mask, maps if self.shows else None)


class UNet(nn.Module):
    """(x_t, t, text, style, known picture, mask) -> the network's prediction, shaped like x_t."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        check(config)
        self.config = config
        widths, cond = config.widths, config.widths[-1]
        self.time = nn.Sequential(nn.Linear(256, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.pooled = nn.Linear(config.text_width, cond)
        self.style = nn.Embedding(config.styles, cond)
        nn.init.normal_(self.style.weight, std=0.02)
        self.inward = nn.Conv2d((2 * config.channels + 1) * config.patch**2, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        kept, channels = [widths[0]], widths[0]  # widths of the skip connections
        for level, width in enumerate(widths):
            if level > 0:
                self.shrink.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                kept.append(channels)
            stages = nn.ModuleList()
            for _ in range(config.blocks):
                stages.append(Stage(channels, level, config))
                channels = width
                kept.append(channels)
            self.down.append(stages)
        self.middle = nn.ModuleList(Stage(channels, len(widths) - 1, config) for _ in range(2))
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            stages = nn.ModuleList()
            for _ in range(config.blocks + 1):
                stages.append(Stage(channels + kept.pop(), level, config))
                channels = width
            self.up.append(stages)
            if level > 0:
                self.grow.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.outward = zeroed(nn.Conv2d(channels, config.channels * config.patch**2, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        pooled: Tensor,
        text_mask: Tensor,
        style: Tensor,
        known: Tensor,
        mask: Tensor,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """x, known (B, C, h, w), mask (B, 1, h, w) with 1 where known, t (B,), text (B, L, text_width),
        pooled (B, text_width), text_mask (B, L) bool, style (B,) int64 -> (B, C, h, w).

        `maps`, if given, gets the attention to the text tokens of the finest level that has any, (B, N, L) each."""
        cond = F.silu(self.time(timestep_embedding(t, 256)) + self.pooled(pooled) + self.style(style))  # (B, D)
        words = text, text_mask, maps
        h = self.inward(F.pixel_unshuffle(torch.cat([x, known * mask, mask], dim=1), self.config.patch))
        kept = [h]
        for level, stages in enumerate(self.down):
            if level > 0:
                h = self.shrink[level - 1](h)
                kept.append(h)
            for stage in stages.children():
                h = stage(h, cond, *words)
                kept.append(h)
        for stage in self.middle:
            h = stage(h, cond, *words)
        finer = sides(self.config)[-2::-1]
        for step, stages in enumerate(self.up):
            for stage in stages.children():
                h = stage(torch.cat([h, kept.pop()], dim=1), cond, *words)
            if step < len(finer):
                h = self.grow[step](F.interpolate(h, size=(finer[step], finer[step]), mode="nearest"))
        return F.pixel_shuffle(self.outward(F.silu(self.norm(h))), self.config.patch)


def sides(config: UNetConfig) -> list[int]:
    """The side of each level: half of the one before, rounded up."""
    found = [config.side // config.patch]
    for _ in config.widths[1:]:
        found.append(-(-found[-1] // 2))
    return found


def check(config: UNetConfig) -> None:
    """Raise ValueError for sizes that do not fit each other."""
    if config.side % config.patch:
        raise ValueError(f"A side of {config.side} is no multiple of the patch, {config.patch}.")
    if any(width % GROUPS for width in config.widths):
        raise ValueError(f"The widths {config.widths} are not all multiples of {GROUPS}.")
    if not 1 <= config.attention <= len(config.widths):
        raise ValueError(f"From 1 to {len(config.widths)} levels can attend, not {config.attention}.")
    if any(width % config.head for width in config.widths[-config.attention :]):
        raise ValueError(f"The widths that attend are not all multiples of the head, {config.head}.")
