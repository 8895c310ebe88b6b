"""A synthesis network whose details move with what they belong to (StyleGAN3, configuration T, arXiv:2106.12423).

Features are samples of continuous signals: the input is a set of Fourier features instead of a learned constant, there
is no noise for each layer, and each leaky rectifier works at twice the sampling rate, between low-pass filters, so that
the frequencies it makes do not fold back. Deviations: no layer is critically sampled; each filter is one product with
a small matrix an axis, made from a Kaiser-windowed sinc; words enter through w alone; w does not turn or move the
input.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.models.style_networks import GAIN, LEAK, ModulatedConv, StyleGANConfig

MARGIN = 10  # samples around the picture, so that its border knows no border
CUTOFF = 0.35  # of the sampling rate: the highest frequency that a layer keeps
TRANSITION = 0.15  # of the sampling rate: half the way from full pass to full stop
RADIUS = 6  # samples of the slower rate that a filter reaches to either side


def positions(rate: int) -> Tensor:
    """Where the samples of a canvas lie; the picture is from 0 to 1 and has `rate` of them."""
    return (torch.arange(-MARGIN, rate + MARGIN, dtype=torch.float64) + 0.5) / rate


def resampling(source: Tensor, rate: float, target: Tensor, band: float) -> Tensor:
    """The matrix (len(target), len(source)) that takes samples at `source` (`rate` a unit) to those at `target`
    through a low-pass filter for signals of the sampling rate `band` (arXiv:2106.12423, appendix C.1).

    Kaiser window: its beta from the attenuation that the radius and the transition allow (Oppenheim and Schafer)."""
    radius, cutoff = RADIUS / band, CUTOFF * band
    attenuation = 2.285 * 2 * math.pi * (2 * radius) * (2 * TRANSITION * band) + 7.95  # dB
    beta = 0.1102 * (attenuation - 8.7)
    away = target[:, None] - source[None, :]
    inside = (1 - (away / radius).square()).clamp_min(0)
    window = torch.special.i0(beta * inside.sqrt()) / torch.special.i0(torch.tensor(beta, dtype=torch.float64))
    kernel = 2 * cutoff * torch.special.sinc(2 * cutoff * away) * window * (inside > 0)
    return (kernel / rate).float()


class FourierInput(nn.Module):
    """Waves of random direction, frequency up to the cutoff, and phase, mixed by a learned matrix."""

    frequencies: Tensor
    phases: Tensor
    at: Tensor

    def __init__(self, channels: int, rate: int) -> None:
        super().__init__()
        direction = torch.randn(channels, 2)
        radius = CUTOFF * rate * torch.rand(channels, 1).sqrt()  # uniform over the disc
        self.register_buffer("frequencies", F.normalize(direction, dim=1) * radius)
        self.register_buffer("phases", torch.rand(channels))
        self.mix = nn.Parameter(torch.randn(channels, channels) * (2 / channels) ** 0.5)
        self.register_buffer("at", positions(rate).float(), persistent=False)

    def forward(self, rows: int, shift: Tensor | None) -> Tensor:
        """(rows, channels, S, S), moved by `shift` (rows, 2), parts of the side (down, right)."""
        moved = torch.zeros(rows, 2, device=self.at.device) if shift is None else shift
        y, x = (self.at[None, None, :] - moved[:, axis, None, None] for axis in (0, 1))  # (rows, 1, S)
        fy, fx = self.frequencies[:, 0, None], self.frequencies[:, 1, None]  # (channels, 1)
        turns = (fy * y)[..., :, None] + (fx * x)[..., None, :] + self.phases[:, None, None]  # (rows, channels, S, S)
        return torch.einsum("oi,bihw->bohw", self.mix, torch.sin(2 * math.pi * turns))


class AliasFreeLayer(nn.Module):
    """Modulated convolution, bias, and a leaky rectifier at twice the rate; from rate `before` to `after`."""

    up: Tensor
    down: Tensor

    def __init__(self, inside: int, outside: int, before: int, after: int, w: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inside, outside, w)
        self.bias = nn.Parameter(torch.zeros(outside))
        fast = 2 * max(before, after)
        between = (torch.arange(-2 * MARGIN, fast + 2 * MARGIN, dtype=torch.float64) + 0.5) / fast
        self.register_buffer("up", resampling(positions(before), before, between, before), persistent=False)
        self.register_buffer("down", resampling(between, fast, positions(after), after), persistent=False)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (B, inside, S, S), w (B, w) -> (B, outside, T, T), S and T the canvases of the two rates."""
        x = self.conv(x, w) + self.bias[:, None, None].to(x.dtype)
        x = self.up @ x @ self.up.T  # (B, outside, 2 max(S, T), ...)
        x = GAIN * F.leaky_relu(x, LEAK)
        return self.down @ x @ self.down.T


class AliasFreeSynthesis(nn.Module):
    """W+ to x; takes the place of style_networks.Synthesis. The last of `config.widths` works at the side of the
    picture, each before it at half of the next."""

    def __init__(self, config: StyleGANConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        last = len(config.widths) - 1
        if shape[1] % 2**last:
            raise ValueError(f"{shape[1]} pixels a side cannot be halved {last} times.")
        plan = [
            (width, shape[1] // 2 ** (last - i))
            for i, width in enumerate(config.widths)
            for _ in range(config.depths[i])
        ]
        self.depths, self.noises = config.depths, 0
        self.input = FourierInput(plan[0][0], plan[0][1])
        self.layers_ = nn.ModuleList(
            AliasFreeLayer(inside, outside, before, after, config.w)
            for (inside, before), (outside, after) in zip([plan[0], *plan[:-1]], plan, strict=True)
        )
        self.to_picture = ModulatedConv(plan[-1][0], shape[0], config.w, kernel=1, demodulate=False)

    @property
    def layers(self) -> int:
        """Modulated layers, each with a w of its own."""
        return len(self.layers_)

    def forward(self, ws: Tensor, noise: Tensor, tokens: Tensor, mask: Tensor, shift: Tensor | None = None) -> Tensor:
        """ws (B, layers, w) -> x (B, C, h, w), float32; noise and words are not looked at. `shift`: as Synthesis."""
        x = self.input(ws.shape[0], shift)  # not len(): a traced export would fix it
        for i, layer in enumerate(self.layers_):
            x = layer(x, ws[:, i])
        x = self.to_picture(x, ws[:, -1])
        return x[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN].float()
