"""Layers that several networks share: transformer blocks with joint image-text attention, rotary positions,
residual convolution blocks.

Shapes: B pictures, N tokens, D width, H heads, C channels. QK-norm after arXiv:2302.05442, rotary positions after
arXiv:2104.09864 (here over two axes), adaLN-single after arXiv:2310.00426.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compile_each(modules: Iterable[nn.Module]) -> None:
    """Compile modules in place (torch.compile), for the very shapes they meet; parameter names stay.

    Given a network's blocks one by one, the equal ones are compiled once: minutes less than the network as a whole."""
    for module in modules:
        module.compile(dynamic=False)


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of t (B,) in [0, 1] -> (B, width). Vaswani et al., arXiv:1706.03762, section 3.5."""
    half = width // 2
    frequency = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angle = 1000.0 * t.float()[:, None] * frequency  # (B, half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def rotary_table(side: int, head_dim: int, theta: float = 100.0) -> tuple[Tensor, Tensor]:
    """cos and sin, each (side * side, head_dim // 2): a quarter of the channels turns with x, a quarter with y."""
    quarter = head_dim // 4
    frequency = theta ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angle = torch.cat([x.reshape(-1, 1) * frequency, y.reshape(-1, 1) * frequency], dim=1)  # (N, head_dim // 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (i, i + d/2) of x (B, H, N, d) by the angles of cos and sin (N, d/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square normalisation over the last axis, without gain."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6)


def text_bias(text_mask: Tensor, tokens: int, dtype: torch.dtype) -> Tensor:
    """What JointAttention adds to its logits so that padding is not read: text_mask (B, L) bool -> (B, 1, 1, N + L)."""
    image = torch.zeros(text_mask.shape[0], tokens, dtype=dtype, device=text_mask.device)
    return torch.cat([image, (~text_mask).to(dtype) * -1e4], dim=1)[:, None, None, :]


class JointAttention(nn.Module):
    """Image tokens attend to themselves and to the text: text gives keys and values only, so it costs a sixth of
    an image token (the text encoder has already mixed it)."""

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.text_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_gain = nn.Parameter(torch.ones(self.head_dim))
        self.k_gain = nn.Parameter(torch.ones(self.head_dim))

    def forward(
        self, x: Tensor, text: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, maps: list[Tensor] | None = None
    ) -> Tensor:
        """x (B, N, D), text (B, L, text_width), bias (B, 1, 1, N + L) added to the logits -> (B, N, D).

        `maps`, if given, gets the weights of the text tokens, mean over heads: (B, N, L)."""
        B, N, D = x.shape
        L = text.shape[1]
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)  # (B, H, N, d)
        tk, tv = self.text_kv(text).view(B, L, 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q_gain, k_gain = self.q_gain.to(q.dtype) * self.head_dim**-0.5, self.k_gain.to(q.dtype)
        q = rotate(rms_norm(q) * q_gain, cos, sin)
        k = torch.cat([rotate(rms_norm(k) * k_gain, cos, sin), rms_norm(tk) * k_gain], dim=2)
        v = torch.cat([v, tv], dim=2)  # (B, H, N + L, d)
        logits = q @ k.transpose(-1, -2) + bias  # (B, H, N, N + L)
        weights = torch.softmax(logits, dim=-1, dtype=logits.dtype)
        if maps is not None:
            maps.append(weights[..., N:].mean(dim=1))
        y = weights @ v  # (B, H, N, d)
        return self.out(y.transpose(1, 2).reshape(B, N, D))


class MLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """A transformer block whose shift, scale and gate come from one shared projection plus a learned offset of its
    own (adaLN-single)."""

    def __init__(self, width: int, heads: int, text_width: int, mlp_ratio: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = JointAttention(width, heads, text_width)
        self.mlp = MLP(width, mlp_ratio * width)
        self.offset = nn.Parameter(torch.zeros(6, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: Tensor,
        bias: Tensor,
        cos: Tensor,
        sin: Tensor,
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """x (B, N, D), modulation (B, 6, D) -> (B, N, D). Everything stays in the dtype of x: half the traffic under
        autocast, where elementwise work costs as much as the matrix products."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (modulation + self.offset.to(modulation.dtype)).unsqueeze(2).unbind(1)
        )
        h = rms_norm(x) * (1 + scale1) + shift1
        x = x + gate1 * self.dropout(self.attention(h, text, bias, cos, sin, maps))
        h = rms_norm(x) * (1 + scale2) + shift2
        return x + gate2 * self.dropout(self.mlp(h))


class ResidualConv(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), 3x3, same shape (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))
