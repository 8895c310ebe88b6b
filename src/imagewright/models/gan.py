"""Adversarial losses that the generative adversarial networks share, and the network of the articles.

`GAN` is the one of textbooks (arXiv:1406.2661): a generator 100-256-784 and a discriminator 784-256-1 that know no
text. Deviations: the generator's loss is the article's alternative, -log D(G(z)), unless `saturating`; batches are
premultiplied RGBA and seen in grey over white.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import Batch
from imagewright.models.samplers import noise_source
from imagewright.models.technique import Call, Cond, Graph, Phase, Technique, sort_parameters
from imagewright.watch import Watch


def relativistic(preferred: Tensor, other: Tensor) -> Tensor:
    """softplus(other - preferred), mean: the first logits (B,) shall exceed the second (arXiv:1807.00734; R3GAN,
    arXiv:2501.05441, equation 2)."""
    return F.softplus(other.float() - preferred.float()).mean()


def zero_centred_penalty(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The squared norm (B,) of the gradient of `critic` (x -> (B,)) at x (B, ...), for R1 on real and R2 on made
    pictures (arXiv:1801.04406, equations 9 and 10). Needs gradients enabled."""
    x = x.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return slope.square().flatten(1).sum(1)


@dataclass(frozen=True)
class GANConfig:
    """`size` pixels a side, grey; `z` inputs and `hidden` units of the generator, `hidden` of the discriminator too;
    `leak` of its rectifiers; `saturating`: the generator minimises log(1 - D(G(z))), as in the article's equation 1.
    """

    size: int = 28
    z: int = 100
    hidden: int = 256
    leak: float = 0.2
    saturating: bool = False


class GAN(Technique):
    """Noise to grey pictures through one hidden layer."""

    family: ClassVar[str] = "gan"
    phases: ClassVar[tuple[Phase, ...]] = (
        Phase("discriminator", betas=(0.5, 0.999)),
        Phase("generator", betas=(0.5, 0.999)),
    )

    def __init__(self, config: GANConfig) -> None:
        super().__init__()
        self.config = config
        values = config.size**2
        self.G = nn.Sequential(
            nn.Linear(config.z, config.hidden), nn.ReLU(), nn.Linear(config.hidden, values), nn.Tanh()
        )
        self.D = nn.Sequential(nn.Linear(values, config.hidden), nn.LeakyReLU(config.leak), nn.Linear(config.hidden, 1))

    @property
    def pixels(self) -> int:
        """Side of the pictures."""
        return self.config.size

    def param_groups(self, phase: str = "main") -> dict[str, list[nn.Parameter]]:
        """The discriminator's or the generator's."""
        return sort_parameters(self.D if phase == "discriminator" else self.G)

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """arXiv:1406.2661, equation 1, from logits: D shall tell real (1) from made (0)."""
        assert batch.pixels is not None
        made = self.G(batch.draws.randn(self.config.z).to(batch.pixels))
        logit = self.D(made).float()  # (B, 1)
        if phase == "generator":
            loss = -F.softplus(logit) if self.config.saturating else F.softplus(-logit)
            return {"loss": loss.mean(), "fooled": torch.sigmoid(logit.detach()).mean()}
        real = self.D(grey(batch.pixels).flatten(1)).float()
        loss = F.softplus(-real).mean() + F.softplus(logit).mean()
        return {"loss": loss, "real": torch.sigmoid(real.detach()).mean()}

    @torch.no_grad()
    def sample(self, cond: Cond, seeds: Sequence[int], *, watch: Watch = Watch(), **options: Any) -> Tensor:
        """Pictures (B, 4, size, size) in [-1, 1], grey and opaque; the prompts change nothing."""
        rows: list[Tensor] = []
        for seed in seeds:
            rows.append(self._pictures(self.code(seed)))
            watch.told(len(rows), len(seeds))
        return torch.cat(rows).float()

    def render(self, code: Tensor, words: Any = None, **options: Any) -> Tensor:
        """Pictures (B, 4, size, size) of z (B, z)."""
        return self._pictures(code)

    def code(self, seed: int) -> Tensor:
        """z (1, z) of a seed."""
        return torch.from_numpy(noise_source(seed, (1, self.config.z))()).to(next(self.parameters()).device)

    def _pictures(self, z: Tensor) -> Tensor:
        level = self.G(z).view(-1, 1, self.config.size, self.config.size)
        return torch.cat([level.expand(-1, 3, -1, -1), torch.ones_like(level)], dim=1)

    def graphs(self) -> dict[str, Graph]:
        """generator (z -> pixels) and critic (pixels -> logit)."""
        z = torch.randn(2, self.config.z)
        with torch.no_grad():
            pixels = self._pictures(z)
        return {
            "generator": Graph(Call(self, self._pictures), (z,), ("z",), ("pixels",)),
            "critic": Graph(Call(self, lambda x: self.D(grey(x).flatten(1))[:, 0]), (pixels,), ("pixels",), ("logit",)),
        }

    def runtime(self) -> dict[str, Any]:
        """The length of z."""
        return {"z": self.config.z}


def grey(pixels: Tensor) -> Tensor:
    """Premultiplied RGBA (B, 4, H, W) in [-1, 1] over white, as luma (Rec. 601) (B, 1, H, W) in [-1, 1]."""
    over_white = pixels[:, :3] + 1 - pixels[:, 3:]  # (B, 3, H, W)
    weights = torch.tensor([0.299, 0.587, 0.114]).to(pixels).view(1, 3, 1, 1)
    return (over_white * weights).sum(1, keepdim=True)
