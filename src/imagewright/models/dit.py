"""A diffusion transformer (DiT, arXiv:2212.09748) small enough for a laptop.

Deviations: adaLN-single (PixArt-alpha, arXiv:2310.00426), rotary positions over two axes, QK-norm, no biases, and
text as extra keys and values of every attention instead of cross-attention layers. The input carries three things
along channels: the noised picture, a known picture, and a mask of where it is known (-1: it is the picture that an
instruction changes), so that filling, expanding and editing need no second model. A network that predicts x_0 may
copy: a gate for each number of the output mixes in the known picture (as pointers copy words, arXiv:1704.04368).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from imagewright.models.layers import Block, rms_norm, rotary_table, text_bias, timestep_embedding


@dataclass(frozen=True)
class DiTConfig:
    """`channels` and `side` of the input, `patch` a side; transformer `width`, `depth`, `heads`, `mlp_ratio`;
    `text_width` of the text encoder's outputs; `styles` known by index; `copies`: whether it can copy the known
    picture."""

    channels: int = 16
    side: int = 8
    patch: int = 2
    width: int = 384
    depth: int = 8
    heads: int = 6
    mlp_ratio: int = 4
    text_width: int = 256
    styles: int = 6
    dropout: float = 0.0
    copies: bool = False


MOSTLY = 2.0  # where the copying gate starts: what is known stays, until the network learns better


class DiT(nn.Module):
    """(x_t, t, text, style, known picture, mask) -> the network's prediction, shaped like x_t."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch
        self.patch_in = nn.Linear((2 * config.channels + 1) * patch**2, width)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled = nn.Linear(config.text_width, width)
        self.style = nn.Embedding(config.styles, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.text_width, config.mlp_ratio, config.dropout) for _ in range(config.depth)
        )
        self.final = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, config.channels * patch**2)
        self.copy = nn.Linear(width, config.channels * patch**2) if config.copies else None
        cos, sin = rotary_table(config.side // patch, width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._init()

    def _init(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for linear in (self.modulation, self.final, self.patch_out):  # each block starts as the identity
            nn.init.zeros_(linear.weight)
        if self.copy is not None:
            nn.init.zeros_(self.copy.weight)
            nn.init.constant_(self.copy.bias, MOSTLY)
        nn.init.normal_(self.style.weight, std=0.02)

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
        """x, known (B, C, h, w), mask (B, 1, h, w) with 1 or -1 where known, t (B,), text (B, L, text_width),
        pooled (B, text_width), text_mask (B, L) bool, style (B,) int64 -> (B, C, h, w).

        `maps`, if given, gets each block's attention to the text tokens, (B, N, L)."""
        cond = self.time(timestep_embedding(t, 256)) + self.pooled(pooled) + self.style(style)  # (B, D)
        cond = nn.functional.silu(cond)
        modulation = self.modulation(cond).unflatten(1, (6, -1))  # (B, 6, D)
        h = self.patch_in(self._patchify(torch.cat([x, known * mask, mask], dim=1)))  # (B, N, D)
        bias = text_bias(text_mask, h.shape[1], h.dtype)  # (B, 1, 1, N + L)
        cos, sin = self.cos.to(h.dtype), self.sin.to(h.dtype)
        for block in self.blocks:
            h = block(h, modulation, text, bias, cos, sin, maps)
        shift, scale = self.final(cond)[:, None].chunk(2, dim=-1)
        h = rms_norm(h) * (1 + scale) + shift
        out = self._unpatchify(self.patch_out(h))
        if self.copy is None:
            return out
        gate = self._unpatchify(self.copy(h).sigmoid()) * mask.abs()
        return out + gate * (known - out)

    def _patchify(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, N, C * p * p)."""
        p, n = self.config.patch, self.config.side // self.config.patch
        B, C = x.shape[:2]
        return x.view(B, C, n, p, n, p).permute(0, 2, 4, 1, 3, 5).reshape(B, n * n, C * p * p)

    def _unpatchify(self, x: Tensor) -> Tensor:
        """(B, N, C * p * p) -> (B, C, h, w)."""
        p, n, C = self.config.patch, self.config.side // self.config.patch, self.config.channels
        return x.view(-1, n, n, C, p, p).permute(0, 3, 1, 4, 2, 5).reshape(-1, C, n * p, n * p)
