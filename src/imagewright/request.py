"""The one request that every engine understands, and its answer.

Words are OpenAI's first (`prompt n size quality background output_format image mask`), then diffusers'
(`negative_prompt num_inference_steps guidance_scale strength seed`). All types here are frozen and need only PIL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from PIL import Image

from imagewright.errors import PromptError, RequestError

MAX_PROMPT = 32_000  # characters, OpenAI's limit
MAX_SEED = 2**32
MAX_SIDE = 4096  # pixels
MAX_N = 64
MAX_TRIES = 256
FAMILIES = ("vae", "gan", "diffusion", "autoregressive")
EXTRA_OPTIONS = ("temperature", "top_k", "top_p", "truncation")  # of some techniques only
MAX_PICTURES = 16  # that a request may bring along, of each kind
MAX_ASPECT = 20
QUALITIES = {  # and the factor on a model's default steps
    "auto": 1.0,
    "low": 0.5,
    "medium": 1.0,
    "standard": 1.0,
    "high": 2.0,
    "hd": 2.0,
    "xhigh": 3.0,
    "max": 4.0,
}
MAX_OPTIONS = 32  # of a hosted model's own, in one request

# Fields that only some models can honour, and whether one that cannot must refuse (else it says an Adjustment).
FEATURES = {
    "instruction": True,
    "images": True,
    "style_images": True,
    "subject_images": True,
    "controls": True,
    "adapters": True,
    "embeddings": True,
    "tile": True,
    "emphasis": False,
    "variety": False,
    "weird": False,
    "stop": False,
}

OutputFormat = Literal["png", "jpeg", "webp", "svg"]
RANGES = {  # field: its name in an error, the least, the most
    "n": ("n", 1, MAX_N),
    "num_inference_steps": ("steps", 1, 1000),
    "guidance_scale": ("guidance", 0, 100),
    "strength": ("strength", 0, 1),
    "seed": ("seed", 0, MAX_SEED - 1),
    "temperature": ("temperature", 0, 10),
    "top_k": ("top k", 0, 1_000_000),
    "top_p": ("top p", 0, 1),
    "truncation": ("truncation", -2, 2),
    "best_of": ("best of", 1, MAX_N),
    "min_match": ("the least match", 0, 1),
    "min_realism": ("the least realism", 0, 1),
    "max_tries": ("tries", 1, MAX_TRIES),
    "output_compression": ("output compression", 0, 100),
    "feather": ("feather", 0, MAX_SIDE),
    "style_weight": ("the style's weight", 0, 10),
    "subject_weight": ("the subject's weight", 0, 10),
    "variety": ("variety", 0, 1),
    "weird": ("weird", 0, 1),
    "stop": ("stop", 0.01, 1),
    "stylize": ("stylize", 0, 10),
}

Emphasis = tuple[int, int, float]  # from and to (characters of the prompt), weight
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\Z")
_UNFIT = re.compile(r"[\0\ud800-\udfff]")  # NUL, and halves of characters: no file or database takes them
_BACKGROUNDS = ("auto", "transparent", "opaque", "white", "black")


@dataclass(frozen=True)
class Control:
    """A ControlNet and the picture that it follows: `model` is a folder or hub id, `weight` 1 by default."""

    model: str
    image: Image.Image
    weight: float = 1.0


@dataclass(frozen=True)
class Adapter:
    """A LoRA: a safetensors file, folder or hub id, and its weight."""

    model: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """What to make. `None` means: the model's own default.

    `size` is (width, height) in pixels. `seed` is the first picture's; picture i uses (seed + i) mod 2**32, so each
    picture of a batch can be made again alone. `temperature`, `top_k` (0: all) and `top_p` belong to models that sample
    tokens or latents, `truncation` (psi; 0: the mean picture, 1: all variety) to GANs. `mask` follows OpenAI:
    transparent where the picture may change. `technique` (one of FAMILIES) stands for the first model of that family.
    `best_of`, `min_match`, `min_realism` and `max_tries` have judges choose among several tries (refine.choose).

    With `image`, and no mask, `strength` says how much of it may change (0 nothing, 1 everything; 0.6 by default, and
    1 with a mask) and the words say what the whole shows; with `instruction` they say what to change ("make the cat
    blue"). With `mask`, what is not transparent in it stays as it is, byte for byte; `feather` (pixels of the image,
    inside the hole) softens the seam.
    `images` are further pictures to take into account (blend). `style_images` and `subject_images` with their weights:
    make it look like these, show the same one. `controls`, `adapters` (LoRA) and `embeddings` (textual inversion
    files) belong to pretrained models. `tile`: the picture continues at its opposite edges. `emphasis`: parts of the
    prompt with a weight, as from (x:1.3). `variety` (0-1) spreads the pictures of a batch, `weird` (0-1) leads away
    from the usual, `stop` (0-1] ends the sampling after that share of its steps. `provider_options` are a hosted
    model's own (`moderation`, `input_fidelity`, `user`), by its own names; they never say where a request goes.
    Raises RequestError (with a fix) on values that no model could honour.
    """

    prompt: str
    model: str | None = None
    n: int = 1
    size: tuple[int, int] | None = None
    quality: str = "auto"
    background: str = "auto"
    output_format: OutputFormat = "png"
    output_compression: int = 100
    image: Image.Image | None = None
    mask: Image.Image | None = None
    negative_prompt: str = ""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    strength: float | None = None
    seed: int | None = None
    style: str | None = None
    sampler: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    truncation: float | None = None
    technique: str | None = None
    best_of: int = 1
    min_match: float | None = None
    min_realism: float | None = None
    max_tries: int | None = None
    instruction: bool = False
    feather: int = 0
    images: tuple[Image.Image, ...] = ()
    style_images: tuple[Image.Image, ...] = ()
    style_weight: float = 1.0
    subject_images: tuple[Image.Image, ...] = ()
    subject_weight: float = 1.0
    controls: tuple[Control, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    embeddings: tuple[str, ...] = ()
    tile: bool = False
    emphasis: tuple[Emphasis, ...] = ()
    variety: float = 0.0
    weird: float = 0.0
    stop: float = 1.0
    aspect: tuple[int, int] | None = None
    stylize: float = 1.0
    prompt_template: str | None = None
    prompt_choices: tuple[tuple[str, str], ...] = ()
    provider_options: Mapping[str, Any] = field(default_factory=dict)
    adjustments: tuple[Adjustment, ...] = ()

    def __post_init__(self) -> None:
        self._check_words()
        for own, (name, low, high) in RANGES.items():
            _check_range(name, getattr(self, own), low, high)
        for own in ("images", "style_images", "subject_images", "controls", "adapters", "embeddings"):
            _check_range(f"the number of {own.replace('_', ' ')}", len(getattr(self, own)), 0, MAX_PICTURES)
        for name, sides in (("size", self.size), ("an aspect", self.aspect)):
            for side in sides or ():
                _check_range(f"each side of {name}", side, 1, MAX_SIDE)
        if self.aspect is not None:
            _check_range("an aspect's width by height", self.aspect[0] / self.aspect[1], 1 / MAX_ASPECT, MAX_ASPECT)
        _check_range("the number of provider options", len(self.provider_options), 0, MAX_OPTIONS)
        self._check_choices()
        self._check_pictures()

    def _check_words(self) -> None:
        if not self.prompt.strip():
            raise PromptError("The prompt is empty.", "Say what the picture should show, for example: a red fox")
        for name, text in (("prompt", self.prompt), ("negative prompt", self.negative_prompt)):
            if len(text) > MAX_PROMPT:
                raise PromptError(
                    f"The {name} has {len(text):,} characters; at most {MAX_PROMPT:,} are allowed.", "Shorten it."
                )
            if _UNFIT.search(text):
                raise PromptError(f"The {name} has characters that are no text.", "Write it in UTF-8, without NUL.")
        for start, end, weight in self.emphasis:
            _check_range("a weight in the prompt", weight, 0, 10)
            if not 0 <= start < end <= len(self.prompt):
                raise RequestError(f"No characters {start} to {end} in the prompt.", "Give a part of the prompt.")

    def _check_choices(self) -> None:
        if self.technique is not None and self.technique not in FAMILIES:
            raise RequestError(f"Unknown technique {self.technique!r}.", f"Use {', '.join(FAMILIES)}.")
        if self.background not in _BACKGROUNDS and not _COLOUR.match(self.background):
            raise RequestError(
                f"Unknown background {self.background!r}.",
                "Use transparent, opaque, white, black, auto or a colour such as #ffcc00.",
            )
        if self.quality not in QUALITIES:
            raise RequestError(f"Unknown quality {self.quality!r}.", f"Use {', '.join(QUALITIES)}.")
        if self.output_format not in get_args(OutputFormat):
            raise RequestError(f"Unknown output format {self.output_format!r}.", "Use png, jpeg, webp or svg.")
        if self.output_format == "jpeg" and self.background == "transparent":
            raise RequestError("JPEG cannot be transparent.", "Use --format png or webp, or another background.")

    def _check_pictures(self) -> None:
        if self.instruction and self.image is None:
            raise RequestError("An instruction needs the image that it changes.", "Give the image as well.")
        if self.mask is not None and self.image is None:
            raise RequestError("A mask needs the image that it belongs to.", "Give the image as well.")
        if self.image is not None and max(self.image.size) > MAX_SIDE:
            raise RequestError(
                f"The image is {self.image.width}x{self.image.height}; at most {MAX_SIDE} pixels a side are edited.",
                "Make it smaller first.",
            )
        if self.mask is not None and self.image is not None and self.mask.size != self.image.size:
            raise RequestError(
                f"The mask is {self.mask.size} and the image {self.image.size}.", "Make them the same size."
            )


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:  # a NaN fails too
        raise RequestError(f"The value of {name} is {value}.", f"Use {low} to {high}.")


@dataclass(frozen=True)
class Adjustment:
    """One thing that was changed or could not be honoured, said instead of dropped."""

    field: str
    requested: Any
    used: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.requested} -> {self.used} ({self.reason})"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a model can do, declared once and checked for every request.

    `size` is the native (width, height); `any_size`: other sizes are made by resampling the native picture;
    `default_size` is what a request without a size gets (None: the native one).
    `sides` (least, most, multiple of): the model itself draws at every size with such sides, best at about the native
    area, so that edits reach it at sizes of their own (None: at `size` only).
    Without `any_size`, another size than these becomes the nearest that the model can draw: one of `sizes`, or with
    `sides` one of at least and at most so many `pixels` in all, and sides of at most the `ratio`. `strength`: how much
    of a picture may change can be said. `qualities`: those that it knows by name (empty: by its steps, if at all).
    `max_prompt` characters (0: MAX_PROMPT). `provider_options`: those that it takes ("*": any).
    `max_prompt_tokens` 0 means unknown. `styles` and `samplers` list the allowed names; empty: the field is unused.
    `options` names those of EXTRA_OPTIONS and `features` those of FEATURES that the model honours.
    """

    size: tuple[int, int]
    any_size: bool = True
    default_size: tuple[int, int] | None = None
    sides: tuple[int, int, int] | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    pixels: tuple[int, int] | None = None
    ratio: float | None = None
    max_n: int = MAX_N
    seed: bool = True
    negative_prompt: bool = False
    steps: bool = False
    guidance: bool = False
    image: bool = False
    mask: bool = False
    strength: bool = True
    transparent: bool = False
    styles: tuple[str, ...] = ()
    samplers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ()
    provider_options: tuple[str, ...] = ()
    max_prompt: int = 0
    max_prompt_tokens: int = 0
    default_steps: int | None = None
    default_guidance: float | None = None


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """The pictures of one request, in order, with a record of how each was made.

    `images[i]` belongs to `records[i]` (plain JSON values: prompt, model, model hash, seed, steps, size, ...).
    `size` is the (width, height) to deliver: the asked one or the model's default; an engine's own pictures may
    still have the model's native size. Iterating, indexing and len() go over the pictures.
    """

    images: tuple[Image.Image, ...]
    records: tuple[Mapping[str, Any], ...]
    model: str
    engine: str
    adjustments: tuple[Adjustment, ...] = ()
    size: tuple[int, int] | None = None
    seconds: float = 0.0

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[index]


def joined(results: Sequence[ImageResult]) -> ImageResult:
    """The pictures of several results, at least one, as one: the model and size are the first's."""
    adjustments = list(dict.fromkeys(adjustment for result in results for adjustment in result.adjustments))
    return replace(
        results[0],
        images=tuple(image for result in results for image in result.images),
        records=tuple(record for result in results for record in result.records),
        adjustments=tuple(adjustments),
        seconds=sum(result.seconds for result in results),
    )
