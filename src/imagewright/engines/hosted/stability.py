"""Stability AI's image services (`v2beta/stable-image`).

A model here is one of their services: `ultra`, `core` and `sd3.5-*` draw; `inpaint`, `erase` and `outpaint` change a
picture that comes with a mask. Every body is multipart. Pictures come as PNG bytes with `finish-reason` and `seed` as
headers; CONTENT_FILTERED is a 200 with a blurred picture, which is an error here. One picture a call. Seed 0 means any
there: it is never sent. What no request can say has methods of its own: `upscale`, `remove_background`, `replace`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from imagewright import __version__
from imagewright.config import Provider
from imagewright.editing import masks, place
from imagewright.engines.engine import ModelInfo
from imagewright.engines.hosted import fitting
from imagewright.engines.hosted.answers import Answer, Refusal, text
from imagewright.engines.hosted.base import HostedEngine, hosted_model
from imagewright.errors import RequestError, UnsupportedError
from imagewright.request import Adjustment, Capabilities, ImageRequest, ImageResult
from imagewright.watch import Watch

if TYPE_CHECKING:
    from imagewright.engines.hosted.call import Call

BASE_URL = "https://api.stability.ai"
SERVICES = "/v2beta/stable-image"
RATIOS = ("21:9", "16:9", "3:2", "5:4", "1:1", "4:5", "2:3", "9:16", "9:21")
MAX_WORDS = 10_000
MAX_SEED = 4_294_967_294
GUIDANCE = (1.0, 10.0)  # cfg_scale
STYLES = (
    "3d-model",
    "analog-film",
    "anime",
    "cinematic",
    "comic-book",
    "digital-art",
    "enhance",
    "fantasy-art",
    "isometric",
    "line-art",
    "low-poly",
    "modeling-compound",
    "neon-punk",
    "origami",
    "photographic",
    "pixel-art",
    "tile-texture",
)
OUTPAINT = 2000  # pixels at most at one side
OUTPAINT_SHAPE = 2.5  # of the longer side to the shorter, at most


@dataclass(frozen=True)
class Service:
    """One model: its path, its price in credits, and which fields of a request it takes."""

    path: str
    credits: float
    summary: str
    name: str = ""  # what the field `model` says, where there is one
    words: bool = True
    negative: bool = False
    strength: bool = False  # takes a picture, and how much of it may change
    mask: bool = False
    guidance: bool = False
    styles: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # further fields


GROW = ("grow_mask",)
MODELS: Mapping[str, Service] = {
    "core": Service("/generate/core", 3, "Stable Image Core: quick", negative=True, styles=STYLES),
    "ultra": Service("/generate/ultra", 8, "Stable Image Ultra: the best of theirs", negative=True, strength=True),
    **{
        name: Service("/generate/sd3", price, "Stable Diffusion 3.5", name, negative=True, strength=True, guidance=True)
        for name, price in (("sd3.5-large", 6.5), ("sd3.5-large-turbo", 4), ("sd3.5-medium", 3.5))
    },
    "inpaint": Service("/edit/inpaint", 3, "fills the hole of a mask", negative=True, mask=True, options=GROW),
    "erase": Service(
        "/edit/erase", 3, "removes what is in the hole of a mask; takes no words", words=False, mask=True, options=GROW
    ),
    "outpaint": Service("/edit/outpaint", 4, "adds to the edges of a picture", mask=True, options=("creativity",)),
}


@dataclass(frozen=True)
class Upscaler:
    """A way to enlarge: its price in credits, the most pixels that it takes, and whether it needs words."""

    credits: float
    pixels: int
    words: bool = True


UPSCALERS: Mapping[str, Upscaler] = {
    "fast": Upscaler(1, 1_048_576, words=False),
    "conservative": Upscaler(25, 9_437_184),
    "creative": Upscaler(25, 1_048_576),
}
POLL = 2.0  # seconds between looks at what takes longer


@dataclass(frozen=True)
class Form:
    """One multipart body: `fields` are text, `files` are PNG. What comes back is cut as `widened` says."""

    fields: dict[str, str]
    files: dict[str, bytes] = field(default_factory=dict)
    widened: fitting.Widened | None = None
    said: tuple[Adjustment, ...] = ()

    def parts(self) -> dict[str, tuple[str | None, str | bytes, str | None]]:
        """As httpx wants it: name, content, type. A body without files is multipart too."""
        text = {name: (None, value, None) for name, value in self.fields.items()}
        return {**text, **{name: (f"{name}.png", data, "image/png") for name, data in self.files.items()}}


def form_of(request: ImageRequest, model: str, seed: int) -> Form:
    """The body for one picture of an adapted request. Raises UnsupportedError where the service needs a mask."""
    service = MODELS[model]
    if service.mask and request.mask is None:
        raise UnsupportedError(f"{model} changes a picture where a mask lets it.", "Give a picture and a mask.")
    seed, said = fitting.wire_seed(seed, MAX_SEED)
    fields = {"output_format": "png", "seed": str(seed), **({"model": service.name} if service.name else {})}
    if service.words:
        fields["prompt"] = request.prompt
    else:
        said.append(Adjustment("prompt", request.prompt, "", f"{model} takes no words"))
    if request.negative_prompt:
        fields["negative_prompt"], more = fitting.cut_words("negative_prompt", request.negative_prompt, MAX_WORDS)
        said += more
    if request.style is not None:
        fields["style_preset"] = request.style
    if request.guidance_scale is not None:
        guidance, more = fitting.within(request.guidance_scale, *GUIDANCE, "guidance_scale")
        fields["cfg_scale"] = f"{guidance:g}"
        said += more
    fields |= {name: str(value) for name, value in request.provider_options.items()}
    form = _pictures(request, model)
    return replace(form, fields=fields | form.fields, said=tuple(said))


def _pictures(request: ImageRequest, model: str) -> Form:
    """The fields and files that say what the picture starts from, or its shape."""
    service, size = MODELS[model], request.size or (1024, 1024)
    ratio = fitting.nearest_ratio(size, RATIOS)
    diffusion = bool(service.name)  # sd3 takes a ratio or a picture, ultra both
    if request.image is None:
        return Form({"aspect_ratio": ratio, **({"mode": "text-to-image"} if diffusion else {})})
    if request.mask is None:
        widened = fitting.Widened.to(fitting.flat(request.image), fitting.ratio_of(ratio))
        shape = {"mode": "image-to-image"} if diffusion else {"aspect_ratio": ratio}
        fields = {"strength": f"{request.strength:.4g}", **shape}
        return Form(fields, {"image": fitting.png(widened.image)}, widened)
    if model == "outpaint":
        return _outpainted(request.image, request.mask)
    mask = fitting.png(fitting.white_mask(request.mask))
    return Form({}, {"image": fitting.png(fitting.flat(request.image)), "mask": mask})


def _outpainted(image: Image.Image, mask: Image.Image) -> Form:
    margins = fitting.margins_of(mask)
    kept = fitting.flat(fitting.inner(image, margins))
    if max(kept.size) > OUTPAINT_SHAPE * min(kept.size) or max(margins.sides) > OUTPAINT:
        raise RequestError(
            f"outpaint cannot add {margins.sides} (left, right, up, down) to {kept.width}x{kept.height} pixels.",
            f"Use inpaint; or keep a part at most {OUTPAINT_SHAPE} times as long as wide, and add at most {OUTPAINT}.",
        )
    sides = zip(("left", "right", "up", "down"), margins.sides, strict=True)
    return Form({name: str(side) for name, side in sides if side}, {"image": fitting.png(kept)})


class StabilityEngine(HostedEngine):
    """Pictures from Stability AI."""

    name, base_url = "stability", BASE_URL

    def listed(self) -> list[ModelInfo]:
        """Their services that a request can be put to."""
        return [
            hosted_model(self.name, name, service.summary, _capabilities(service), credits=service.credits)
            for name, service in MODELS.items()
        ]

    def headers(self, provider: Provider) -> Mapping[str, str]:
        """The key."""
        return {"authorization": f"Bearer {provider.key.reveal()}"} if provider.key else {}

    def refusal(self, status: int, body: Any) -> Refusal:
        """`{"id", "name", "errors": [...]}`."""
        return refusal_of(status, body)

    def draw(self, request: ImageRequest, model: ModelInfo, call: Call) -> tuple[list[Image.Image], list[Adjustment]]:
        """One call a picture."""

        def one(request: ImageRequest) -> tuple[Image.Image, tuple[Adjustment, ...]]:
            form = form_of(request, model.name, request.seed or 0)
            answer = call.post(SERVICES + MODELS[model.name].path, files=form.parts(), headers={"accept": "image/*"})
            return self.cut_back(picture_of(answer, call), form.widened), form.said

        made, said = self.each(request, one)
        return [image for image, _ in made], [*said, *dict.fromkeys(one for _, some in made for one in some)]

    def upscale(
        self,
        picture: Image.Image,
        kind: Literal["fast", "conservative", "creative"] = "fast",
        prompt: str = "",
        seed: int = 0,
        watch: Watch = Watch(),
    ) -> ImageResult:
        """The picture enlarged: `fast` four times, the others to about four megapixels, led by words of what it shows.

        Raises RequestError where it has too many pixels or words are missing, ProviderError, StoppedError.
        """
        scaler = UPSCALERS[kind]
        if prod(picture.size) > scaler.pixels:
            raise RequestError(
                f"{kind} upscaling takes {scaler.pixels:,} pixels, not {picture.width}x{picture.height}.",
                "Make it smaller, or use another kind.",
            )
        if scaler.words and not prompt.strip():
            raise RequestError(f"{kind} upscaling needs words.", "Say what the picture shows.")
        fields = {"prompt": prompt, **({"seed": str(seed)} if seed else {})} if scaler.words else {}
        return self._tool(f"upscale-{kind}", f"/upscale/{kind}", fields, picture, scaler.credits, watch)

    def remove_background(self, picture: Image.Image, watch: Watch = Watch()) -> ImageResult:
        """The thing alone, on nothing. Raises ProviderError, StoppedError."""
        return self._tool("remove-background", "/edit/remove-background", {}, picture, 2, watch)

    def search_and_replace(
        self, picture: Image.Image, what: str, prompt: str, negative_prompt: str = "", watch: Watch = Watch()
    ) -> ImageResult:
        """The picture with `what` is found in it replaced by what `prompt` says. Raises ProviderError, StoppedError."""
        fields = {"search_prompt": what, "prompt": prompt}
        fields |= {"negative_prompt": negative_prompt} if negative_prompt else {}
        return self._tool("search-and-replace", "/edit/search-and-replace", fields, picture, 4, watch)

    def _tool(
        self, name: str, path: str, fields: dict[str, str], picture: Image.Image, credits: float, watch: Watch
    ) -> ImageResult:
        """What a service that needs no request makes of a picture, with its record."""
        picture = masks.upright(picture)
        model = hosted_model(self.name, name, name.replace("-", " "), Capabilities(size=picture.size))
        call = self.call(watch, model)
        sent = Form({"output_format": "png", **fields}, {"image": fitting.png(picture)})
        later = name == "upscale-creative"
        answer = call.post(
            SERVICES + path, files=sent.parts(), headers={"accept": "application/json" if later else "image/*"}
        )
        if later:
            answer = _finished(call, text(answer.json().get("id")))
        image = picture_of(answer, call)
        self._whole(image)
        record = {
            "software": f"imagewright {__version__}",
            "engine": self.name,
            "model": name,
            "technique": model.technique,
            "licence": model.licence,
            "provider": call.service,
            "prompt": fields.get("prompt", ""),
            "background": "auto",
            "size": list(image.size),
            "adjustments": [],
            "image_sha256": place.digest(picture),
            "credits": credits,
            **image.info.pop("record"),
        }
        return ImageResult(images=(image,), records=(record,), model=name, engine=self.name, size=image.size)


def _capabilities(service: Service) -> Capabilities:
    edits = service.strength or service.mask
    return Capabilities(
        size=(1024, 1024),
        sides=(64, 4096, 8) if edits else None,
        negative_prompt=service.negative,
        guidance=service.guidance,
        image=edits,
        mask=service.mask,
        strength=service.strength,
        styles=service.styles,
        max_prompt=MAX_WORDS,
        provider_options=service.options,
    )


def picture_of(answer: Answer, call: Call) -> Image.Image:
    """The picture of an answer. Raises ModerationError where it was filtered: then it is blurred."""
    reason = answer.headers.get("finish-reason", "SUCCESS")
    if reason != "SUCCESS":
        refusal = Refusal("the picture was filtered", reason, moderated=reason == "CONTENT_FILTERED")
        raise call.refused(refusal, answer.status)
    seed = answer.headers.get("seed", "")
    return answer.picture(answer.body, seed=int(seed) if seed.isdecimal() else None)


def _finished(call: Call, job: str) -> Answer:
    """The answer of a service that takes longer: 202 while it works."""

    def look() -> Answer | None:
        answer = call.get(f"/v2beta/results/{job}", headers={"accept": "*/*"})
        return None if answer.status == 202 else answer

    return call.poll(look, POLL)


def refusal_of(status: int, body: Any) -> Refusal:
    """What an error says."""
    if not isinstance(body, dict):
        return Refusal(f"HTTP {status}")
    errors = body.get("errors")
    message = "; ".join(text(one) for one in errors) if isinstance(errors, list) else text(body.get("message"))
    code = text(body.get("name")) or None
    return Refusal(message or f"HTTP {status}", code, moderated=code == "content_moderation")
