"""A transformer that draws a picture token by token, row by row, after reading its words: DALL-E's scheme
(arXiv:2102.12092) on the codes of models/vqvae.py.

The words are a prefix that every image token attends to. The shared encoder has mixed them in both directions
already, so each block takes the prefix's keys and values straight from it: there is nothing to predict in it, and it
costs no tokens. Further deviations: style and pooled text modulate the blocks (adaLN-single, arXiv:2310.00426);
QK-norm; rotary positions over two axes, where a query stands at the token it predicts and a key at the token it
holds; and a look ahead: what is known of a picture that is to be filled (all of it, also what comes later) is added
to the inputs by two convolutions, trained on random boxes, so that a fill fits its surroundings on every side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import Batch, Draws
from imagewright.models import tokens
from imagewright.models.diffusion import random_masks
from imagewright.models.encoders import Codes, CodesConfig
from imagewright.models.layers import MLP, compile_each, rms_norm, rotary_table, rotate
from imagewright.models.technique import Call, Cond, Graph, Prompted, Words
from imagewright.models.text import TextConfig
from imagewright.source import Floats, Source
from imagewright.watch import Watch

HIDDEN = -1e4  # added to the logits of what must not be seen; finite, because a row may hold nothing else
Turn = tuple[Tensor, Tensor]  # cos and sin


@dataclass(frozen=True)
class GPTConfig:
    """Transformer `width`, `depth`, `heads`, `dropout`; `smoothing` of labels; `token_noise`: share of input tokens
    replaced by random ones; `known_share` of rows that see a part of the picture; `styles` known by index;
    `drop_text`, `drop_style`, `train_text` as in every Prompted technique. The rest are defaults of sampling."""

    encoder: CodesConfig = field(default_factory=CodesConfig)
    text: TextConfig = field(default_factory=TextConfig)
    width: int = 256
    depth: int = 5
    heads: int = 4
    dropout: float = 0.1
    smoothing: float = 0.1
    token_noise: float = 0.1
    known_share: float = 0.1
    styles: int = 6
    drop_text: float = 0.1
    drop_style: float = 0.15
    train_text: bool = False
    guidance: float = 3.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.95


class Attention(nn.Module):
    """Attention of x to the past (keys and values that are given) and to itself, written out: at these lengths the
    fused kernel's backward pass is slower on a CPU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_gain = nn.Parameter(torch.ones(self.head_dim))
        self.k_gain = nn.Parameter(torch.ones(self.head_dim))

    def forward(
        self, x: Tensor, past_k: Tensor, past_v: Tensor, bias: Tensor, q_turn: Turn, k_turn: Turn
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, N, D), past (B, H, P, d), bias (B or 1, 1, N or 1, P + N) -> y (B, N, D), k and v (B, H, N, d), and
        the weights (B, H, N, P + N)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, d)
        scale = self.q_gain.to(q.dtype) * self.head_dim**-0.5
        q = rotate(rms_norm(q) * scale, *q_turn)
        k = rotate(rms_norm(k) * self.k_gain.to(k.dtype), *k_turn)
        logits = torch.cat([q @ past_k.transpose(-1, -2), q @ k.transpose(-1, -2)], dim=-1) + bias
        weights = torch.softmax(logits, dim=-1, dtype=logits.dtype)  # (B, H, N, P + N)
        P = past_k.shape[2]
        y = weights[..., :P] @ past_v + weights[..., P:] @ v  # (B, H, N, d)
        return self.out(y.transpose(1, 2).flatten(2)), k, v, weights


class PrefixBlock(nn.Module):
    """A pre-norm transformer block after a prefix of text, modulated by adaLN-single."""

    def __init__(self, width: int, heads: int, text_width: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.text_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.mlp = MLP(width, 4 * width)
        self.offset = nn.Parameter(torch.zeros(6, width))
        self.dropout = nn.Dropout(dropout)

    def prefix(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, text_width) -> keys and values (B, H, L, d)."""
        k, v = self.text_kv(text).unflatten(-1, (2, self.attention.heads, -1)).permute(2, 0, 3, 1, 4)
        return rms_norm(k) * self.attention.k_gain.to(k.dtype), v

    def forward(
        self, x: Tensor, modulation: Tensor, past: tuple[Tensor, Tensor], bias: Tensor, q_turn: Turn, k_turn: Turn
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, N, D), modulation (B, 6, D) -> x; the rest as Attention."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (modulation + self.offset.to(modulation.dtype)).unsqueeze(2).unbind(1)
        )
        y, k, v, weights = self.attention(rms_norm(x) * (1 + scale1) + shift1, *past, bias, q_turn, k_turn)
        x = x + gate1 * self.dropout(y)
        x = x + gate2 * self.dropout(self.mlp(rms_norm(x) * (1 + scale2) + shift2))
        return x, k, v, weights


class Conditioned(Prompted):
    """What GPT and VAR share: blocks after words, an output layer, the loss of tokens, codes and their pictures."""

    family: ClassVar[str] = "autoregressive"
    sampling: ClassVar[tuple[str, ...]] = ("guidance", "temperature", "top_k", "top_p")

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.encoder = Codes(config.encoder)
        self.count, self.length = self.encoder.config.codes, self.encoder.config.positions
        width = config.width
        self.pooled = nn.Linear(config.text.width, width)
        self.style = nn.Embedding(config.styles, width)
        self.modulation = nn.Linear(width, 8 * width)  # six for the blocks, two for the output
        blocks = [PrefixBlock(width, config.heads, config.text.width, config.dropout) for _ in range(config.depth)]
        self.blocks: list[PrefixBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.places = nn.Parameter(0.02 * torch.randn(self.length, width))
        for module in (*(m for block in blocks for m in block.modules()), self.pooled):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(self.modulation.weight)  # each block starts as the identity
        nn.init.zeros_(self.modulation.bias)
        nn.init.normal_(self.style.weight, std=0.02)

    @property
    def pixels(self) -> int:
        """Side of the pictures."""
        return self.config.encoder.autoencoder.size

    def compile_(self) -> None:
        """Compile the blocks in place (torch.compile); parameter names stay."""
        compile_each([*self.blocks, *self.text.layers])

    def modulate(self, pooled: Tensor, style: Tensor) -> Tensor:
        """(B, text_width), (B,) -> (B, 8, D)."""
        return self.modulation(F.silu(self.pooled(pooled) + self.style(style))).unflatten(1, (8, -1))

    def normed(self, x: Tensor, modulation: Tensor) -> Tensor:
        """What the output layer sees: x (B, N, D) -> (B, N, D)."""
        shift, scale = modulation[:, 6:].unsqueeze(2).unbind(1)
        return rms_norm(x) * (1 + scale) + shift

    def through(
        self,
        x: Tensor,
        words: Words,
        modulation: Tensor,
        seen: Tensor,
        turns: tuple[Turn, ...],
        maps: list[Tensor] | None = None,
    ) -> Tensor:
        """x (B, N, D) through all blocks; `seen` (N, N) bool says which tokens see which. `maps` gets each block's
        attention to the words, (B, N, L)."""
        N, L = x.shape[1], words.mask.shape[1]
        visible = torch.cat([words.mask[:, None].expand(-1, N, L), seen.expand(x.shape[0], N, N)], dim=2)
        bias = hiding(visible, x.dtype)  # (B, 1, N, L + N)
        q_turn, k_turn = ((cos.to(x.dtype), sin.to(x.dtype)) for cos, sin in turns)
        for block in self.blocks:
            x, _, _, weights = block(x, modulation[:, :6], block.prefix(words.tokens), bias, q_turn, k_turn)
            if maps is not None:
                maps.append(weights[..., :L].mean(1))
        return x

    def scores(self, logits: Tensor, codes: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of logits (B, N, V) for codes (B, N) where `weight` (B, N) is 1, with smoothed labels while
        training; without smoothing it is `nll`. `right`: share of codes that are the likeliest."""
        log_p = torch.log_softmax(logits.float(), dim=-1)
        nll = -log_p.gather(2, codes[..., None])[..., 0]  # (B, N)
        smoothing = self.config.smoothing if self.training else 0.0
        loss = ((1 - smoothing) * nll - smoothing * log_p.mean(-1)) * weight
        right = (logits.argmax(-1) == codes).float()
        return {"loss": loss.mean(), "nll": nll.detach().mean(), "right": right.mean()}

    def noisy(self, codes: Tensor, draws: Draws) -> Tensor:
        """Some codes (B, N) replaced by random ones, while training."""
        if not self.training:
            return codes
        u = draws.rand(2, codes.shape[1]).to(codes.device)
        return torch.where(u[:, 0] < self.config.token_noise, (u[:, 1] * self.count).long(), codes)

    def codes_of(self, batch: Batch) -> Tensor:
        """(B, N): the cached ones, or those of the pixels."""
        if batch.latents is not None:
            return batch.latents.flatten(1)
        assert batch.pixels is not None
        return self.encoder.encode(batch.pixels).flatten(1)

    @property
    def edits(self) -> tuple[str, ...]:
        """Codes are given or drawn."""
        return "image", "mask"

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
        """Pictures (B, 4, H, W) in [-1, 1], each made alone, of the codes that `source` gives and new ones."""
        device, shape, sides = self.places.device, self.encoder.shape, self.encoder.config.scales
        rows: list[Tensor] = []

        def encode(pixels: Floats) -> tokens.Codes:
            return self.encoder.encode(torch.from_numpy(pixels).to(device)).flatten().cpu().numpy()

        def decode(codes: tokens.Codes) -> Floats:
            return self.encoder.decode(torch.from_numpy(codes).to(device).view(1, *shape)).float().cpu().numpy()

        for row, seed in enumerate(seeds):
            words = self.wanted_and_avoided(cond, row)
            given = tokens.given(source, encode, sides, seed)
            codes, mask = (torch.from_numpy(array).to(device).view(1, *shape) for array in (given.codes, ~given.keep))
            drawn = self.regenerate(codes, mask, words, seed, watch=watch, **options)
            if watch.tracing and (pieces := self.tokenizer.names(cond.prompts[row], self.config.text.max_tokens)):
                watch.shown("attention", self.length, self.attention(drawn, words[:1])[: len(pieces)], words=pieces)
            if len(sides) == 1:
                closed = tokens.closed(drawn.flatten().cpu().numpy(), source, encode, decode, sides[0])
                drawn = torch.from_numpy(closed).to(device).view(1, *shape)
            rows.append(self.render(drawn, words))
        return torch.cat(rows)

    @torch.no_grad()
    def regenerate(
        self, codes: Tensor, mask: Tensor, words: Words, seed: int, *, watch: Watch = Watch(), **options: Any
    ) -> Tensor:
        """`codes` (1, ...) with those drawn anew where `mask` (1, ...) is true. `words`: the wanted and the avoided."""
        choice = tokens.Choice.of(self.chosen(options))
        known, keep = codes.flatten(1), ~mask.flatten(1)
        kept = {int(i): int(known[0, i]) for i in keep[0].nonzero()}
        onlooker = tokens.onlooker(watch, self.length, self._picture)
        drawing = tokens.Drawing(tokens.uniforms(seed, self.length), choice, kept, onlooker)
        drawn = self.draw(drawing, words[: choice.rows], known, keep)
        return torch.from_numpy(drawn).to(codes.device).view(codes.shape)

    def draw(self, drawing: tokens.Drawing, words: Words, known: Tensor, keep: Tensor) -> tokens.Codes:
        """The codes (N,) of one picture, of which those of `known` (1, N) stay where `keep` (1, N) is true."""
        raise NotImplementedError

    def attention(self, codes: Tensor, words: Words) -> Tensor:
        """How much the cells look at each word, (L, h, w), averaged over blocks and heads."""
        raise NotImplementedError

    def _picture(self, codes: tokens.Codes, made: tokens.Floats) -> Tensor:
        x, done = (torch.from_numpy(a).to(self.places.device).unflatten(1, self.encoder.shape) for a in (codes, made))
        return self.encoder.decode(x, done).float().cpu()

    @torch.no_grad()
    def invert(self, pixels: Tensor, words: Words, **options: Any) -> Tensor:
        """The codes (B, ...) of pictures (B, 4, H, W)."""
        return self.encoder.encode(pixels)

    @torch.no_grad()
    def render(self, code: Tensor, words: Words, **options: Any) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1] from codes (B, ...)."""
        return self.encoder.decode(code).float().clamp(-1, 1)

    def mix(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """A cross-fade: one code after the other, in a fixed random order, is taken from `b` instead of `a`."""
        rank = np.random.Generator(np.random.Philox(0)).permutation(a[0].numel())
        from_b = torch.from_numpy(rank < round(share * a[0].numel())).view(a[0].shape).to(a.device)
        return torch.where(from_b, b, a)


def hiding(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N, K) bool -> (B, 1, N, K) to add to logits."""
    return ((~visible).to(dtype) * HIDDEN)[:, None]


class GPT(Conditioned):
    """Text and style to codes in raster order, from the top left."""

    config: GPTConfig
    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        if len(self.encoder.shape) == 1:
            raise ValueError("GPT draws codes of one scale; VAR draws several.")
        width, channels, side = config.width, config.encoder.autoencoder.latent, self.encoder.shape[0]
        self.embed = nn.Embedding(self.count + 1, width)  # one more to start from; the others are the output layer too
        nn.init.normal_(self.embed.weight, std=0.02)
        self.look_near = nn.Conv2d(channels + 1, width // 2, 3, padding=1, bias=False)  # without biases, so that
        self.look_far = nn.Conv2d(width // 2, width, 5, padding=2, bias=False)  # nothing known adds nothing
        nn.init.zeros_(self.look_far.weight)
        cos, sin = rotary_table(side, width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Of the queries, at the tokens that they predict, and of the keys, at the tokens that they hold."""
        held = torch.cat([self.cos[:1], self.cos[:-1]]), torch.cat([self.sin[:1], self.sin[:-1]])
        return (self.cos, self.sin), held

    def ahead(self, known: Tensor, mask: Tensor) -> Tensor:
        """What known codes (B, N) tell, where mask (B, N) is 1, to each input: (B, N, D)."""
        shape = self.encoder.shape
        values = self.encoder.autoencoder.quantiser.values(known).transpose(1, 2).unflatten(2, shape)  # (B, C, h, w)
        where = mask[:, None].unflatten(2, shape)
        near = F.silu(self.look_near(torch.cat([values * where, where], dim=1)))
        return self.look_far(near).flatten(2).transpose(1, 2)

    def logits(
        self, codes: Tensor, words: Words, known: Tensor, mask: Tensor, maps: list[Tensor] | None = None
    ) -> Tensor:
        """(B, n, V) for positions 0 to n - 1; `codes` (B, n - 1 or more) are the tokens before them."""
        B, N = len(codes), self.length
        start = torch.full((B, 1), self.count, device=codes.device)
        inputs = torch.cat([start, codes], dim=1)[:, :N]
        n = inputs.shape[1]
        x = self.embed(inputs) + self.places[:n] + self.ahead(known, mask)[:, :n]  # (B, n, D)
        seen = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        turns = tuple((cos[:n], sin[:n]) for cos, sin in self.turns)
        modulation = self.modulate(words.pooled, words.style)
        x = self.through(x, words, modulation, seen, turns, maps)
        return self.output(x, modulation)

    def output(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(B, N, D) -> logits (B, N, V)."""
        return F.linear(self.normed(x, modulation), self.embed.weight[: self.count])

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """Mean cross-entropy of the codes that are not known."""
        codes, draws = self.codes_of(batch), batch.draws
        mask = torch.zeros(codes.shape, device=codes.device)
        if self.training:
            mask = random_masks(draws, self.encoder.shape[0], self.config.known_share).flatten(1).to(codes.device)
        words = self.words(batch, drop=self.training)
        logits = self.logits(self.noisy(codes, draws)[:, :-1], words, codes, mask)
        return self.scores(logits, codes, 1 - mask)

    def prefix(
        self, text: Tensor, pooled: Tensor, style: Tensor, known: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The cache of keys and values (B, depth, 2, H, L + N, d) with the words' in it, the modulation (B, 8, D) and
        the look ahead (B, N, D)."""
        kv = torch.stack([torch.stack(block.prefix(text), dim=1) for block in self.blocks], dim=1)
        cache = F.pad(kv, (0, 0, 0, self.length))
        return cache, self.modulate(pooled, style), self.ahead(known, mask)

    def step(
        self, token: Tensor, position: Tensor, cache: Tensor, text_mask: Tensor, modulation: Tensor, ahead: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, V) at `position` (B,) after the previous `token` (B,), and what to put into the cache at
        L + position: (B, depth, 2, H, d). `ahead` (B, D) is the look ahead at the position."""
        earlier = torch.arange(self.length, device=token.device) < position[:, None]  # (B, N)
        itself = torch.ones_like(earlier[:, :1])
        bias = hiding(torch.cat([text_mask, earlier, itself], dim=1)[:, None], cache.dtype)  # (B, 1, 1, L + N + 1)
        at = position[:, None, None]  # of tables (N, d / 2), so that they become (B, 1, 1, d / 2)
        q_turn, k_turn = ((cos[at], sin[at]) for cos, sin in self.turns)
        x = (self.embed(token) + self.places[position] + ahead)[:, None]  # (B, 1, D)
        new = []
        for index, block in enumerate(self.blocks):
            past = cache[:, index, 0], cache[:, index, 1]
            x, k, v, _ = block(x, modulation[:, :6], past, bias, q_turn, k_turn)
            new.append(torch.stack([k, v], dim=1)[..., 0, :])  # (B, 2, H, d)
        return self.output(x, modulation)[:, 0], torch.stack(new, dim=1)

    def draw(self, drawing: tokens.Drawing, words: Words, known: Tensor, keep: Tensor) -> tokens.Codes:
        """In raster order, each step with the keys and values of those before it."""
        rows, L = words.mask.shape
        known, mask = known.expand(rows, -1), keep.float().expand(rows, -1)
        cache, modulation, ahead = self.prefix(words.tokens, words.pooled, words.style, known, mask)

        def logits(previous: int, position: int) -> tokens.Floats:
            token = torch.full((rows,), previous, device=cache.device)
            at = torch.full_like(token, position)
            found, new = self.step(token, at, cache, words.mask, modulation, ahead[:, position])
            cache[..., L + position, :] = new
            return found.float().cpu().numpy()

        return tokens.raster(logits, self.count, drawing)

    def draw_slow(self, drawing: tokens.Drawing, words: Words, known: Tensor, keep: Tensor) -> tokens.Codes:
        """The same, each step computed from nothing: what `draw` must agree with."""
        rows = len(words.mask)
        known, mask = known.expand(rows, -1), keep.float().expand(rows, -1)
        before: list[int] = []

        def logits(previous: int, position: int) -> tokens.Floats:
            if position:
                before.append(previous)
            codes = torch.tensor(before, dtype=torch.long, device=known.device).expand(rows, -1)
            return self.logits(codes, words, known, mask)[:, -1].float().cpu().numpy()

        return tokens.raster(logits, self.count, drawing)

    @torch.no_grad()
    def attention(self, codes: Tensor, words: Words) -> Tensor:
        """How much the cells look at each word while they are chosen, (L, h, w), averaged over blocks and heads."""
        maps: list[Tensor] = []
        known = codes.flatten(1)
        self.logits(known[:, :-1], words, known, torch.zeros(known.shape, device=known.device), maps)
        return torch.stack(maps).mean(0)[0].T.unflatten(1, self.encoder.shape).float().cpu()

    def graphs(self) -> dict[str, Graph]:
        """prefix (words and known codes to the first cache), step (a token to the next one's logits), decoder and
        encoder."""
        text, pooled, text_mask, style = self.example_words()
        codes = torch.zeros(2, self.length, dtype=torch.long)
        with torch.no_grad():
            cache, modulation, ahead = self.prefix(text, pooled, style, codes, codes.float())
        position = torch.tensor([3, 4])
        return {
            "prefix": Graph(
                Call(self, self.prefix),
                (text, pooled, style, codes, codes.float()),
                ("text", "pooled", "style", "known", "mask"),
                ("cache", "modulation", "ahead"),
            ),
            "step": Graph(
                Call(self, self.step),
                (position - 1, position, cache, text_mask, modulation, ahead[:, 0]),
                ("token", "position", "cache", "text_mask", "modulation", "ahead"),
                ("logits", "new"),
                fast_int8=True,
            ),
            **self.encoder.graphs(),
        }

    def runtime(self) -> dict[str, Any]:
        """How many codes there are, the shape of their map, and the edits."""
        return {"codes": self.count, "shape": list(self.encoder.shape), "edits": list(self.edits)}
