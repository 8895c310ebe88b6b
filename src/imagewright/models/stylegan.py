"""A style-based generator that follows words, and its critic (StyleGAN2, arXiv:1912.04958, at the size of icons).

A mapping network turns noise z, the caption and the style into w; each convolution of the synthesis network is
modulated by a w of its own (W+), so that styles can be mixed by layer. It works in the space of an encoder, pixels or
latents. Trained with R3GAN's relativistic loss and both zero-centred penalties (arXiv:2501.05441), a projection critic
(arXiv:1802.05637) that also sees real pictures with another caption (arXiv:1605.05396), and DiffAugment
(arXiv:2006.10738). Each row of a batch has a picture of its own, and what is made of its words and style is pulled
towards it (pix2pix, arXiv:1611.07004, equations 3 and 4), at first by nothing else: what words look like is learned
several times faster so than from an opponent alone. Where a style was dropped, several pictures would be right: the
best of a few z is pulled (IMLE, arXiv:1809.09087), so that z chooses among them. Where the words were dropped, nothing
is. Deviations: no equalised learning rates, path-length penalty or style mixing in training; the penalties look at
every `penalty_every`-th row of each batch instead of every so many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import Batch, Draws
from imagewright.models.aliasfree import AliasFreeSynthesis
from imagewright.models.diffaugment import Augmentation
from imagewright.models.encoders import PixelsConfig, build_encoder
from imagewright.models.gan import relativistic, zero_centred_penalty
from imagewright.models.layers import compile_each
from imagewright.models.samplers import noise_source
from imagewright.models.style_networks import Critic, Mapping, StyleGANConfig, Synthesis
from imagewright.models.technique import (
    WORDS,
    Call,
    Cond,
    Graph,
    Phase,
    Prompted,
    Words,
    dropped,
    sort_parameters,
)
from imagewright.source import Source
from imagewright.watch import Watch

__all__ = ["StyleGAN", "StyleGANConfig"]

MEAN_DECAY = 0.995  # of the running mean of w
CANDIDATES = 16  # seeds that an inversion starts from the nearest of
STEPS = 100  # of a projection before an edit
READING = 4  # while the generator learns alone, the critic learns in every so many steps


class StyleGAN(Prompted):
    """Text and style to pictures in one step, with styles that can be mixed by layer."""

    family: ClassVar[str] = "gan"
    phases: ClassVar[tuple[Phase, ...]] = (
        Phase("discriminator", betas=(0.0, 0.99)),
        Phase("generator", betas=(0.5, 0.99)),
    )
    sampling: ClassVar[tuple[str, ...]] = ("truncation", "guidance")
    w_mean: Tensor

    def __init__(self, config: StyleGANConfig) -> None:
        super().__init__(config)
        self.encoder = build_encoder(config.encoder)
        self.mapper = Mapping(config)
        synthesis = AliasFreeSynthesis if config.alias_free else Synthesis
        self.synthesis = synthesis(config, self.encoder.shape)
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

    def compile_(self) -> None:
        """Compile the generator in place (torch.compile); parameter names stay. The penalties differentiate the critic
        twice, which compiled modules cannot."""
        compile_each([self.mapper, self.synthesis, *self.text.layers])

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
        """R3GAN's loss of the phase and the pull; the discriminator's with the penalties wherever gradients are
        enabled. In steps before `alone` only the pull, and the critic learns to read in every `READING`-th."""
        generating, draws, alone = phase == "generator", batch.draws, self._alone(batch)
        if alone and not generating and batch.step % READING:  # type: ignore[operator]
            return {"loss": torch.zeros((), device=self.w_mean.device, requires_grad=True)}
        real = batch.latents
        if real is None:
            assert batch.pixels is not None
            real = self.encoder.encode(batch.pixels)
        words, own, many = self._told(batch)
        z, noise = draws.randn(self.config.z).to(real), draws.randn(self.synthesis.noises).to(real)
        augment = Augmentation.drawn(draws, real.shape[-1], self.config.augment)
        if alone and not generating:
            return self._reading_loss(real, words, augment, draws.start)
        if generating and self.config.tries > 1:
            z, own = self._nearest_z(z, noise, words, real, many, draws), own | many
        with torch.set_grad_enabled(generating and torch.is_grad_enabled()):
            ws = self.mapping(z, words)
            made = self.synthesise(ws, words, noise)
        if not generating:
            return self._discriminator_loss(real, made, words, augment, draws.start)
        if self.training:
            self.w_mean.lerp_(ws[:, 0].detach().mean(0), 1 - MEAN_DECAY)
        pull = self.config.pull * (_distance(made, real, 1) * own).mean()
        losses = {"loss": pull, "pull": pull.detach()} if self.config.pull else {}
        return losses if alone else self._generator_loss(augment(real), augment(made), words, losses)

    def _alone(self, batch: Batch) -> bool:
        """Whether the pull is all that the generator learns from in this step. Where no row has words, it is not."""
        if batch.step is None or batch.step >= self.config.alone:
            return False
        return not batch.captions or any(batch.captions)  # a batch that is made on a device tells no captions

    def _told(self, batch: Batch) -> tuple[Words, Tensor, Tensor]:
        """The words of a batch, some without their caption or style; which rows (B,) bool still say what their own
        picture is, and which would if their style had not been dropped."""
        assert batch.text is not None and batch.style is not None
        draws, device = batch.draws, batch.style.device
        text = dropped(batch.text, draws.rand().to(device) < self.config.drop_text)
        style = batch.style * (draws.rand().to(device) >= self.config.drop_style)
        told, lost = text.ids.any(1), style != batch.style
        return self.words(replace(batch, text=text, style=style), drop=False), told & ~lost, told & lost

    @torch.no_grad()
    def _nearest_z(self, z: Tensor, noise: Tensor, words: Words, real: Tensor, rows: Tensor, draws: Draws) -> Tensor:
        """z (B, z), in `rows` (B,) bool the nearest to the real picture of itself and `tries` - 1 others."""
        more = draws.randn(self.config.tries - 1, self.config.z).to(z)
        # a GPU would have to wait for how many they are; a third of a batch holds more than are ever dropped
        few = rows.float().topk(max(1, len(rows) // 3)).indices if rows.device.type != "cpu" else None
        at = rows.nonzero()[:, 0] if few is None else few
        if not len(at):
            return z
        tried = torch.cat([z[at, None], more[at]], dim=1)  # (n, tries, z)
        each = at.repeat_interleave(self.config.tries)
        with torch.compiler.set_stance("force_eager"):  # how many rows there are changes
            made = self.synthesise(self.mapping(tried.flatten(0, 1), words[each]), words[each], noise[each])
        best = _distance(made, real[each], 1).view(len(at), -1).argmin(1)
        found = tried[torch.arange(len(at), device=at.device), best]
        return z.index_copy(0, at, torch.where(rows[at, None], found, z[at]))

    def _generator_loss(self, real: Tensor, made: Tensor, words: Words, pull: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both pictures augmented. `pull`: what is added to the loss and logged beside it."""
        with torch.no_grad():
            logit_real = self.critic(real, words)
        features = self.critic.trunk(made)
        logit = self.critic.judge(features, words)
        adversarial = relativistic(logit, logit_real)
        matching = relativistic(logit, self.critic.judge(features, others(words)))
        loss = adversarial + self.config.matching * matching + pull.get("loss", 0.0)
        return {**pull, "loss": loss, "adversarial": adversarial.detach(), "matching": matching.detach()}

    def _discriminator_loss(
        self, real: Tensor, made: Tensor, words: Words, augment: Augmentation, start: int
    ) -> dict[str, Tensor]:
        features_real, features_made = self.critic.trunk(torch.cat([augment(real), augment(made)])).chunk(2)
        logit_real = self.critic.judge(features_real, words)
        adversarial = relativistic(logit_real, self.critic.judge(features_made, words))
        matching = relativistic(logit_real, self.critic.judge(features_real, others(words)))
        loss = adversarial + self.config.matching * matching
        losses = {"adversarial": adversarial.detach(), "matching": matching.detach()}
        if torch.is_grad_enabled():
            for name, x in (("r1", real), ("r2", made)):
                penalty = self._penalty(x, words, augment, start)
                loss = loss + self.config.gamma / 2 * penalty
                losses[name] = penalty.detach()
        return {"loss": loss, **losses}

    def _reading_loss(self, real: Tensor, words: Words, augment: Augmentation, start: int) -> dict[str, Tensor]:
        """While the generator learns alone, the critic learns which words are those of a real picture, from every
        `penalty_every`-th row: enough to be ready."""
        rows, wrong = self._some(start), others(words)
        features = self.critic.trunk(augment[rows](real[rows]))
        right = self.critic.judge(features, words[rows])
        matching = F.softplus(self.critic.judge(features, wrong[rows]) - right).sum() * self._weight(real)
        r1 = self._penalty(real, words, augment, start)
        loss = self.config.matching * matching + self.config.gamma / 2 * r1
        return {"loss": loss, "matching": matching.detach(), "r1": r1.detach()}

    def _penalty(self, x: Tensor, words: Words, augment: Augmentation, start: int) -> Tensor:
        """The zero-centred penalty at x, its mean over every `penalty_every`-th row of the global batch, in float32."""
        rows = self._some(start)
        seen, augment = words[rows], augment[rows]
        seen = Words(seen.tokens, seen.pooled.float(), seen.mask, seen.style)
        with torch.autocast(x.device.type, enabled=False):
            slopes = zero_centred_penalty(lambda x: self.critic(augment(x), seen), x[rows].float())
        return slopes.sum() * self._weight(x)

    def _some(self, start: int) -> slice:
        """Every `penalty_every`-th row of the global batch, among the rows from `start` on."""
        return slice(-start % self.config.penalty_every, None, self.config.penalty_every)

    def _weight(self, x: Tensor) -> float:
        """Of each of those rows in a mean."""
        return self.config.penalty_every / len(x)

    @property
    def edits(self) -> tuple[str, ...]:
        """All by projection, which needs gradients: no exported model can."""
        return "image", "images", "mask"

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
        """Pictures (B, 4, H, W) in [-1, 1]. Each row is made alone, so a seed is one picture at any batch size.

        With a `source`: on the way from the styles of the pictures, or from their mean, to those of the words and the
        seed; in a fill from the latter to such as show what stays."""
        chosen = self.chosen(options)
        rows: list[Tensor] = []
        for row, seed in enumerate(seeds):
            words, code = self.wanted_and_avoided(cond, row), self.code(seed)
            if source is not None:
                code = self._towards(source, code, words, chosen)
            if watch.tracing:
                self._show_layers(watch, code, words, **chosen)
            rows.append(self._pictures(code, words[:1], words[1:], **chosen))
            watch.told(len(rows), len(seeds))
        return torch.cat(rows)

    def _towards(self, source: Source, code: Tensor, words: Words, chosen: dict[str, Any]) -> Tensor:
        """`code` (1, ...) with the offset in W+ that leads it to the source."""
        ws, pixels = self._styles(code, words[:1], words[1:], **chosen), torch.from_numpy(source.pixels).to(code)
        if source.hole is not None:
            near = self._descended(ws, pixels, words[:1], STEPS, stays=1 - torch.from_numpy(source.hole).to(code))
            noise = 0.0
        else:
            each = words[[0] * len(pixels)]
            found = self.styles(self.invert(pixels, each, steps=STEPS, **chosen), each, **chosen)
            near, noise = torch.lerp(found.mean(0, keepdim=True), ws, source.strength), source.strength
        z, rest = code[:, : self.config.z], noise * code[:, self.config.z : -ws.numel()]
        return torch.cat([z, rest, (near - ws).flatten(1)], dim=1)

    def _show_layers(self, watch: Watch, code: Tensor, words: Words, truncation: float, guidance: float) -> None:
        """The picture with the styles of the first layers, and the mean style in the others."""
        ws = self._styles(code, words[:1], words[1:], truncation, guidance)
        mean = self.w_mean.expand_as(ws)
        for layer in range(self.layers):
            x = self.synthesise(self.mix_layers(mean, ws, range(layer + 1)), words[:1], self._noise(code))
            watch.shown("layer", layer, self.encoder.decode(x)[0].float().clamp(-1, 1).cpu())

    def _noise(self, code: Tensor) -> Tensor:
        return code[:, self.config.z :][:, : self.synthesis.noises]

    def _pictures(self, code: Tensor, wanted: Words, avoided: Words, truncation: float, guidance: float) -> Tensor:
        ws = self._styles(code, wanted, avoided, truncation, guidance)
        return self.encoder.decode(self.synthesise(ws, wanted, self._noise(code))).float().clamp(-1, 1)

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
        code = self._nearest(self.encoder.encode(pixels), words, **options)
        start = self.styles(code, words, **options)
        ws = self._descended(start, pixels, words, steps, lr, on_step)
        code[:, -ws[0].numel() :] = (ws - start).flatten(1)
        return code

    def _descended(
        self,
        start: Tensor,
        pixels: Tensor,
        words: Words,
        steps: int,
        lr: float = 0.05,
        on_step: Callable[[int, int, float], None] | None = None,
        stays: Tensor | None = None,
    ) -> Tensor:
        """The W+ (B, layers, w), from `start` on, that show `pixels` (B, 4, H, W); only those count where `stays`
        (1, 1, H, W) is 1, if it is given."""
        target = self.encoder.encode(pixels)
        seen, ws = self.critic.trunk(target), start.clone()
        optimizer = torch.optim.Adam([ws], lr=lr, betas=(0.9, 0.99))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (1 - step / steps))
            with torch.enable_grad():
                leaf = ws.detach().requires_grad_(True)
                x = self.synthesise(leaf, words)
                shown = self.encoder.decode(x)
                if stays is None:
                    loss = _distance(shown, pixels, 1) + _distance(x, target, 2)
                    loss = (loss + 0.1 * _distance(self.critic.trunk(x), seen, 1)).sum()
                else:
                    loss = _distance(shown * stays, pixels * stays, 1).sum() / stays.mean().clamp_min(1e-3)
                (ws.grad,) = torch.autograd.grad(loss, leaf)
            optimizer.step()
            if on_step is not None:
                on_step(step + 1, steps, loss.item())
        return ws

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

        if self.config.alias_free:  # looks at nothing else
            generator = Graph(Call(self, lambda ws: self.synthesis(ws, noise, tokens, mask)), (ws,), ("ws",), ("x",))
        else:
            generator = Graph(self.synthesis, (ws, noise, tokens, mask), ("ws", "noise", text, text_mask), ("x",))
        return {
            "mapping": Graph(self.mapper, (z, pooled, style), ("z", about, which), ("w",)),
            "generator": generator,
            "critic": Graph(Call(self, judged), (x, pooled, style), ("x", about, which), ("logit",)),
            **self.encoder.graphs(),
        }

    def runtime(self) -> dict[str, Any]:
        """Lengths of z, of the noise and of W+, the layers of each stage, and the mean w."""
        return {
            "z": self.config.z,
            "noises": self.synthesis.noises,
            "inputs": ["ws"] if self.config.alias_free else ["ws", "noise", *WORDS[::2]],
            "depths": list(self.synthesis.depths),
            "w_mean": self.w_mean.tolist(),
            "edits": [],
        }


def others(words: Words) -> Words:
    """Each row with the words of its neighbour: rows change places in pairs, so that processes with an even number of
    rows before each see what one process sees. The last of an odd number takes those of the row before."""
    rows = torch.arange(len(words.style), device=words.style.device) ^ 1
    return words[torch.where(rows < len(rows), rows, max(0, len(rows) - 2))]


def _distance(a: Tensor, b: Tensor, power: int) -> Tensor:
    """Mean of |a - b| ** power over all but the rows -> (B,)."""
    return (a - b).abs().pow(power).flatten(1).mean(1)
