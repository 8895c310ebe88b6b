"""The one training contract that the four techniques keep, and what all text-conditional ones share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from imagewright.data.batch import Batch, TextTokens
from imagewright.models.steering import Steering
from imagewright.models.text import TextConfig, TextEncoder
from imagewright.text import Tokenizer
from imagewright.watch import Watch


@dataclass(frozen=True)
class Phase:
    """A part of a training step with its own optimiser: `name`, every how many steps it runs, the factor on the
    learning rates, and AdamW's betas (None: the optimiser's default)."""

    name: str = "main"
    interval: int = 1
    lr: float = 1.0
    betas: tuple[float, float] | None = None


@dataclass(frozen=True)
class Cond:
    """What to make, one row a picture: `prompts` and `negative` (texts), `style` (indices into STYLES), and what is
    done to the prompt's words (`steering`)."""

    prompts: Sequence[str]
    style: Sequence[int]
    negative: Sequence[str] | None = None
    steering: Sequence[Steering] | None = None


WORDS = ("text", "pooled", "text_mask", "style")  # the inputs that exported graphs take of a Words


@dataclass(frozen=True)
class Words:
    """Encoded captions and their styles: `tokens` (B, L, text_width), `pooled` (B, text_width), `mask` (B, L) bool
    (False: padding), `style` (B,) int64 (0: none in particular)."""

    tokens: Tensor
    pooled: Tensor
    mask: Tensor
    style: Tensor

    def __getitem__(self, rows: Any) -> Words:
        return Words(self.tokens[rows], self.pooled[rows], self.mask[rows], self.style[rows])

    def flat(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors, in the order of WORDS, as an exported graph takes them."""
        return self.tokens, self.pooled, self.mask, self.style

    def mix(self, other: Words, share: float) -> Words:
        """On the straight line from these (share 0) to `other` (1); the style stays until the middle."""
        return Words(
            torch.lerp(self.tokens, other.tokens, share),
            torch.lerp(self.pooled, other.pooled, share),
            self.mask if share == 0 else other.mask if share == 1 else self.mask | other.mask,
            self.style if share < 0.5 else other.style,
        )


@dataclass(frozen=True)
class Graph:
    """A part of a model for export: a function of tensors on `module`, example inputs (two rows), the names of its
    inputs and outputs, whether its blocks' matrix products may run in few bits, and whether all but its largest
    weights need 8 bits at least (`precise`, as of a decoder whose errors are seen as they are). Axis 0 is the batch
    everywhere; `dynamic` names further axes that vary, as {input: {axis: name}}."""

    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    fast_int8: bool = False
    precise: bool = False
    dynamic: dict[str, dict[int, str]] | None = None


class Call(nn.Module):
    """A function of a module as a module of its own, so that the exporter finds the weights."""

    def __init__(self, owner: nn.Module, call: Any) -> None:
        super().__init__()
        self.owner, self.call = owner, call
        self.training = owner.training  # the exporter puts this mode back into the owner when it is done

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(*inputs)


class Technique(nn.Module, ABC):
    """A trainable image model. `config` is a frozen dataclass whose *type* names the class (models/registry.py).

    `family`: vae, gan, diffusion or autoregressive; empty for a model that makes no pictures from words alone.
    `sampling`: the options of `sample` that a request can set; each is also a field of the config, its default. The
    known names: steps, guidance, interval, sampler, temperature, top_k, top_p, truncation.
    """

    phases: ClassVar[tuple[Phase, ...]] = (Phase(),)
    family: ClassVar[str] = ""
    sampling: ClassVar[tuple[str, ...]] = ()
    config: Any

    @property
    @abstractmethod
    def pixels(self) -> int:
        """Side of the pictures."""

    @property
    def edits(self) -> tuple[str, ...]:
        """What `sample` can do with a picture: `image`, `mask`, `instruction` and `images` of a Source; and `tile`."""
        return ()

    @abstractmethod
    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        """Scalars to log; `loss` is the one to minimise in this phase (mean over the rows of the batch)."""

    def param_groups(self, phase: str = "main") -> dict[str, list[nn.Parameter]]:
        """Parameters of the phase: `hidden` (2-D matrices inside blocks, fit for Muon), `decay` and `no_decay`
        (for AdamW). The default sorts all trainable parameters by shape and name."""
        return sort_parameters(self)

    @abstractmethod
    def sample(self, cond: Cond, seeds: Sequence[int], *, watch: Watch = Watch(), **options: Any) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1], premultiplied RGBA, one a seed; the same for a seed at any batch size.
        `options`: those named in `sampling`, None for the config's; where there are `edits`, also `source` (a Source,
        or None)."""

    def invert(self, pixels: Tensor, words: Words, **options: Any) -> Tensor:
        """The code (B, ...) from which `render` makes `pixels` (B, 4, H, W) again, as nearly as the technique can."""
        raise NotImplementedError(f"{type(self).__name__} cannot invert a picture.")

    def render(self, code: Tensor, words: Words, **options: Any) -> Tensor:
        """Pictures (B, 4, H, W) in [-1, 1] from codes."""
        raise NotImplementedError(f"{type(self).__name__} has no codes.")

    def code(self, seed: int) -> Tensor:
        """The code (1, ...) that `sample` starts from with this seed."""
        raise NotImplementedError(f"{type(self).__name__} has no codes.")

    def mix(self, a: Tensor, b: Tensor, share: float) -> Tensor:
        """The code on the way from `a` (share 0) to `b` (1): a straight line unless the technique knows better."""
        return torch.lerp(a, b, share)

    def graphs(self) -> dict[str, Graph]:
        """The parts that the embedded engine needs, by file name (engines/runners/<family>.py runs them)."""
        raise NotImplementedError(f"{type(self).__name__} alone makes no pictures from words.")

    def runtime(self) -> dict[str, Any]:
        """What the runner must know besides the defaults of `sampling`, as JSON values (shapes, lengths)."""
        return {}


class Prompted(Technique):
    """A technique conditioned on words and a style. Its config has `text` (TextConfig), `train_text` (train the text
    encoder too, instead of keeping what it was taught), `drop_text` and `drop_style` (shares of rows without)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        text: TextConfig = config.text
        self.text = TextEncoder(text).requires_grad_(config.train_text)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read once, because loading it takes longer than a step."""
        return Tokenizer()

    def words(self, batch: Batch, *, drop: bool = True) -> Words:
        """The captions and styles of a batch; with `drop`, some rows lose the one or the other."""
        assert batch.text is not None and batch.style is not None
        text, style = batch.text, batch.style
        if drop:
            text = dropped(text, batch.draws.rand().to(text.ids.device) < self.config.drop_text)
            style = style * (batch.draws.rand().to(style.device) >= self.config.drop_style)
        with torch.set_grad_enabled(self.config.train_text and torch.is_grad_enabled()):
            tokens, pooled = self.text(text.ids, text.grams, text.mask)
        return Words(tokens, pooled, text.mask, style)

    def prompted(self, texts: Sequence[str], style: Sequence[int]) -> Words:
        """Texts and indices into STYLES, encoded."""
        device = next(self.parameters()).device
        encoded = self.tokenizer.encode(list(texts), self.config.text.max_tokens)[:3]
        ids, grams, mask = (torch.from_numpy(array).to(device) for array in encoded)
        tokens, pooled = self.text(ids, grams, mask)
        return Words(tokens, pooled, mask, torch.tensor(list(style), device=device))

    def wanted_and_avoided(self, cond: Cond, row: int) -> Words:
        """Two rows for guidance: the prompt in its style, and the negative prompt in none."""
        avoid = cond.negative[row] if cond.negative else ""
        words = self.prompted([cond.prompts[row], avoid], [cond.style[row], 0])
        if cond.steering is None or cond.steering[row].idle:
            return words
        return self._steered(words, cond.prompts[row], cond.steering[row])

    def _steered(self, words: Words, prompt: str, steering: Steering) -> Words:
        """With the first row, which are the words of `prompt`, changed."""
        weights = self.tokenizer.weights(prompt, steering.emphasis, words.tokens.shape[1])
        first, mask = words.tokens[:1], words.mask[:1]
        found = steering.steered(first.detach().cpu().numpy(), mask.cpu().numpy(), weights, prompt)
        changed = torch.from_numpy(found).to(first)
        tokens = torch.cat([changed, words.tokens[1:]])
        return replace(words, tokens=tokens, pooled=torch.cat([self.text.pooled(changed, mask), words.pooled[1:]]))

    def example_words(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Two rows of WORDS to export a graph with."""
        L, D = self.config.text.max_tokens, self.config.text.width
        mask, style = torch.ones(2, L, dtype=torch.bool), torch.zeros(2, dtype=torch.long)
        return Words(torch.randn(2, L, D), torch.randn(2, D), mask, style).flat()

    def chosen(self, options: dict[str, Any]) -> dict[str, Any]:
        """The value of every option in `sampling`: the given one, or the config's where it is missing or None.

        Raises TypeError for an option that this technique does not have."""
        if unknown := set(options) - set(self.sampling):
            raise TypeError(f"{type(self).__name__} has no option {', '.join(sorted(unknown))}.")
        given = {name: value for name, value in options.items() if value is not None}
        return {name: getattr(self.config, name) for name in self.sampling} | given


def dropped(text: TextTokens, rows: Tensor) -> TextTokens:
    """`text` with `rows` (B,) bool replaced by the empty caption (one padding token)."""
    keep = ~rows[:, None]
    first = torch.zeros_like(text.mask)
    first[:, 0] = True
    return TextTokens(text.ids * keep, text.grams * keep[..., None], torch.where(keep, text.mask, first))


def sort_parameters(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters as `hidden` (weight matrices inside blocks), `decay` (other weights of two or more
    dimensions) and `no_decay` (the rest: biases, gains, positions, embeddings)."""
    groups: dict[str, list[nn.Parameter]] = {"hidden": [], "decay": [], "no_decay": []}
    tables = {m.weight for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or not name.endswith("weight") or parameter in tables:
            groups["no_decay"].append(parameter)
        elif parameter.ndim == 2 and "blocks." in name:
            groups["hidden"].append(parameter)
        else:
            groups["decay"].append(parameter)
    return groups
