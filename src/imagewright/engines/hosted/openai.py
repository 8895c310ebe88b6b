"""OpenAI's Images API (`/images/generations`, `/images/edits`), and what others have of its form.

Which fields a model knows goes by its family, from its id; an id that is not known is passed on with what the newest
models can do. DALL-E ids are retired at OpenAI and alive in services of its form. A gif, an svg and the `markup` of
edits are not asked for: what is drawn here are pixels. A transparent background is asked for where the model has one;
elsewhere it is cut out afterwards.

One POST is sent again after 408, 429, 500, 502 and 503, as OpenAI's own client does; not after 504 or a lost answer,
where the picture may have been drawn and charged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from imagewright.config import Provider, Secret
from imagewright.engines.engine import ModelInfo
from imagewright.engines.hosted.answers import Answer, from_base64, openai_refusal, text
from imagewright.engines.hosted.base import HostedEngine, hosted_model
from imagewright.engines.hosted.families import DRAW_ONLY, EDIT_ONLY, NEWEST, PLAIN, Family, family_of
from imagewright.errors import ImagewrightError, ProviderError
from imagewright.pictures import decode, encode
from imagewright.request import Adjustment, ImageRequest

if TYPE_CHECKING:
    from imagewright.engines.hosted.call import Call

MAX_PARTIAL = 3  # pictures on the way


class OpenAIForm(HostedEngine):
    """A service that speaks OpenAI's form. Subclasses name their models (`known`) and the family of all others."""

    may_repeat = frozenset({408, 429, 500, 502, 503})
    known: ClassVar[Mapping[str, str]] = {}
    others: ClassVar[Family] = PLAIN

    def headers(self, provider: Provider) -> Mapping[str, str]:
        """The key as a bearer, if there is one."""
        return {"authorization": f"Bearer {provider.key.reveal()}"} if provider.key else {}

    def family(self, name: str) -> Family:
        """The family of a model's id."""
        return family_of(name, self.others)

    def model(self, name: str, summary: str = "not known here; passed on by its name") -> ModelInfo:
        """The model called `name`."""
        return hosted_model(self.name, name, summary, self.family(name).can)

    def listed(self) -> Sequence[ModelInfo]:
        return [self.model(name, summary) for name, summary in self.known.items()]

    def unlisted(self, name: str) -> ModelInfo | None:
        return self.model(name)

    def wire_name(self, model: ModelInfo) -> str:
        """What the service calls a model."""
        return model.name

    def draw(self, request: ImageRequest, model: ModelInfo, call: Call) -> tuple[list[Image.Image], list[Adjustment]]:
        family, name = self.family(model.name), self.wire_name(model)
        fields, said = fields_of(request, name, family)

        def asked(part: ImageRequest) -> list[Image.Image]:
            answer, final = self._ask(part, {**fields, "n": part.n}, call, family)
            return pictures_of(final, answer, call)

        if not family.each:
            images = asked(request)
            if len(images) < request.n:
                said.append(Adjustment("n", request.n, len(images), f"{call.service} drew fewer"))
            return images[: request.n], said
        made, more = self.each(request, asked)
        return [image for images in made for image in images], [*said, *more]

    def _ask(
        self, request: ImageRequest, fields: dict[str, Any], call: Call, family: Family
    ) -> tuple[Answer, Mapping[str, Any]]:
        """The answer, and its body, which of a stream is what its last event says."""
        watch = call.watch
        if watch.preview is None or watch.previews == 0 or request.n > 1 or family.form != "gpt":
            answer = self._post(request, fields, call)
            return answer, answer.json()
        fields = {**fields, "stream": True, "partial_images": min(MAX_PARTIAL, watch.previews)}
        final: dict[str, Any] = {}

        def happened(event: dict[str, Any]) -> None:
            if event.get("error"):
                raise call.refused(openai_refusal(400, event), 400)
            kind = text(event.get("type"))
            if kind.endswith(".completed"):
                final.update(event)
            elif kind.endswith(".partial_image"):
                _preview(event, call)

        answer = self._post(request, fields, call, happened)
        if answer.body:  # a service that does not stream
            return answer, answer.json()
        if not final:
            raise call.error(f"The stream of {call.service} ended without a picture.", retryable=True)
        return answer, {**final, "data": [final]}

    def _post(self, request: ImageRequest, fields: dict[str, Any], call: Call, on_event: Any = None) -> Answer:
        if request.image is None and not request.images:
            return call.post("images/generations", json=fields, on_event=on_event)
        form = {name: _form_text(value) for name, value in fields.items()}
        return call.post("images/edits", data=form, files=list(files_of(request)), on_event=on_event)


def fields_of(request: ImageRequest, name: str, family: Family) -> tuple[dict[str, Any], list[Adjustment]]:
    """The fields of an adapted request but for `n`, and what of it has no field."""
    editing = request.image is not None or bool(request.images)
    out_of_place = [one for one in request.provider_options if one in (DRAW_ONLY if editing else EDIT_ONLY)]
    options = {one: value for one, value in request.provider_options.items() if one not in out_of_place}
    fields: dict[str, Any] = {**options, "model": name, "prompt": request.prompt}
    if request.size is not None:
        fields["size"] = f"{request.size[0]}x{request.size[1]}"
    if request.quality != "auto":
        fields["quality"] = request.quality
    if request.style is not None:
        fields["style"] = request.style
    if family.form == "gpt":
        fields |= _output(request, family)
    else:
        fields["response_format"] = "b64_json"
    where = "a new picture" if not editing else "an edit"
    return fields, [
        Adjustment(f"provider_options.{one}", request.provider_options[one], None, f"{where} has no such option")
        for one in out_of_place
    ]


def _output(request: ImageRequest, family: Family) -> dict[str, Any]:
    """The background and the file's format. An edit comes without losses, because it is set back into its picture."""
    clear = family.can.transparent and request.background not in ("auto", "opaque")  # laid on its colour afterwards
    lossless = (
        request.image is not None or request.output_format == "svg" or (clear and request.output_format == "jpeg")
    )
    output_format = "png" if lossless else request.output_format
    fields: dict[str, Any] = {"output_format": output_format}
    if clear or request.background == "opaque":
        fields["background"] = "transparent" if clear else "opaque"
    if output_format != "png" and request.output_compression < 100:
        fields["output_compression"] = request.output_compression
    return fields


def files_of(request: ImageRequest) -> Iterator[tuple[str, tuple[str, bytes, str]]]:
    """The parts of an edit's form: `image` or several `image[]`, and `mask` (transparent: paint here)."""
    pictures = [*(() if request.image is None else (request.image,)), *request.images]
    field = "image" if len(pictures) == 1 else "image[]"
    for index, picture in enumerate(pictures):
        yield field, (f"image-{index}.png", encode(picture, "png"), "image/png")
    if request.mask is not None:
        yield "mask", ("mask.png", encode(request.mask, "png"), "image/png")


def _form_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def pictures_of(body: Mapping[str, Any], answer: Answer, call: Call) -> list[Image.Image]:
    """The pictures of an answer. What it cost stands with the first, so that a sum over all is right."""
    data = body.get("data")
    if body.get("error"):
        raise call.refused(call.engine.refusal(answer.status, body), answer.status)
    if not isinstance(data, list):
        raise ProviderError(
            f"{call.service} answered without pictures.", "Ask again.", provider=call.service, status=answer.status
        )
    found = []
    for index, one in enumerate(item for item in data if isinstance(item, dict)):
        encoded = one.get("b64_json")
        told = {} if index else {"usage": body.get("usage"), **_cost(body)}
        found.append(
            answer.picture(
                from_base64(encoded, call.service) if encoded else call.fetch(one.get("url")),
                revised_prompt=text(one.get("revised_prompt")) or None,
                **told,
            )
        )
    return found


def _cost(body: Mapping[str, Any]) -> dict[str, float]:
    """What the service says that it charged, in US dollars."""
    usage = body.get("usage")
    cost = usage.get("cost") if isinstance(usage, dict) else None
    return {"cost": float(cost)} if isinstance(cost, int | float) and not isinstance(cost, bool) else {}


def _preview(event: Mapping[str, Any], call: Call) -> None:
    """Shows a picture on the way; one that cannot be read is no reason to lose the finished one."""
    index = event.get("partial_image_index")
    if call.watch.preview is None or not isinstance(index, int):
        return
    try:
        image = Answer(call.service, 200, {}).picture(from_base64(event.get("b64_json"), call.service))
        decode(image)
    except ImagewrightError:
        return
    call.watch.preview(index, image)


class OpenAIEngine(OpenAIForm):
    """OpenAI."""

    name = "openai"
    base_url = "https://api.openai.com/v1"
    others = NEWEST
    known: ClassVar[Mapping[str, str]] = {
        "gpt-image-2": "OpenAI, 2026-04: any size up to 3840x2160",
        "gpt-image-2.6-sunburst": "OpenAI, 2026-11: the best of theirs",
        "gpt-image-2.6-flare": "OpenAI, 2026-11: quicker",
        "gpt-image-2.5-sunburst": "OpenAI, 2026-09",
        "gpt-image-2.5-flare": "OpenAI, 2026-09: quicker",
        "gpt-image-1.5": "OpenAI; ends 2026-12-01",
        "gpt-image-1-mini": "OpenAI; ends 2026-12-01",
        "chatgpt-image-latest": "OpenAI; ends 2026-12-01",
    }

    def headers(self, provider: Provider) -> Mapping[str, str]:
        """The key, and the organisation and project that the configuration names."""
        names = {"organization": "openai-organization", "project": "openai-project"}
        told = {header: provider.options[option] for option, header in names.items() if option in provider.options}
        texts = {header: one.reveal() if isinstance(one, Secret) else str(one) for header, one in told.items()}
        return {**super().headers(provider), **texts}
