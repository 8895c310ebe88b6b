"""Black Forest Labs' FLUX models.

A task is submitted, polled at the `polling_url` that comes back (which may be on another of their hosts: nothing but
https there gets the key), and its picture is fetched at once, without the key: the link dies after ten minutes. One
picture a task. FLUX.2, Kontext and FLUX 3 take pictures as what the words change, `flux-pro-1.0-fill` takes a mask,
`flux-pro-1.0-expand` adds to the edges. Fields of FLUX 3 as its public documentation has them since October 2026: no
seed and no format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagewright.config import Provider
from imagewright.engines.engine import ModelInfo
from imagewright.engines.hosted import fitting
from imagewright.engines.hosted.answers import MAX_TOLD, Refusal, picture, string, text
from imagewright.engines.hosted.base import HostedEngine, hosted_model
from imagewright.errors import RequestError, UnsupportedError
from imagewright.request import Adjustment, Capabilities, ImageRequest

if TYPE_CHECKING:
    from imagewright.engines.hosted.call import Call

BASE_URL = "https://api.bfl.ai/v1"
HOSTS = ("bfl.ai",)
RATIOS = ("21:9", "16:9", "3:2", "4:3", "1:1", "3:4", "2:3", "9:16", "9:21")
RATIOS_3 = (*RATIOS, "2:1", "7:5", "5:4", "4:5", "5:7", "1:2")
TIERS_3 = {"768sq": 768, "1k": 1024, "2k": 2048, "4k": 4096}  # about the side of a square picture, in pixels
REFERENCE = 2**22  # pixels of a further picture that are sent
REFERENCE_3 = 256  # pixels of its shorter side at least, for FLUX 3
EXPAND = 2048  # pixels at most at one side
MODERATED = ("Request Moderated", "Content Moderated")
FAILED = ("Error", "Failed", "Task not found")
POLL = 1.0  # seconds between looks at a task
CREDIT = 0.01  # US dollars


@dataclass(frozen=True)
class Free:
    """Sizes that a model draws: sides from `least` to `most`, multiples of `step`, at most so many `pixels`."""

    least: int
    most: int
    step: int
    pixels: int


@dataclass(frozen=True)
class Flux:
    """What one model takes. `shape`: free sizes, named ratios, or that of the picture (None). `references`: pictures
    at most. `steps` and `guidance`: default, least, most."""

    summary: str
    shape: Free | tuple[str, ...] | None
    references: int = 0
    steps: tuple[int, int, int] | None = None
    guidance: tuple[float, float, float] | None = None
    options: tuple[str, ...] = ("safety_tolerance", "prompt_upsampling")  # further fields
    newest: bool = False  # FLUX 3, whose fields are its own
    square: int = 1024  # pixels a side of what it draws unless told


FLUX_2 = Free(64, 4096, 16, 2**22)
FLUX_1 = Free(256, 1440, 32, 1440 * 1440)
SAFETY = ("safety_tolerance",)
NEWEST = ("safety_tolerance", "grounding", "version")
MODELS: Mapping[str, Flux] = {
    "flux-2-pro": Flux("FLUX.2 [pro]", FLUX_2, 8, options=SAFETY),
    "flux-2-max": Flux("FLUX.2 [max]: the best of FLUX.2", FLUX_2, 8, options=SAFETY),
    "flux-2-flex": Flux("FLUX.2 [flex]: lettering", FLUX_2, 8, (50, 1, 50), (4.5, 1.5, 10)),
    "flux-2-klein-4b": Flux("FLUX.2 [klein] 4B: the fastest", FLUX_2, 4, options=SAFETY),
    "flux-2-klein-9b": Flux("FLUX.2 [klein] 9B: fast", FLUX_2, 4, options=SAFETY),
    "flux-3-image": Flux("FLUX 3", RATIOS_3, 10, options=NEWEST, newest=True),
    "flux-3-image-klein": Flux("FLUX 3 [klein]", RATIOS_3, 10, options=NEWEST, newest=True),
    "flux-kontext-pro": Flux("FLUX.1 Kontext [pro]: edits", RATIOS, 4),
    "flux-kontext-max": Flux("FLUX.1 Kontext [max]: edits", RATIOS, 4),
    "flux-pro-1.1": Flux("FLUX 1.1 [pro]", FLUX_1),
    "flux-pro-1.1-ultra": Flux(
        "FLUX 1.1 [pro] ultra: 4 megapixels", RATIOS, options=("safety_tolerance", "raw"), square=2048
    ),
    "flux-pro": Flux("FLUX.1 [pro]", FLUX_1),
    "flux-dev": Flux("FLUX.1 [dev]", FLUX_1, 0, (28, 1, 50), (3, 1.5, 5)),
    "flux-pro-1.0-fill": Flux("FLUX.1 Fill: fills the hole of a mask", None, 1, (50, 15, 50), (60, 1.5, 100)),
    "flux-pro-1.0-expand": Flux("FLUX.1 Expand: adds to the edges", None, 1, (50, 15, 50), (60, 1.5, 100)),
}


@dataclass(frozen=True)
class Task:
    """One JSON body, where what comes back is to be cut (`widened`), and what was bent."""

    body: dict[str, Any]
    widened: fitting.Widened | None = None
    said: list[Adjustment] = field(default_factory=list)


def task_of(request: ImageRequest, model: str, seed: int | None) -> Task:
    """The body for one picture of an adapted request. Raises RequestError."""
    kind = MODELS[model]
    if kind.shape is None:
        return _masked(request, model, seed)
    pictures = ([] if request.image is None else [request.image]) + list(request.images)
    if len(pictures) > kind.references:
        raise UnsupportedError(f"{model} takes {kind.references} pictures, not {len(pictures)}.", "Give fewer.")
    body, said = _sampling(request, kind, seed)
    if isinstance(kind.shape, Free):
        widened, shape = None, _free(request, kind.shape)
    else:
        widened, shape = _ratio(request, kind)
    if widened is not None:
        pictures[0] = widened.image
    least = REFERENCE_3 if kind.newest else 1
    sent = [fitting.png_base64(fitting.bounded(picture, REFERENCE, least)) for picture in pictures]
    if kind.newest:
        named: dict[str, Any] = {"images": sent} if sent else {}
    else:
        named = {f"input_image_{number}" if number > 1 else "input_image": one for number, one in enumerate(sent, 1)}
    return Task({"prompt": request.prompt, **shape, **named, **body}, widened, said)


def _sampling(request: ImageRequest, kind: Flux, seed: int | None) -> tuple[dict[str, Any], list[Adjustment]]:
    """Seed, format, steps, guidance and further fields, as far as the model takes them."""
    body = dict(request.provider_options)
    if kind.newest:
        return body, []
    body |= {"seed": seed, "output_format": "png"}
    said: list[Adjustment] = []
    if kind.steps is not None and request.num_inference_steps is not None:
        steps, more = fitting.within(request.num_inference_steps, *kind.steps[1:], "num_inference_steps")
        body["steps"], said = int(steps), said + more
    if kind.guidance is not None and request.guidance_scale is not None:
        body["guidance"], more = fitting.within(request.guidance_scale, *kind.guidance[1:], "guidance_scale")
        said += more
    return body, said


def _free(request: ImageRequest, free: Free) -> dict[str, Any]:
    size = fitting.allowed_size(request.size or (1024, 1024), free.least, free.most, free.step, free.pixels)
    return {"width": size[0], "height": size[1]}


def _ratio(request: ImageRequest, kind: Flux) -> tuple[fitting.Widened | None, dict[str, Any]]:
    assert isinstance(kind.shape, tuple)
    size = request.size or (1024, 1024)
    ratio = fitting.nearest_ratio(size, kind.shape)
    shape = {"aspect_ratio": ratio, **({"resolution": fitting.nearest_tier(size, TIERS_3)} if kind.newest else {})}
    if request.image is None:
        return None, shape
    return fitting.Widened.to(request.image, fitting.ratio_of(ratio)), shape


def _masked(request: ImageRequest, model: str, seed: int | None) -> Task:
    """The body for the two models that change a picture where a mask lets them."""
    if request.image is None or request.mask is None:
        raise UnsupportedError(f"{model} changes a picture where a mask lets it.", "Give a picture and a mask.")
    body, said = _sampling(request, MODELS[model], seed)
    if model.endswith("fill"):
        image, mask = fitting.flat(request.image), fitting.white_mask(request.mask)
        pictures: dict[str, Any] = {"image": fitting.png_base64(image), "mask": fitting.png_base64(mask)}
        return Task({"prompt": request.prompt, **pictures, **body}, None, said)
    margins = fitting.margins_of(request.mask)
    if max(margins.sides) > EXPAND:
        raise RequestError(f"{model} adds at most {EXPAND} pixels at a side.", "Expand by less.")
    sides = dict(zip(("left", "right", "top", "bottom"), margins.sides, strict=True))
    image = fitting.flat(fitting.inner(request.image, margins))
    return Task({"prompt": request.prompt, "image": fitting.png_base64(image), **sides, **body}, None, said)


class BFLEngine(HostedEngine):
    """Pictures from Black Forest Labs."""

    name, base_url = "bfl", BASE_URL
    own_hosts = result_hosts = HOSTS

    def listed(self) -> list[ModelInfo]:
        """The models that draw."""
        return [hosted_model(self.name, name, kind.summary, _capabilities(kind)) for name, kind in MODELS.items()]

    def headers(self, provider: Provider) -> Mapping[str, str]:
        """The key."""
        return {"x-key": provider.key.reveal()} if provider.key else {}

    def refusal(self, status: int, body: Any) -> Refusal:
        """`{"detail": ...}`."""
        return refusal_of(status, body)

    def draw(self, request: ImageRequest, model: ModelInfo, call: Call) -> tuple[list[Image.Image], list[Adjustment]]:
        """One task a picture."""

        def one(request: ImageRequest) -> tuple[Image.Image, list[Adjustment]]:
            task = task_of(request, model.name, request.seed)
            answer = call.post(f"/{model.name}", json=task.body)
            return self.cut_back(_finished(call, answer.json()), task.widened), task.said

        made, said = self.each(request, one)
        return [image for image, _ in made], [*said, *dict.fromkeys(one for _, some in made for one in some)]


def _capabilities(kind: Flux) -> Capabilities:
    sides = None
    if kind.references:
        free = kind.shape if isinstance(kind.shape, Free) else Free(64, 4096, 16, 2**24)
        sides = (free.least, free.most, free.step)
    mask = kind.shape is None
    return Capabilities(
        size=(kind.square, kind.square),
        sides=sides,
        seed=not kind.newest,
        steps=kind.steps is not None,
        guidance=kind.guidance is not None,
        image=kind.references > 0,
        mask=mask,
        strength=False,
        provider_options=kind.options,
        features=("instruction", "images") if kind.references and not mask else (),
        default_steps=kind.steps[0] if kind.steps else None,
        default_guidance=kind.guidance[0] if kind.guidance else None,
    )


def _finished(call: Call, submitted: dict[str, Any]) -> Image.Image:
    """The picture of a task. Raises ModerationError and other ProviderErrors."""
    url, task = string(submitted.get("polling_url")), text(submitted.get("id"))
    if not url:
        raise call.error(f"{call.service} took the task and does not say where to look for it.")

    def look() -> dict[str, Any] | None:
        answer: dict[str, Any] = call.get(url).json()
        status = text(answer.get("status"))
        if status in MODERATED:
            said = "the words or pictures were refused" if status == MODERATED[0] else "the picture was withheld"
            raise call.refused(Refusal(_reasons(answer) or said, status, moderated=True))
        if status in FAILED:
            why = _reasons(answer)
            raise call.error(f"{call.service}: {status}{f': {why}' if why else ''}.", status, retryable=True)
        progress = answer.get("progress")
        if isinstance(progress, int | float):
            call.told(100 * progress)
        return answer if status == "Ready" else None

    answer = call.poll(look, POLL)
    found = answer.get("result")
    result: dict[str, Any] = found if isinstance(found, dict) else {}
    seed, credits = result.get("seed"), answer.get("cost", submitted.get("cost"))
    return picture(
        call.fetch(result.get("sample")),
        call.service,
        task_id=task or None,
        seed=seed if isinstance(seed, int) else None,
        revised_prompt=text(result.get("prompt")) or None,
        cost=round(credits * CREDIT, 6) if isinstance(credits, int | float) else None,
        input_mp=submitted.get("input_mp"),
        output_mp=submitted.get("output_mp"),
    )


def _reasons(answer: Mapping[str, Any]) -> str:
    """What an answer says of why, as one line."""
    details = answer.get("details")
    if isinstance(details, dict):
        lists = {name: value if isinstance(value, list) else [value] for name, value in details.items()}
        return "; ".join(f"{name}: {', '.join(map(text, value))}" for name, value in lists.items())[:MAX_TOLD]
    return text(details) or text(answer.get("error"))


def refusal_of(status: int, body: Any) -> Refusal:
    """What an error says: a sentence, or what is wrong with each field."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, list):
        found = [one for one in detail if isinstance(one, dict)]
        where = ["/".join(text(part) for part in one.get("loc") or ()) for one in found]
        told = "; ".join(f"{at}: {text(one.get('msg'))}" for at, one in zip(where, found, strict=True))
        return Refusal(told or f"HTTP {status}", text(found[0].get("type")) if found else None, ours=True)
    return Refusal(text(detail) or f"HTTP {status}")
