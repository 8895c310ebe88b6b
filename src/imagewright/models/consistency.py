"""Few steps: a student that does in one pass what its diffusion teacher does in many, with guidance baked in.

A consistency model f(x_t, t) gives, from anywhere on a path of the probability-flow ODE, the path's end at t = 0
(arXiv:2303.01469). It is tuned from a diffusion model as ECT does it (arXiv:2406.14548): f(x_t, t) is drawn to
f(x_r, r), taken as fixed, for r = t (1 - 2^-k). With k = 0, r is 0, and the target is the plain estimate of x_0; k
grows by one every `halve_every` steps up to `halvings`. x_r comes from

    teacher   a step of the teacher's guided ODE from x_t (guided consistency distillation, arXiv:2310.04378); with
              k = 0 it is guidance distillation (arXiv:2210.03142): one pass a step where the teacher makes two
    data      the same data and noise as x_t (consistency training, arXiv:2310.14189): needs no teacher, and cannot
              know about guidance

Deviations: k and not q^-a of continuous factors; no embedding of the guidance, which has one value; the skip that makes
f(x_0, 0) = x_0 is narrow, because the teacher's network predicts x_0 and has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from imagewright.data.batch import Batch
from imagewright.errors import TrainingError
from imagewright.models.diffusion import Diffusion, DiffusionConfig, Exercise, Times, by_noise
from imagewright.models.dit import DiTConfig
from imagewright.models.technique import Words

Target = Literal["teacher", "data"]
SKIP = 0.01  # the t at which the skip and the network count the same
LEAST = 0.05  # the t below which the loss weighs no more
HUBER = 0.00054  # of arXiv:2310.14189, section 3.3, here on root mean squares
OWN = ("times", "t_mean", "t_std", "train_text", "steps", "guidance", "interval", "sampler", "tile", "stop")


@dataclass(frozen=True)
class ConsistencyConfig(DiffusionConfig):
    """As DiffusionConfig. `target`: where x_r comes from; `halvings`, `halve_every` (steps): how near it gets to x_t.
    `guidance`, `interval`: what is baked in. The text encoder stays as the teacher's."""

    target: Target = "teacher"
    halvings: int = 0
    halve_every: int = 1_000
    times: Times = "uniform"
    steps: int = 4
    guidance: float = 4.0


class Consistency(Diffusion):
    """Text and style to pictures in a few passes. Before its training, `learn_from` names its teacher."""

    sampling: ClassVar[tuple[str, ...]] = ("steps", "sampler", "tile", "stop")
    config: ConsistencyConfig

    def __init__(self, config: ConsistencyConfig) -> None:
        super().__init__(config)
        self._taught: tuple[Diffusion, Words] | None = None  # in a tuple: no part of the module, nor of checkpoints

    def learn_from(self, teacher: Diffusion) -> None:
        """Keep the frozen model that the guided steps are taken from, and what it reads in an empty text."""
        teacher.to(next(self.parameters()).device).eval().requires_grad_(False)
        words = teacher.prompted([""], [0])
        short = Words(words.tokens[:, :1], words.pooled, words.mask[:, :1], words.style)  # without padding
        self._taught = teacher, short

    @property
    def taught(self) -> tuple[Diffusion, Words]:
        """The teacher and its empty text. Raises TrainingError if no teacher was named."""
        if self._taught is None:
            raise TrainingError("A consistency model learns from a trained diffusion model.", "Give its run: --from.")
        return self._taught

    def compile_(self) -> None:
        """Compile the network and the teacher's in place."""
        super().compile_()
        if self._taught is not None:
            self._taught[0].compile_()

    def chosen(self, options: dict[str, Any]) -> dict[str, Any]:
        """As Technique's; the estimate is guided as it is."""
        return {**super().chosen(options), "guidance": 1.0, "interval": (0.0, 1.0)}

    def _estimate(
        self, x: Tensor, t: Tensor, *condition: Tensor, maps: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(f(x_t, t), raw prediction): x itself at t = 0."""
        denoised, raw = super()._estimate(x, t, *condition, maps=maps)
        skip = (SKIP**2 / (SKIP**2 + t**2)).view(-1, 1, 1, 1)
        return skip * x + (1 - skip) * denoised, raw

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """Pseudo-Huber distance of f(x_t, t) from f(x_r, r), over t: ECT's weight 1 / (t - r) but for a factor 2^k."""
        given = self.exercise(batch)
        x = self.noised(given.x0, given.noise, given.t)
        found = self._estimate(x, given.t, *given.words.flat(), given.known, given.mask)[0]
        with torch.no_grad():
            target = self._target(given, x, self.halved(batch.step))
        distance = ((found - target).square().mean((1, 2, 3)) + HUBER**2).sqrt() - HUBER  # (B,)
        return by_noise(distance / given.t.clamp_min(LEAST), given.t)

    def halved(self, step: int | None) -> int:
        """k in step `step`; its last value outside of a run."""
        config = self.config
        return config.halvings if step is None else min(config.halvings, step // max(1, config.halve_every))

    def _target(self, given: Exercise, x: Tensor, halved: int) -> Tensor:
        """f(x_r, r) (B, C, h, w)."""
        r = given.t * (1 - 0.5**halved)
        if self.config.target == "data":
            nearer = self.noised(given.x0, given.noise, r)
        else:
            denoised = self.guided(x, given)
            alpha, sigma = (level.view(-1, 1, 1, 1) for level in self.process.levels(given.t))
            nearer = self.noised(denoised, (x - alpha * denoised) / sigma.clamp_min(1e-6), r)
        if not halved:  # r = 0
            return nearer
        return self._estimate(nearer, r, *given.words.flat(), given.known, given.mask)[0]

    def guided(self, x: Tensor, given: Exercise) -> Tensor:
        """The teacher's guided estimate of x_0 (B, C, h, w)."""
        (teacher, nothing), config, t = self.taught, self.config, given.t
        wanted = teacher.denoised(x, t, given.words, given.known, given.mask)
        if config.guidance != 1:
            low, high = config.interval
            nothing = Words(*(part.expand(len(x), *part.shape[1:]) for part in nothing.flat()))
            avoided = teacher.denoised(x, t, nothing, given.known, given.mask)
            inside = ((t >= low) & (t <= high)).view(-1, 1, 1, 1)
            wanted = torch.where(inside, avoided + config.guidance * (wanted - avoided), wanted)
        return teacher._clipped(wanted)


def student_of(config: ConsistencyConfig, teacher: DiffusionConfig) -> ConsistencyConfig:
    """`config` with the teacher's parts. Without dropout: what the teacher says is no small set to learn by heart."""
    taken: Mapping[str, Any] = {f.name: getattr(teacher, f.name) for f in fields(DiffusionConfig) if f.name not in OWN}
    network = taken["network"]
    if isinstance(network, DiTConfig):
        network = replace(network, dropout=0.0)
    return replace(config, **{**taken, "network": network})
