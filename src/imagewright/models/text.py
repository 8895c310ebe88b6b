"""The text encoder that all four techniques share: frozen word-piece vectors, hashed n-grams, two layers.

The vectors are distilled from a sentence encoder as in model2vec (each piece alone through the teacher, PCA,
frequency weights), so a word never seen in a caption lands near known ones; n-grams (arXiv 1607.04606) stand
in for words without a piece. Deviations: int8 rows that are never trained; queries and keys are normalised
(arXiv 2302.05442).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from imagewright.models.layers import rms_norm
from imagewright.text import GRAM_BUCKETS, MAX_TOKENS
from imagewright.text_encoder import pack, shipped, unpack


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a TextEncoder; `table_dim`, `grams` and `vocab` are those of the shipped table."""

    vocab: int = 30522
    table_dim: int = 128
    grams: int = GRAM_BUCKETS
    width: int = 256
    depth: int = 2
    heads: int = 4
    max_tokens: int = MAX_TOKENS
    dropout: float = 0.0


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis (arXiv 1910.07467), in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return (rms_norm(x.float()) * self.weight).to(x.dtype)


class WordTable(nn.Module):
    """Frozen word-piece vectors: int8 rows (vocab, dim) with a scale each; random until loaded."""

    rows: Tensor
    scale: Tensor

    def __init__(self, vocab: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randint(-127, 128, (vocab, dim), dtype=torch.int8))
        self.register_buffer("scale", torch.full((vocab, 1), 1 / 127))

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) ids to (B, L, dim) vectors."""
        scale = self.scale[ids]
        return self.rows[ids].to(scale.dtype) * scale


class Layer(nn.Module):
    """One pre-norm transformer layer with normalised queries and keys."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (B, L, D); mask (B, 1, 1, L), True where a token may be attended to."""
        x = x + F.dropout(self.attend(self.norm1(x), mask), self.dropout, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), self.dropout, self.training)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each (B, heads, L, D / heads)
        # written out: for 24 tokens on a CPU the fused kernel's backward pass is several times slower
        logits = self.q_norm(q) @ self.k_norm(k).transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, heads, L, L)
        y = logits.masked_fill(~mask, -1e4).softmax(-1).to(v.dtype) @ v
        projected: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return projected  # (B, L, D)


class TextEncoder(nn.Module):
    """Tokens of `imagewright.text.Tokenizer` to one vector a token and one a text."""

    def __init__(self, config: TextConfig = TextConfig()) -> None:
        super().__init__()
        self.config = config
        self.table = WordTable(config.vocab, config.table_dim)
        self.grams = nn.Embedding(config.grams, config.table_dim, padding_idx=0)
        self.embed = nn.Linear(config.table_dim, config.width, bias=False)
        self.positions = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.02)
        layers = (Layer(config.width, config.heads, config.dropout) for _ in range(config.depth))
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.width)
        self.pool = nn.Linear(config.width, config.width, bias=False)
        nn.init.normal_(self.grams.weight, std=0.1)
        nn.init.zeros_(self.grams.weight[0])

    def forward(self, ids: Tensor, grams: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, L), grams (B, L, G), mask (B, L) bool to tokens (B, L, width) and pooled (B, width).

        L may be shorter than max_tokens. Vectors at masked places mean nothing; the caller masks them.
        """
        return self.contextual(self.table(ids), grams, mask)

    def contextual(self, vectors: Tensor, grams: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, from the table's vectors (B, L, table_dim)."""
        count = (grams > 0).sum(-1, keepdim=True).clamp(min=1)  # (B, L, 1)
        spelling = self.grams(grams).sum(2) / count  # (B, L, table_dim)
        x = self.embed(vectors + spelling) + self.positions[: vectors.shape[1]]  # (B, L, width)
        for layer in self.layers:
            x = layer(x, mask[:, None, None])
        tokens = self.norm(x)
        return tokens, self.pooled(tokens, mask)

    def pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, width) of tokens (B, L, width) with their mask (B, L)."""
        weight = mask.unsqueeze(-1).to(tokens.dtype)
        return self.pool((tokens * weight).sum(1) / weight.sum(1))


def load_pretrained(dropout: float = 0.0) -> TextEncoder:
    """The encoder that ships: the frozen table and the distilled layers, fit to be trained further."""
    config = json.loads((files("imagewright") / "assets" / "text" / "config.json").read_text("utf-8"))["model"]
    encoder = TextEncoder(TextConfig(**{**config, "dropout": dropout}))
    encoder.load_state_dict({name: torch.from_numpy(array) for name, array in unpack(shipped()).items()})
    return encoder


def packed_state(encoder: TextEncoder) -> dict[str, NDArray[Any]]:
    """The encoder's weights as they are kept in a file (see text_encoder.pack)."""
    return pack(
        {
            name: tensor.detach().cpu().float().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()
            for name, tensor in encoder.state_dict().items()
        }
    )
