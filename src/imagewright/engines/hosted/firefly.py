"""Adobe Firefly Services: image models 3, 4 and 5, and their services for filling and expanding.

Two credentials make a token that is kept until it ends. Pictures and masks are uploaded first, then a job is submitted
and polled where its answer says, and its pictures are fetched from where they were stored. Up to four pictures a job,
each with its own seed; model 5 draws one. A stop cancels the job. `style` is a content class (`photo`, `art`) or one
of Adobe's presets. By default an organisation has four requests a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagewright.config import Provider, Secret
from imagewright.engines.engine import ModelInfo, seed_of
from imagewright.engines.hosted import fitting
from imagewright.engines.hosted.answers import Refusal, picture, string, text
from imagewright.engines.hosted.base import HostedEngine, hosted_model
from imagewright.errors import (
    CredentialError,
    ImagewrightError,
    ProviderError,
    ProviderTimeoutError,
    StoppedError,
    UnsupportedError,
)
from imagewright.request import Adjustment, Capabilities, ImageRequest

if TYPE_CHECKING:
    from imagewright.engines.hosted.answers import Answer
    from imagewright.engines.hosted.call import Call

BASE_URL = "https://firefly-api.adobe.io"
TOKEN_URL = "https://ims-na1.adobelogin.com/ims/token/v3"
SCOPE = "openid,AdobeID,session,additional_info,read_organizations,firefly_api,ff_apis"
HOSTS = ("adobe.io", "adobelogin.com")  # that may get the token
STORES = ("adobe.io", "amazonaws.com", "windows.net")  # that hold finished pictures
SIZES_3 = (
    (2048, 2048),
    (1024, 1024),
    (2304, 1792),
    (1792, 2304),
    (2688, 1536),
    (2688, 1512),
    (1344, 768),
    (1344, 756),
    (1152, 896),
    (896, 1152),
)
SIZES_4 = ((2048, 2048), (2304, 1792), (1792, 2304), (2688, 1536), (1440, 2560))
SIZES_FILL = tuple(size for size in SIZES_3 if size[1] not in (1512, 756))
RATIOS_5 = ("1:1", "4:3", "3:4", "16:9", "9:16")
TIERS_5 = {"1MP": 1024, "2.4MP": 1536, "4MP": 2048}  # about the side of a square picture, in pixels
MAX_EXPANDED = 3999  # pixels a side
POLL = 1.0  # seconds between looks at a job, as Adobe asks
EARLY = 60.0  # seconds before its end that a token is not used any more
FAILED = ("failed", "cancelled", "timeout")
CLASSES = ("photo", "art")
PRESETS = tuple(
    """3d 3d_patterns acrylic_paint anime antique_photo art_deco art_nouveau backlighting baroque bauhaus beautiful
    bioluminescent bohemian bokeh bold_lines bw cartoon chaotic charcoal chiaroscuro cinematic claymation closeup
    color_explosion color_shift_art comic_book concept_art constructivism cool_colors cubism cyber_matrix cyberpunk
    daguerreotype dais dark digital_art digital_fractal divine doodle_drawing double_exposure_portrait dramatic_light
    eclectic fabric faded_image fantasy fauvism film_noir fisheye flat_design fresco fur futuristic geometric
    geometric_pen glassmorphism glitch_art glitch_graphic golden golden_hour gomori_photography graffiti grainy_film
    graphic guilloche_patterns halftone harsh_light hyper_realistic impressionism industrialism ink interior_design
    iridescent isometric kitschy knolling landscape_photography layered_paper light_painting line_drawing line_gradient
    linocut long low_lighting low_poly macrophotography made_of_metal marble_sculpture maximalism minimalism misty
    modern_art modernism monochromatic multiexposure muted_color neo neon newspaper_collage nostalgic oil_paint
    optical_illusion origami otherworldly_depiction paint_spattering painting palette_knife paper_mache pastel_color
    pattern_pixel photo_manipulation photographed_through_window pixel_art pointillism polka pop_art product_photo
    psychedelic psychedelic_background psychedelic_wonderland scandinavian science_fiction scribble_texture
    shallow_depth_of_field shot_from_above shot_from_below simple sketch splash_images splattering stamp steampunk
    stippling_drawing strange_patterns studio_light surface_detail surreal_lighting surrealism synthetism synthwave
    toned_image trompe_loeil ultraviolet underwater vaporwave vector_look vibrant_colors warm_tone watercolor
    wide_angle wireframe wood_carving yarn""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Service:
    """One model: its path, its version (a header), how many pictures a job makes, how long its prompt may be."""

    path: str
    summary: str
    version: str = ""
    batch: int = 4
    words: int = 1024
    sizes: tuple[fitting.Size, ...] = ()
    negative: bool = False
    mask: bool = False
    options: tuple[str, ...] = ()  # further fields


DRAWN = ("visualIntensity", "promptBiasingLocaleCode")
MODELS: Mapping[str, Service] = {
    "image5": Service(
        "/v4/images/generate-async", "Firefly Image 5", "image5", 1, 1500, options=("modelSpecificPayload",)
    ),
    "image4_standard": Service(
        "/v3/images/generate-async", "Firefly Image 4", "image4_standard", sizes=SIZES_4, negative=True, options=DRAWN
    ),
    "image4_ultra": Service(
        "/v3/images/generate-async",
        "Firefly Image 4 Ultra",
        "image4_ultra",
        sizes=SIZES_4,
        negative=True,
        options=DRAWN,
    ),
    "image3": Service(
        "/v3/images/generate-async", "Firefly Image 3", "image3", sizes=SIZES_3, negative=True, options=DRAWN
    ),
    "fill": Service(
        "/v3/images/fill-async",
        "fills the hole of a mask",
        sizes=SIZES_FILL,
        negative=True,
        mask=True,
        options=DRAWN[1:],
    ),
    "expand": Service("/v3/images/expand-async", "adds to the edges of a picture", mask=True),
}


@dataclass(frozen=True)
class Job:
    """One job: its body but for the pictures, which are uploaded first and named there by `uploads` (image, mask,
    style), and where what comes back is to be cut."""

    body: dict[str, Any]
    uploads: Mapping[str, Image.Image]
    widened: fitting.Widened | None = None
    said: tuple[Adjustment, ...] = ()

    def with_uploads(self, ids: Mapping[str, str]) -> dict[str, Any]:
        """The whole body, given what each upload is called."""
        body = dict(self.body)
        for name, upload in ids.items():
            source = {"source": {"uploadId": upload}}
            body |= (
                {"style": {**body.get("style", {}), "imageReference": source}} if name == "style" else {name: source}
            )
        return body


def job_of(request: ImageRequest, model: str, seeds: Sequence[int]) -> Job:
    """What to ask for pictures with these seeds, of an adapted request. Raises RequestError."""
    service = MODELS[model]
    if service.mask and (request.image is None or request.mask is None):
        raise UnsupportedError(f"{model} changes a picture where a mask lets it.", "Give a picture and a mask.")
    said: list[Adjustment] = []
    body: dict[str, Any] = {"prompt": request.prompt, "numVariations": len(seeds), "seeds": list(seeds)}
    body |= request.provider_options
    if request.negative_prompt:
        body["negativePrompt"], said = fitting.cut_words("negative_prompt", request.negative_prompt, service.words)
    if model == "fill":
        return _filling(request, body, tuple(said))
    if model == "expand":
        return _expanding(request, body, tuple(said))
    style = _style(request)
    uploads = {"style": fitting.flat(request.style_images[0])} if request.style_images else {}
    return Job(body | _shape(request.size or (2048, 2048), service) | style, uploads, said=tuple(said))


def _shape(size: fitting.Size, service: Service) -> dict[str, Any]:
    if service.sizes:
        return {"size": _sides(fitting.nearest_size(size, service.sizes))}
    return {
        "aspectRatio": fitting.nearest_ratio(size, RATIOS_5),
        "resolutionLevel": fitting.nearest_tier(size, TIERS_5),
    }


def _style(request: ImageRequest) -> dict[str, Any]:
    """The content class, or the style with its strength in percent. Raises UnsupportedError."""
    if len(request.style_images) > 1:
        raise UnsupportedError("Firefly follows the style of one picture.", "Give one.")
    if request.style in CLASSES:
        found: dict[str, Any] = {"contentClass": request.style}
    else:
        found = {"style": {"presets": [request.style]}} if request.style else {}
    if request.style_images and request.style_weight != 1:
        strength = min(100, max(1, round(50 * request.style_weight)))
        found["style"] = {**found.get("style", {}), "strength": strength}
    return found


def _filling(request: ImageRequest, body: dict[str, Any], said: tuple[Adjustment, ...]) -> Job:
    assert request.image is not None and request.mask is not None
    size = fitting.nearest_size(request.image.size, SIZES_FILL)
    widened = fitting.Widened.to(fitting.flat(request.image), size)
    mask = fitting.Widened.to(fitting.white_mask(request.mask), size)
    return Job(body | {"size": _sides(size)}, {"image": widened.image, "mask": mask.image}, widened, said)


def _expanding(request: ImageRequest, body: dict[str, Any], said: tuple[Adjustment, ...]) -> Job:
    assert request.image is not None and request.mask is not None
    margins = fitting.margins_of(request.mask)
    inset = dict(zip(("left", "right", "top", "bottom"), margins.sides, strict=True))
    kept = fitting.flat(fitting.inner(request.image, margins))
    return Job(body | {"size": _sides(request.image.size), "placement": {"inset": inset}}, {"image": kept}, said=said)


def _sides(size: fitting.Size) -> dict[str, int]:
    return {"width": size[0], "height": size[1]}


@dataclass(frozen=True)
class Token:
    """What proves who calls, until `ends` (time.monotonic)."""

    secret: Secret
    ends: float


class FireflyEngine(HostedEngine):
    """Pictures from Adobe Firefly."""

    name, base_url = "firefly", BASE_URL
    own_hosts, result_hosts = HOSTS, STORES

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._tokens: dict[str, Token] = {}  # by client id
        self._renewing = Lock()

    def listed(self) -> list[ModelInfo]:
        """The models that draw, and those that change a picture."""
        return [
            hosted_model(self.name, name, service.summary, _capabilities(service)) for name, service in MODELS.items()
        ]

    def has_key(self, provider: Provider) -> bool:
        """Whether both credentials are there."""
        return bool(_credential(provider, "client_id") and _credential(provider, "client_secret"))

    def no_key(self) -> CredentialError:
        """Says which two are missing."""
        return CredentialError(
            "It needs a client id and a client secret.",
            "Set FIREFLY_CLIENT_ID and FIREFLY_CLIENT_SECRET, or both under [providers.firefly] in the configuration.",
            provider=self.name,
        )

    def secrets(self, provider: Provider) -> list[str]:
        """The credentials, and the token."""
        token = self._tokens.get(_credential(provider, "client_id"))
        return [*super().secrets(provider), *([token.secret.reveal()] if token else [])]

    def headers(self, provider: Provider) -> Mapping[str, str]:
        """The client's id, and the token that was fetched last."""
        client = _credential(provider, "client_id")
        token = self._tokens.get(client)
        return {"x-api-key": client, **({"authorization": f"Bearer {token.secret.reveal()}"} if token else {})}

    def refusal(self, status: int, body: Any) -> Refusal:
        """`{"error_code", "message", "validation_errors"}`."""
        return refusal_of(status, body)

    def refusal_in(self, answer: Answer) -> Refusal:
        """A header tells a used-up quota from a key that may not do this."""
        found = super().refusal_in(answer)
        return replace(found, no_credit=True) if answer.headers.get("x-access-error") == "quota_exhausted" else found

    def draw(self, request: ImageRequest, model: ModelInfo, call: Call) -> tuple[list[Image.Image], list[Adjustment]]:
        """Jobs of as many pictures as the model makes at a time, one after the other. Where one fails, what those
        before it drew is kept, and that is said."""
        batch = MODELS[model.name].batch
        images: list[Image.Image] = []
        said: list[Adjustment] = []
        uploaded: dict[str, str] = {}
        why = "firefly drew fewer"
        for start in range(0, request.n, batch):
            seeds = [seed_of(request, index) for index in range(start, min(request.n, start + batch))]
            job = job_of(request, model.name, seeds)
            try:
                uploaded = uploaded or {name: self._upload(call, one) for name, one in job.uploads.items()}
                found, more = self._done(call, model.name, job.with_uploads(uploaded))
            except ProviderError as error:
                if not images:
                    raise
                why = str(error)
                break
            images += [self.cut_back(image, job.widened) for image in found]
            said += [*job.said, *more]
        if 0 < len(images) < request.n:
            said.append(Adjustment("n", request.n, len(images), why))
        return images, list(dict.fromkeys(said))

    def _upload(self, call: Call, image: Image.Image) -> str:
        """What Adobe calls a picture that was sent to it."""
        answer = self._post(
            call, "/v2/storage/image", content=fitting.png(image), headers={"content-type": "image/png"}
        )
        found = answer.json().get("images")
        upload = text(found[0].get("id")) if isinstance(found, list) and found and isinstance(found[0], dict) else ""
        if not upload:
            raise call.error("firefly took a picture and does not say what it calls it.")
        return upload

    def _done(self, call: Call, model: str, body: dict[str, Any]) -> tuple[list[Image.Image], list[Adjustment]]:
        """The pictures of one job; it is cancelled where nobody wants them any more, or there is no time left."""
        service = MODELS[model]
        headers = {"x-model-version": service.version} if service.version else {}
        submitted = self._post(call, service.path, json=body, headers=headers)
        job = submitted.json()
        try:
            answer = call.poll(lambda: self._look(call, string(job.get("statusUrl"))), POLL)
        except (StoppedError, ProviderTimeoutError):
            self._cancel(call, string(job.get("cancelUrl")))
            raise
        return _pictures(call, answer, text(job.get("jobId")), submitted.request_id)

    def _look(self, call: Call, url: str) -> dict[str, Any] | None:
        if not url:
            raise call.error("firefly took the job and does not say where to look for it.")
        answer: dict[str, Any] = self._authorised(call, lambda: call.get(url)).json()
        status = text(answer.get("status"))
        if status in FAILED or text(answer.get("error_code")):
            refusal = refusal_of(200, answer)
            if refusal.moderated:
                raise call.refused(refusal)
            raise call.error(f"firefly: the job {status}: {refusal.message}", refusal.code, retryable=True)
        if isinstance(progress := answer.get("progress"), int | float):
            call.told(progress)
        return answer if status == "succeeded" else None

    def _cancel(self, call: Call, url: str) -> None:
        """Says to the service that nobody wants a job; that it is over already (409, 410) does not matter."""
        if url:
            try:
                call.afterwards().put(url)
            except ImagewrightError:
                return

    def _post(self, call: Call, path: str, **sent: Any) -> Answer:
        return self._authorised(call, lambda: call.post(path, **sent))

    def _authorised(self, call: Call, ask: Callable[[], Answer]) -> Answer:
        """What `ask` gets, with a token that is still good; a refused one is renewed once."""
        token = self._token(call, None)
        try:
            return ask()
        except CredentialError as error:
            if error.status != 401:
                raise
            self._token(call, token)
            return ask()

    def _token(self, call: Call, refused: Token | None) -> Token:
        """A token that is not `refused`: the one that is kept, or a new one."""
        provider = call.provider
        client = _credential(provider, "client_id")
        with self._renewing:
            token = self._tokens.get(client)
            if token is not None and token is not refused and token.ends > time.monotonic():
                return token
            self._tokens.pop(client, None)
            url = string(provider.options.get("token_url")) or TOKEN_URL
            form = {
                "grant_type": "client_credentials",
                "client_id": client,
                "client_secret": _credential(provider, "client_secret"),
                "scope": SCOPE,
            }
            answer = call.post(url, data=form).json()
            secret, seconds = string(answer.get("access_token")), answer.get("expires_in")
            if not secret:
                raise call.error("firefly gave no token for the client id and secret.")
            lasts = float(seconds) if isinstance(seconds, int | float) else 0.0
            token = self._tokens[client] = Token(Secret(secret), time.monotonic() + lasts - EARLY)
            return token


def _capabilities(service: Service) -> Capabilities:
    draws = not service.mask
    return Capabilities(
        size=(2048, 2048),
        sides=None if draws else (64, MAX_EXPANDED, 1),
        negative_prompt=service.negative,
        image=service.mask,
        mask=service.mask,
        strength=False,
        max_prompt=service.words,
        provider_options=service.options,
        styles=CLASSES + PRESETS if draws and service.sizes else (),
        features=("style_images",) if draws and service.sizes else (),
    )


def _pictures(
    call: Call, answer: Mapping[str, Any], job: str, request_id: str | None
) -> tuple[list[Image.Image], list[Adjustment]]:
    """The pictures of a finished job, and what it says that it left out of the words."""
    found = answer.get("result")
    result: dict[str, Any] = found if isinstance(found, dict) else {}
    outputs = result.get("outputs")
    images = []
    for output in outputs if isinstance(outputs, list) else ():
        place, seed = (output.get("image"), output.get("seed")) if isinstance(output, dict) else (None, None)
        images.append(
            picture(
                call.fetch(place.get("url") if isinstance(place, dict) else None),
                call.service,
                request_id=request_id,
                job_id=job or None,
                seed=seed if isinstance(seed, int) else None,
                content_class=text(result.get("contentClass")) or None,
            )
        )
    denied = {
        "promptHasDeniedWords": "some of the words are not allowed there",
        "promptHasBlockedArtists": "it names an artist whose style is not imitated there",
    }
    said = [
        Adjustment("prompt", "all of it", "a part", why) for flag, why in denied.items() if result.get(flag) is True
    ]
    return images, said


def refusal_of(status: int, body: Any) -> Refusal:
    """What an error says."""
    if not isinstance(body, dict):
        return Refusal(f"HTTP {status}", moderated=status == 451)
    code = text(body.get("error_code")) or text(body.get("error")) or None
    message = text(body.get("message")) or text(body.get("error_description")) or code or f"HTTP {status}"
    wrong = body.get("validation_errors")
    for one in wrong if isinstance(wrong, list) else ():
        if isinstance(one, dict):
            at = "/".join(text(part) for part in one.get("loc") or ())
            message += f"; {at}: {text(one.get('msg'))}"
    return Refusal(
        message,
        code,
        moderated=status == 451 or "unsafe" in (code or ""),
        bad_key=code in ("invalid_client", "unauthorized_client"),
        ours=code == "validation_error",
    )


def _credential(provider: Provider, name: str) -> str:
    value = provider.options.get(name)
    return value.reveal() if isinstance(value, Secret) else string(value)
