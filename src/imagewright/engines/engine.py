"""The engine contract, and the flow that all engines share.

`Engine.generate` finds the model, adapts the request to the model's declared capabilities (every change becomes an
`Adjustment`), calls `_generate`, and wraps the pictures with their records. An engine writes only `models` and
`_generate`. Where a picture is edited, the engine gets a cut of it at the model's size, and what it draws is set back
here (editing/place.py), so that no engine can change what the mask keeps. For a server, which has several requests at
a time, an engine says how many it takes (`concurrency`).
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar

from PIL import Image

from imagewright.editing import place
from imagewright.editing.shapes import nearest
from imagewright.engines import relative
from imagewright.engines.lanes import at_once
from imagewright.errors import ModelNotFoundError, PromptError, UnsupportedError
from imagewright.models.samplers import NOISY, SAMPLERS, STEADY
from imagewright.models.steering import Steering
from imagewright.request import (
    EXTRA_OPTIONS,
    FEATURES,
    MAX_SEED,
    Adjustment,
    Capabilities,
    ImageRequest,
    ImageResult,
)
from imagewright.source import Source
from imagewright.watch import Preview, Progress, Watch

__all__ = [
    "Engine",
    "ModelInfo",
    "Progress",
    "adapt",
    "capabilities",
    "kept",
    "options_of",
    "seed_of",
    "source_of",
    "steering_of",
    "strength_of",
]


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model as `imagewright models` lists it. `size_bytes` is its files on disk; `digest` the sha256 of them."""

    name: str
    engine: str
    technique: str
    summary: str
    licence: str
    capabilities: Capabilities
    size_bytes: int = 0
    digest: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def is_hosted(self) -> bool:
        """Whether a service elsewhere draws, which may charge for it."""
        return self.technique == "hosted"


class Engine(ABC):
    """Makes pictures with one kind of model. Subclasses give `models` and `_generate`.

    `concurrency`: how many calls of `generate` may run at once, in threads.
    """

    name: ClassVar[str]
    concurrency: int = 1

    @abstractmethod
    def models(self) -> Sequence[ModelInfo]:
        """The models at hand, the default first. Cheap: reads no weights."""

    @abstractmethod
    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        """`request.n` RGBA or RGB pictures for an adapted request (every field is set and within capabilities). What
        the `info["record"]` of one holds, a dict of JSON values, goes into its record.

        Its `image` and `mask` (RGBA, transparent where it may change) have `request.size`, the model's own.
        """

    def find(self, name: str | None) -> ModelInfo:
        """The model called `name` (None: the default). Raises ModelNotFoundError."""
        models = self.models()
        for model in models:
            if name in (None, model.name):
                return model
        raise ModelNotFoundError(
            f"No model {name!r} in engine {self.name}.", f"There are: {', '.join(m.name for m in models) or 'none'}."
        )

    def generate_many(
        self, requests: Sequence[ImageRequest], watches: Sequence[Watch]
    ) -> list[ImageResult | Exception]:
        """`generate` for each request with its watch, or the error that it ended with: one does not touch the others.
        The pictures are those that each request gets alone."""
        pairs = zip(requests, watches, strict=True)
        return at_once([partial(self.generate, request, watch) for request, watch in pairs], self.concurrency)

    def generate(self, request: ImageRequest, watch: Watch = Watch()) -> ImageResult:
        """Pictures for `request`, with records and adjustments. Raises RequestError and ModelError."""
        model = self.find(request.model)
        adapted, adjustments = adapt(request, model.capabilities)
        cut, said = place.cut(adapted, model.capabilities)
        if cut is not None and watch.preview is not None:
            watch = replace(watch, preview=_restored(watch.preview, cut))
        start = time.perf_counter()
        images, more = self._generate(cut.request if cut else adapted, model, watch)
        own = [image.info.pop("record", {}) for image in images]
        restored = [cut.restored(image) if cut else (image, {}) for image in images]
        images = [image for image, _ in restored]
        seconds = time.perf_counter() - start
        adjustments = [*adjustments, *said, *more]
        records = tuple(
            _record(adapted, model, index, image, adjustments, seconds) | place.sources(adapted) | told | own[index]
            for index, (image, told) in enumerate(restored)
        )
        return ImageResult(
            images=tuple(images),
            records=records,
            model=model.name,
            engine=self.name,
            adjustments=tuple(adjustments),
            size=adapted.size,
            seconds=seconds,
        )


def _restored(preview: Preview, cut: place.Cut) -> Preview:
    """`preview` of the whole picture, for an engine that draws a cut of it."""
    return lambda index, image: preview(index, cut.restored(image)[0])


def adapt(request: ImageRequest, can: Capabilities) -> tuple[ImageRequest, list[Adjustment]]:
    """`request` with defaults filled in and bent to what the model can do, and each bend as an Adjustment.

    What would change the meaning (a mask or an image that the model cannot take, an unknown style) is an error.
    """
    _check(request, can)
    changes: dict[str, Any] = {}
    made = list(request.adjustments)
    for name, used, reason in _unmet(request, can):
        made.append(Adjustment(name, getattr(request, name), used, reason))
        changes[name] = used
    if "*" not in can.provider_options and (foreign := set(request.provider_options) - set(can.provider_options)):
        asked = request.provider_options
        changes["provider_options"] = {name: value for name, value in asked.items() if name not in foreign}
        for name in sorted(foreign):
            value = "(not told)" if name in _ABOUT_THE_USER else asked[name]
            made.append(Adjustment(f"provider_options.{name}", value, None, "this model has no such option"))
    return replace(request, **(_defaults(request, can) | changes)), made


def _check(request: ImageRequest, can: Capabilities) -> None:
    """Raises UnsupportedError and PromptError for what cannot be bent."""
    if request.mask is not None and not can.mask:
        raise UnsupportedError("This model cannot honour a mask.", "Choose a model that can: imagewright models")
    if request.image is not None and not can.image:
        raise UnsupportedError("This model takes no picture.", "Choose a model that can: imagewright models")
    for name, allowed in (("style", can.styles), ("sampler", can.samplers)):
        if (asked := getattr(request, name)) is not None and asked not in allowed:
            raise UnsupportedError(f"This model has no {name} {asked!r}.", f"It has: {', '.join(allowed) or 'none'}.")
    if can.max_prompt and len(request.prompt) > can.max_prompt:
        raise PromptError(
            f"The prompt has {len(request.prompt):,} characters; this model reads {can.max_prompt:,}.", "Shorten it."
        )
    for name in _unheard(request, can):
        if FEATURES[name]:
            raise UnsupportedError(f"This model has no {_said(name)}.", "Choose one that has: imagewright models")


def _unheard(request: ImageRequest, can: Capabilities) -> list[str]:
    """The features that are asked for and that the model has not got."""
    return [name for name in FEATURES if name not in can.features and getattr(request, name) != _PLAIN[name]]


def _unmet(request: ImageRequest, can: Capabilities) -> Iterator[tuple[str, Any, str]]:
    """What the model cannot honour (field, used instead, reason)."""
    if request.n > can.max_n:
        yield "n", can.max_n, f"this model makes at most {can.max_n} at a time"
    if request.negative_prompt and not can.negative_prompt:
        yield "negative_prompt", "", "this model has no negative prompt"
    if request.num_inference_steps is not None and not can.steps:
        yield "num_inference_steps", None, "this model has no steps"
    if request.guidance_scale is not None and not can.guidance:
        yield "guidance_scale", None, "this model has no guidance"
    if request.seed is not None and not can.seed:
        yield "seed", None, "this model takes no seed; the picture cannot be made again exactly"
    for name in EXTRA_OPTIONS:
        if getattr(request, name) is not None and name not in can.options:
            yield name, None, f"this model has no {name}"
    for name in _unheard(request, can):
        yield name, _PLAIN[name], f"this model has no {_said(name)}"
    yield from kept(request)
    yield from relative.unmet(request, can)
    if request.strength is not None and not can.strength:
        yield "strength", None, "this model takes no strength; the words say what changes"
    if request.image is None and request.size is not None and not can.any_size:
        drawn, several = nearest(request.size, can), can.sizes or can.sides
        if drawn != request.size:
            reason = "the nearest that this model makes" if several else "this model makes one size only"
            yield "size", drawn, reason


def _defaults(request: ImageRequest, can: Capabilities) -> dict[str, Any]:
    """Values for what was left open."""
    found: dict[str, Any] = {}
    if request.image is not None:
        if can.strength:
            found["strength"] = strength_of(request)
        found["size"] = request.image.size if request.size is None or request.mask else request.size
    elif request.size is None:
        found["size"] = relative.size_of(request, can)
    if can.seed and request.seed is None:
        found["seed"] = secrets.randbelow(MAX_SEED)
    if can.steps and request.num_inference_steps is None:
        found["num_inference_steps"] = relative.steps_of(request, can)
    if can.guidance and request.guidance_scale is None:
        found["guidance_scale"] = relative.guidance_of(request, can)
    return found


def kept(request: ImageRequest) -> Iterator[tuple[str, Any, str]]:
    """What a request with a mask cannot have (field, used instead, reason)."""
    if request.image is None or request.mask is None:
        return
    if request.size not in (None, request.image.size):
        yield "size", request.image.size, "what the mask keeps stays as it is"
    if request.background != "auto":
        yield "background", "auto", "what the mask keeps stays as it is"
    if request.output_format == "svg":
        yield "output_format", "svg", "all is drawn anew, also what the mask keeps; png keeps all pixels"
    lossy = request.output_format == "webp" and request.output_compression < 100
    if request.output_format == "jpeg" or lossy:
        reason = "every pixel is stored anew, with losses, also what the mask keeps; png has none"
        yield "output_format", request.output_format, reason


_PLAIN = {f.name: f.default for f in fields(ImageRequest) if f.name in FEATURES}  # what a feature not asked for has


def _said(name: str) -> str:
    return name.replace("_", " ")


WORDING = ("emphasis", "variety", "weird")  # the features that are done to encoded words
STRENGTH, BLENDING = 0.6, 0.8  # how much of a picture, or of several, the words change, unless told
FIELDS = {"steps": "num_inference_steps", "guidance": "guidance_scale"}  # sampling options under another name there


def options_of(request: ImageRequest, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each option in `sampling`: the request's, or the default given there; for a blend of pictures, whose
    noise says what they show, a default sampler that adds no other."""
    asked = {name: getattr(request, FIELDS.get(name, name), None) for name in sampling}
    if request.images and sampling.get("sampler") in NOISY and asked["sampler"] is None:
        asked["sampler"] = STEADY
    return {name: default if asked[name] is None else asked[name] for name, default in sampling.items()}


def capabilities(sampling: Mapping[str, Any], edits: Sequence[str] = (), **others: Any) -> Capabilities:
    """What a model of ours can do, told by its sampling options with their defaults and by the edits that it knows
    (Technique.edits); `others` go in as they are."""
    return Capabilities(
        image="image" in edits,
        mask="mask" in edits,
        features=tuple(name for name in FEATURES if name in (*edits, *sampling)),
        negative_prompt="guidance" in sampling,
        steps="steps" in sampling,
        guidance="guidance" in sampling,
        samplers=tuple(SAMPLERS) if "sampler" in sampling else (),
        options=tuple(name for name in EXTRA_OPTIONS if name in sampling),
        default_steps=sampling.get("steps"),
        default_guidance=sampling.get("guidance"),
        **others,
    )


def source_of(request: ImageRequest, size: tuple[int, int]) -> Source | None:
    """What `request` starts from; its `image` and `mask` have the model's own `size` already, `images` any.

    Raises UnsupportedError where further pictures meet a mask or an instruction."""
    if not request.images:
        if request.image is None:
            return None
        return Source.of(request.image, request.mask, strength_of(request), request.instruction)
    if request.mask is not None or request.instruction:
        raise UnsupportedError(
            "This model blends whole pictures only.",
            "Leave the further pictures away, or the mask and the instruction.",
        )
    pictures = [*(() if request.image is None else (request.image,)), *request.images]
    return Source.blending([place.inside(picture, size) for picture in pictures], strength_of(request))


def strength_of(request: ImageRequest) -> float:
    """How much of its image a request changes: what it says, or STRENGTH, or more so that several become one; all of a
    hole, all that is instructed."""
    if request.strength is not None:
        return request.strength
    if request.mask is not None or request.instruction:
        return 1.0
    return BLENDING if request.images else STRENGTH


def steering_of(request: ImageRequest, index: int) -> Steering:
    """What picture `index` of a request has done to its words."""
    return Steering(request.emphasis, request.variety, request.weird, seed_of(request, index))


def seed_of(request: ImageRequest, index: int) -> int:
    """The seed of picture `index` of a request whose seed is set: (seed + index) mod 2**32."""
    assert request.seed is not None
    return (request.seed + index) % MAX_SEED


_ABOUT_THE_USER = ("user", "safety_identifier")  # provider options that no picture tells
_TOLD = ("emphasis", "variety", "weird", "stop", "tile", "prompt_template", "prompt_choices")  # where they were used


def _record(
    request: ImageRequest,
    model: ModelInfo,
    index: int,
    image: Image.Image,
    adjustments: Sequence[Adjustment],
    seconds: float,
) -> dict[str, Any]:
    from imagewright import __version__

    options = {name: value for name, value in request.provider_options.items() if name not in _ABOUT_THE_USER}
    return {
        "software": f"imagewright {__version__}",
        "engine": model.engine,
        "model": model.name,
        "model_digest": model.digest,
        "technique": model.technique,
        "licence": model.licence,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "style": request.style,
        "seed": seed_of(request, index) if request.seed is not None else None,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "sampler": request.sampler,
        **{name: getattr(request, name) for name in EXTRA_OPTIONS if getattr(request, name) is not None},
        **{name: getattr(request, name) for name in _TOLD if getattr(request, name) != getattr(ImageRequest, name)},
        **({"provider_options": options} if options else {}),
        "background": request.background,
        "size": list(image.size),
        "adjustments": [asdict(a) for a in adjustments],
        "seconds": round(seconds / max(1, request.n), 4),
        **{name: value for name, value in model.extra.items() if name != "path"},  # a picture tells no folder names
    }
