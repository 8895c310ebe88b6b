"""Three small judges of pictures: what is shown and how it is drawn, whether it fits some words, what a scene holds.

They measure generative models and are never used as a loss. All see 64 x 64 RGB: pictures are laid over random plain
backgrounds and jittered while they learn, so that none rewards transparency or an exact place. They are hardly lit
anew: a vendor's palette is what tells its style best, and light that varies by an eighth hides it.

- `EncoderJudge`: concept, style and group, and a unit vector in which pictures of one concept lie together
  (supervised contrast, arXiv:2004.11362; cosine classifier, arXiv:1703.07464). Space of all distances.
- `MatchJudge`: a picture and a text as two unit vectors, sigmoid loss (arXiv:2303.15343); besides the other captions
  of the batch each row brings a wrong caption that is nearly right. Frozen text encoder, trained projection.
- `AttributeJudge`: what stands in the first place (left, or above) and in the second, in which colours, how many, on
  which background. Two ordered slots say positions without naming objects twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagewright.data.batch import Batch, Draws, TextTokens
from imagewright.models.layers import ResidualConv
from imagewright.models.technique import Call, Cond, Graph, Technique, sort_parameters
from imagewright.models.text import TextConfig, TextEncoder
from imagewright.watch import Watch

AXES = ("none", "horizontal", "vertical")  # how the first and the second slot of a scene lie
COUNTS = 4
NARROW = 32  # channels of the cells of an AttributeJudge
SHIFT, ZOOM, TURN, LIGHT = 0.08, 0.12, 0.10, 0.03  # the most that training moves, scales, turns and lights a picture
SMOOTHING = 0.1


@dataclass(frozen=True)
class Labels:
    """What is known of each row, int64 (B,), -1: not known. `first`, `second` and their colours are the slots of a
    scene; colour 0 is the thing's own, `ground` the background's colour."""

    concept: Tensor
    style: Tensor
    group: Tensor
    first: Tensor
    second: Tensor
    first_colour: Tensor
    second_colour: Tensor
    axis: Tensor
    count: Tensor
    ground: Tensor


@dataclass(frozen=True)
class JudgeBatch(Batch):
    """A Batch with what is known of its rows. `wrong`: for each row a caption that does not fit it."""

    labels: Labels | None = None
    wrong: TextTokens | None = None


@dataclass(frozen=True)
class JudgeConfig:
    """The convolutional trunk: `patch` pixels a side go into one cell, then residual blocks at each width, halving in
    between. `dropout` is on the features. `palette` levels of each of three channels: the colours that a Palette tells
    apart; 0: there is none."""

    size: int = 64
    patch: int = 2
    widths: tuple[int, ...] = (32, 64, 128, 160)
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    dropout: float = 0.1
    palette: int = 0


@dataclass(frozen=True)
class EncoderJudgeConfig(JudgeConfig):
    """Sizes of an EncoderJudge; the numbers of labels come with the data."""

    features: int = 128
    concepts: int = 1
    styles: int = 6
    groups: int = 1
    temperature: float = 0.05
    contrast_temperature: float = 0.1


@dataclass(frozen=True)
class MatchJudgeConfig(JudgeConfig):
    """Sizes of a MatchJudge."""

    features: int = 128
    hidden: int = 256
    text: TextConfig = field(default_factory=TextConfig)


@dataclass(frozen=True)
class AttributeJudgeConfig(JudgeConfig):
    """Sizes of an AttributeJudge; the numbers of labels come with the data."""

    slot: int = 128
    things: int = 1
    colours: int = 11
    styles: int = 6


class Trunk(nn.Sequential):
    """(B, 3, H, W) in [-1, 1] -> (B, C, h, w)."""

    def __init__(self, config: JudgeConfig) -> None:
        widths = config.widths
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.patch),
            nn.Conv2d(3 * config.patch**2, widths[0], 3, padding=1),
        ]
        for i, width in enumerate(widths):
            layers += [ResidualConv(width) for _ in range(config.blocks[i])]
            if i + 1 < len(widths):
                layers.append(nn.Conv2d(width, widths[i + 1], 2, stride=2))
        super().__init__(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU())
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Palette(nn.Module):
    """How much of a picture has each of `levels` ** 3 colours: (B, 3, H, W) in [-1, 1] -> (B, levels ** 3).

    A pixel is shared out among the eight colours around it, every second pixel of every second row counts, and the
    shares are brought to their square roots (Hellinger's distance), of mean square 1. Nothing is learned here.
    """

    levels: Tensor

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.register_buffer("levels", torch.linspace(-1, 1, levels), persistent=False)

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, levels ** 3)."""
        few = rgb[:, :, ::2, ::2].flatten(2)  # (B, 3, P)
        steps = (few[..., None] - self.levels).abs() * (len(self.levels) - 1) / 2
        red, green, blue = (1 - steps).clamp(min=0).unbind(1)  # (B, P, levels) each, of sum 1
        pairs = (red[..., :, None] * green[..., None, :]).flatten(2)  # (B, P, levels²)
        with torch.autocast(rgb.device.type, enabled=False):
            shares = (pairs.transpose(1, 2) @ blue).flatten(1) / few.size(2)
        return (shares * shares.size(1)).sqrt()


class Judge(Technique):
    """What the three share: the trunk, how pictures are shown to it, and that it draws nothing."""

    config: Any

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.palette = Palette(config.palette) if config.palette else None
        self.dropout = nn.Dropout(config.dropout)

    @property
    def pixels(self) -> int:
        """Side of the pictures."""
        return int(self.config.size)

    def sample(self, cond: Cond, seeds: Sequence[int], *, watch: Watch = Watch(), **options: Any) -> Tensor:
        """A judge draws nothing."""
        raise NotImplementedError(f"{type(self).__name__} judges pictures and makes none.")

    def param_groups(self, phase: str = "main") -> dict[str, list[nn.Parameter]]:
        """As of any technique, with the convolutions of the trunk but its first for Muon."""
        groups = sort_parameters(self)
        inner = {id(p) for layer in list(self.trunk)[2:] for p in layer.parameters() if p.ndim == 4}
        decay = groups["decay"]
        groups["hidden"] += [p for p in decay if id(p) in inner]
        groups["decay"] = [p for p in decay if id(p) not in inner]
        return groups

    def cells(self, rgb: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C, h, w)."""
        return self.dropout(self.trunk(rgb.contiguous(memory_format=torch.channels_last)))

    def summary(self, rgb: Tensor) -> Tensor:
        """(B, 3, H, W) -> the mean cell, then the palette if there is one (B, C + K)."""
        mean = self.cells(rgb).float().mean((2, 3))
        return mean if self.palette is None else torch.cat([mean, self.dropout(self.palette(rgb))], dim=1)

    def shown(self, batch: Batch, grounds: Tensor | None = None) -> Tensor:
        """The pictures as the judge sees them (B, 3, H, W): jittered in training, over random backgrounds always.
        `grounds` (B, 3) in [0, 1]: backgrounds to use instead."""
        assert batch.pixels is not None
        pixels = batch.pixels
        if grounds is None:
            grounds = batch.draws.rand(3).to(pixels.device)
        if self.training:
            pixels = jittered(pixels, batch.draws)
        return laid_over(pixels, grounds)

    def example(self) -> Tensor:
        """Two pictures to export a graph with."""
        return torch.rand(2, 3, self.pixels, self.pixels) * 2 - 1


class EncoderJudge(Judge):
    """A unit vector for each picture, and logits of its concept, style and group."""

    def __init__(self, config: EncoderJudgeConfig) -> None:
        super().__init__(config)
        self.project = nn.Linear(config.widths[-1] + config.palette**3, config.features)
        self.concepts = nn.Parameter(0.1 * torch.randn(config.concepts, config.features))  # short ones turn faster
        self.styles = nn.Linear(config.features, config.styles)
        self.groups = nn.Linear(config.features, config.groups)
        self.contrasted = nn.Linear(config.features, config.features)  # so that the features may keep the style

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> features (B, D) of length 1, and logits of concept, style and group."""
        return self.judged(rgb, lambda scaled: scaled @ unit(self.concepts).T)

    def judged(self, rgb: Tensor, concepts: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `forward`, with the last layer of the concepts given."""
        features = unit(self.project(self.summary(rgb)))
        scaled = features / self.config.temperature
        return features, concepts(scaled), self.styles(scaled), self.groups(scaled)

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """Cross-entropy of the three labels, and supervised contrast among the rows of the batch."""
        labels = labels_of(batch)
        features, concept, style, group = self(self.shown(batch))
        partners = unit(self.contrasted(features))
        losses = {
            "concept": known_entropy(concept, labels.concept, SMOOTHING),
            "style": known_entropy(style, labels.style),
            "group": known_entropy(group, labels.group),
            "contrast": contrast(partners / math.sqrt(self.config.contrast_temperature), labels.concept),
        }
        total = losses["concept"] + 0.5 * losses["style"] + 0.3 * losses["group"] + 0.5 * losses["contrast"]
        return {"loss": total, **losses, "right": known_share(concept, labels.concept)}

    def graphs(self) -> dict[str, Graph]:
        """One part: rgb -> features, concept, style, group."""
        last = nn.Linear(self.config.features, self.config.concepts, bias=False)  # a weight, so that int8 applies
        last.weight.data = unit(self.concepts.data)
        call = Call(nn.ModuleList([self, last]), lambda rgb: self.judged(rgb, last))
        return {"encoder": Graph(call, (self.example(),), ("rgb",), ("features", *ENCODER_HEADS))}


ENCODER_HEADS = ("concept", "style", "group")


class MatchJudge(Judge):
    """The logit that a text fits a picture: scale times the cosine of two unit vectors, plus a bias."""

    def __init__(self, config: MatchJudgeConfig) -> None:
        super().__init__(config)
        self.text = TextEncoder(config.text).requires_grad_(False)
        self.picture = nn.Linear(config.widths[-1], config.features)
        self.words = nn.Sequential(
            nn.Linear(config.text.width, config.hidden), nn.SiLU(), nn.Linear(config.hidden, config.features)
        )
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def look(self, rgb: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D) of length 1."""
        return unit(self.picture(self.cells(rgb).float().mean((2, 3))))

    def read(self, pooled: Tensor) -> Tensor:
        """Pooled text (B, text width) -> (B, D), its length the scale: its product with `look` is a logit but for the
        bias."""
        return self.scale.exp() * unit(self.words(pooled).float())

    def pooled(self, text: TextTokens) -> Tensor:
        """Texts as the frozen encoder pools them, (B, text width)."""
        with torch.no_grad():
            return self.text(text.ids, text.grams, text.mask)[1]

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """Every picture against every caption and every wrong caption of the batch; captions of its own concept other
        than its own do not count, because they may fit as well."""
        labels = labels_of(batch)
        assert isinstance(batch, JudgeBatch) and batch.text is not None and batch.wrong is not None
        looks = self.look(self.shown(batch))
        right = looks @ self.read(self.pooled(batch.text)).T + self.bias  # (B, B)
        wrong = looks @ self.read(self.pooled(batch.wrong)).T + self.bias
        own = torch.eye(len(looks), dtype=torch.bool, device=looks.device)
        alike = (labels.concept[:, None] == labels.concept) & ~own
        target = own.float() * 2 - 1
        others = -F.logsigmoid(target * right).masked_fill(alike, 0).sum() / len(looks)
        nearly = F.softplus(wrong.diagonal()).mean()
        far = F.softplus(wrong.masked_fill(own | alike, -1e4)).sum() / len(looks)
        with torch.no_grad():
            better = (right.diagonal() > wrong.diagonal()).float().mean()
            first = (right.masked_fill(alike, -1e4).argmax(1) == torch.arange(len(looks), device=looks.device)).float()
        return {"loss": others + nearly + 0.5 * far, "nearly": nearly, "better": better, "first": first.mean()}

    def graphs(self) -> dict[str, Graph]:
        """Two parts: rgb -> look, pooled -> read."""
        pooled = torch.randn(2, self.config.text.width)
        return {
            "match": Graph(Call(self, self.look), (self.example(),), ("rgb",), ("look",)),
            "words": Graph(Call(self, self.read), (pooled,), ("pooled",), ("read",)),
        }


class AttributeJudge(Judge):
    """Logits of what a scene holds, in the order of ATTRIBUTES."""

    def __init__(self, config: AttributeJudgeConfig) -> None:
        super().__init__(config)
        side = config.size // config.patch // 2 ** (len(config.widths) - 1)
        self.narrow = nn.Conv2d(config.widths[-1], NARROW, 1)
        self.slots = nn.Linear(NARROW * side**2, 3 * config.slot)
        self.tint = nn.Linear(config.palette**3, config.slot) if config.palette else None
        self.place = nn.Parameter(torch.zeros(1, config.widths[-1], side, side))
        self.look = nn.Conv2d(config.widths[-1], 2, 1)  # where the first thing stands, and the second
        self.thing = nn.Linear(config.widths[-1], config.slot)
        self.things = nn.Linear(config.slot, config.things)
        self.colours = nn.Linear(config.slot, config.colours + 1)  # 0: its own
        self.whole = nn.Linear(config.slot, len(AXES) + COUNTS + config.colours + config.styles)

    def forward(self, rgb: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> the logits named in ATTRIBUTES."""
        cells = self.cells(rgb) + self.place  # (B, C, h, w)
        narrow = self.narrow(cells).float().flatten(1)  # (B, 32 * h * w)
        first, second, whole = self.dropout(self.slots(narrow)).chunk(3, dim=1)
        if self.palette is not None and self.tint is not None:
            whole = whole + self.tint(self.dropout(self.palette(rgb)))
        where = self.look(cells).float().flatten(2).softmax(2)  # (B, 2, h * w)
        things = self.thing(
            where @ cells.float().flatten(2).transpose(1, 2)
        )  # (B, 2, slot): what is there, wherever that is
        first, second, whole = F.silu(first + things[:, 0]), F.silu(second + things[:, 1]), F.silu(whole)
        sizes = [len(AXES), COUNTS, self.config.colours, self.config.styles]
        rest = self.whole(whole).split(sizes, dim=1)
        return self.things(first), self.things(second), self.colours(first), self.colours(second), *rest

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """Cross-entropy of whatever is known of each row."""
        labels = labels_of(batch)
        logits = dict(zip(ATTRIBUTES, self(self.shown(batch)), strict=True))
        losses = {name: known_entropy(logits[name], getattr(labels, name)) for name in ATTRIBUTES}
        total = torch.stack([WEIGHTS.get(name, 0.5) * value for name, value in losses.items()]).sum()
        return {"loss": total, **losses, "right": known_share(logits["first"], labels.first)}

    def graphs(self) -> dict[str, Graph]:
        """One part: rgb -> the logits named in ATTRIBUTES."""
        return {"attributes": Graph(Call(self, self.forward), (self.example(),), ("rgb",), ATTRIBUTES)}


ATTRIBUTES = ("first", "second", "first_colour", "second_colour", "axis", "count", "ground", "style")
WEIGHTS = {"first": 1.0, "second": 1.0}
assert set(ATTRIBUTES) <= {f.name for f in fields(Labels)}


def labels_of(batch: Batch) -> Labels:
    """The labels of a JudgeBatch."""
    assert isinstance(batch, JudgeBatch) and batch.labels is not None
    return batch.labels


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return F.normalize(x.float(), dim=-1)


def laid_over(pixels: Tensor, grounds: Tensor) -> Tensor:
    """Premultiplied RGBA (B, 4, H, W) in [-1, 1] over plain colours (B, 3) in [0, 1] -> (B, 3, H, W) in [-1, 1]."""
    rgba = (pixels + 1) / 2
    return (rgba[:, :3] + (1 - rgba[:, 3:]) * grounds[:, :, None, None]).clamp(0, 1) * 2 - 1


def jittered(pixels: Tensor, draws: Draws) -> Tensor:
    """`pixels` (B, 4, H, W) moved, scaled, turned and lit a little; the border is repeated where nothing is known."""
    scale, turn, x, y, light = (2 * draws.rand(5) - 1).to(pixels.device).unbind(1)
    scale, turn = 1 + ZOOM * scale, TURN * turn
    cos, sin = turn.cos() * scale, turn.sin() * scale
    matrix = torch.stack([cos, -sin, 2 * SHIFT * x, sin, cos, 2 * SHIFT * y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    alpha = (moved[:, 3:] + 1) / 2
    rgb = (moved[:, :3] + 1) / 2 * (1 + LIGHT * light[:, None, None, None])
    return torch.cat([rgb.minimum(alpha) * 2 - 1, moved[:, 3:]], dim=1)


def known_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the rows whose target is known (not -1), 0 if there are none; a scalar."""
    entropy = F.cross_entropy(logits.float(), target, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    return entropy / (target >= 0).sum().clamp(min=1)


def known_share(logits: Tensor, target: Tensor) -> Tensor:
    """Share of the known rows that the largest logit names."""
    known = target >= 0
    return ((logits.argmax(1) == target) & known).sum() / known.sum().clamp(min=1)


def contrast(scaled: Tensor, concept: Tensor) -> Tensor:
    """Supervised contrast (arXiv:2004.11362, equation 2) over rows that share a known concept with another one."""
    own = torch.eye(len(scaled), dtype=torch.bool, device=scaled.device)
    alike = (concept[:, None] == concept) & (concept[:, None] >= 0) & ~own
    logits = (scaled @ scaled.T).masked_fill(own, -1e4)
    share = logits - logits.logsumexp(1, keepdim=True)  # log probabilities
    partners = alike.sum(1)
    each = -(share * alike).sum(1) / partners.clamp(min=1)
    return each.sum() / (partners > 0).sum().clamp(min=1)
