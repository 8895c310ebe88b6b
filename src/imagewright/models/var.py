"""A transformer that draws a picture scale by scale, all tokens of a scale at once: VAR, arXiv:2404.02905.

It works on the residual codes of a picture tokenizer with several scales. What it reads at the tokens of a scale is
the sum of the coarser ones, resampled to that scale; a token sees its own scale and all coarser ones. Deviations:
words, blocks and modulation are those of models/gpt.py; rotary positions are those of a token's centre on the finest
map. Nothing is cached: a picture takes one pass a scale, each of the same fixed length.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from imagewright.data.batch import Batch
from imagewright.models import tokens
from imagewright.models.encoders import CodesConfig
from imagewright.models.gpt import Conditioned, GPTConfig
from imagewright.models.technique import WORDS, Call, Graph, Words
from imagewright.models.vqvae import TokenizerConfig


@dataclass(frozen=True)
class VARConfig(GPTConfig):
    """As GPTConfig; the tokenizer has several scales. A fill keeps known tokens of every scale, so no look ahead is
    trained: `known_share` means nothing."""

    encoder: CodesConfig = field(
        default_factory=lambda: CodesConfig(TokenizerConfig(quantiser="vq", latent=16, coarse_scales=(1, 2, 4, 6)))
    )
    known_share: float = 0.0


class VAR(Conditioned):
    """Text and style to codes, coarse to fine."""

    config: VARConfig
    cos: Tensor
    sin: Tensor
    seen: Tensor

    def __init__(self, config: VARConfig) -> None:
        super().__init__(config)
        if len(self.encoder.shape) > 1:
            raise ValueError("VAR draws codes of several scales; GPT draws one.")
        tokenizer = self.encoder.config
        self.start = nn.Parameter(0.02 * torch.randn(1, config.width))
        self.embed = nn.Linear(tokenizer.latent, config.width)
        self.head = nn.Linear(config.width, self.count, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        level = torch.cat([torch.full((side * side,), i) for i, side in enumerate(tokenizer.scales)])
        self.register_buffer("seen", level[:, None] >= level, persistent=False)  # (N, N)
        angle = _angles(tokenizer.scales, config.width // config.heads)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def logits(self, codes: Tensor, words: Words, maps: list[Tensor] | None = None) -> Tensor:
        """codes (B, N) -> (B, N, V). Those for a scale depend on the codes of coarser scales alone."""
        tokenizer = self.encoder.autoencoder
        sums = tokenizer.sums(codes)[:-1]
        read = [tokenizer.narrowed(z, index).flatten(2) for index, z in enumerate(sums, start=1)]  # (B, C, n)
        first = self.start.expand(codes.shape[0], 1, -1)
        x = torch.cat([first, self.embed(torch.cat(read, dim=2).transpose(1, 2))], dim=1) + self.places  # (B, N, D)
        turn = self.cos, self.sin
        modulation = self.modulate(words.pooled, words.style)
        x = self.through(x, words, modulation, self.seen, (turn, turn), maps)
        return self.head(self.normed(x, modulation))

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """Mean cross-entropy of the codes of all scales."""
        codes = self.codes_of(batch)
        words = self.words(batch, drop=self.training)
        logits = self.logits(self.noisy(codes, batch.draws), words)
        return self.scores(logits, codes, torch.ones(codes.shape, device=codes.device))

    def draw(self, drawing: tokens.Drawing, words: Words, known: Tensor, keep: Tensor) -> tokens.Codes:
        """One pass a scale."""

        def logits(found: tokens.Codes) -> tokens.Floats:
            codes = torch.from_numpy(found).to(known.device).expand(len(words.mask), -1)
            return self.logits(codes, words).float().cpu().numpy()

        return tokens.scales(logits, self.encoder.config.scales, drawing)

    @torch.no_grad()
    def attention(self, codes: Tensor, words: Words) -> Tensor:
        """How much the finest cells look at each word, (L, h, w), averaged over blocks and heads."""
        maps: list[Tensor] = []
        self.logits(codes, words, maps)
        side = self.encoder.config.scales[-1]
        finest = torch.stack(maps).mean(0)[0, -side * side :]  # (h * w, L)
        return finest.T.unflatten(1, (side, side)).float().cpu()

    def graphs(self) -> dict[str, Graph]:
        """network (codes and words to the logits of all scales), decoder and encoder."""

        def network(codes: Tensor, text: Tensor, pooled: Tensor, text_mask: Tensor, style: Tensor) -> Tensor:
            return self.logits(codes, Words(text, pooled, text_mask, style))

        codes = torch.zeros(2, self.length, dtype=torch.long)
        return {
            "network": Graph(
                Call(self, network), (codes, *self.example_words()), ("x", *WORDS), ("logits",), fast_int8=True
            ),
            **self.encoder.graphs(),
        }

    def runtime(self) -> dict[str, Any]:
        """The shape of the codes, the sides of the scales, and the edits."""
        shape, sides = list(self.encoder.shape), list(self.encoder.config.scales)
        return {"shape": shape, "scales": sides, "edits": list(self.edits)}


def _angles(scales: tuple[int, ...], head_dim: int, theta: float = 100.0) -> Tensor:
    """Rotary angles (N, head_dim / 2) of each scale's cells: half of them of y, half of x, in cells of the finest."""
    quarter = head_dim // 4
    frequency = theta ** (-torch.arange(quarter, dtype=torch.float32) / quarter)
    rows = []
    for side in scales:
        centre = (torch.arange(side) + 0.5) * scales[-1] / side - 0.5
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        rows.append(torch.cat([x.reshape(-1, 1) * frequency, y.reshape(-1, 1) * frequency], dim=1))
    return torch.cat(rows)
