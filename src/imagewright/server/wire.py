"""The bodies of the Images API, and the ImageRequest that each stands for.

Source: OpenAI's API (fields, limits, defaults). Beyond it, the fields of `Wishes` are understood, which are
ImageRequest's own, at the top of a body or inside an object named `imagewright`. None of them can name a file of this
machine: LoRAs and textual inversions go by names that the operator gave them (Settings.adapters, .embeddings). Looser
than OpenAI: `n` up to 64, any size up to 4096 pixels a side, `background` may be a colour, and `true` there means: work
in the background.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from imagewright import prompt as language
from imagewright.errors import PromptError
from imagewright.request import FAMILIES, MAX_PICTURES, MAX_PROMPT, RANGES, Adapter, Adjustment, ImageRequest
from imagewright.server.errors import ApiError

MAX_URL = 20_971_520  # characters of an image's URL, as OpenAI's
_SIZE = r"^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$"
_BACKGROUND = r"^(auto|transparent|opaque|white|black|#[0-9a-fA-F]{6})$"
_ASPECT = r"^[1-9][0-9]{0,3}:[1-9][0-9]{0,3}$"
SAID = {  # what fits a pattern, in words
    _SIZE: "use auto, or WIDTHxHEIGHT in pixels, up to 4096 a side",
    _BACKGROUND: "use auto, transparent, opaque, white, black or a colour such as #ffcc00, or a bool",
    _ASPECT: "use WIDTH:HEIGHT, such as 3:2",
}
_OF_DALLE = ("vivid", "natural")  # styles that no other model has

Body = TypeVar("Body", bound=BaseModel)
ResponseFormat = Literal["url", "b64_json"]


def _ranged(name: str) -> Any:
    return Field(default=None, ge=RANGES[name][1], le=RANGES[name][2])


def _truth(value: Any) -> Any:
    """The words of a form that mean a bool."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


class Named(BaseModel):
    """A LoRA that the operator has named, and its weight."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    weight: float = Field(default=1.0, ge=-10, le=10)


class Wishes(BaseModel):
    """What this server understands beyond OpenAI's fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: int | None = _ranged("seed")
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT)
    num_inference_steps: int | None = _ranged("num_inference_steps")
    guidance_scale: float | None = _ranged("guidance_scale")
    sampler: str | None = None
    style: str | None = Field(default=None, description="One of the model's styles; vivid and natural are DALL-E's.")
    technique: Literal[FAMILIES] | None = None  # type: ignore[valid-type]
    temperature: float | None = _ranged("temperature")
    top_k: int | None = _ranged("top_k")
    top_p: float | None = _ranged("top_p")
    truncation: float | None = _ranged("truncation")
    best_of: int | None = _ranged("best_of")
    min_match: float | None = _ranged("min_match")
    min_realism: float | None = _ranged("min_realism")
    max_tries: int | None = _ranged("max_tries")
    tile: bool | None = None
    variety: float | None = _ranged("variety")
    weird: float | None = _ranged("weird")
    stop: float | None = _ranged("stop")
    stylize: float | None = _ranged("stylize")
    aspect: str | None = Field(default=None, pattern=_ASPECT)
    strength: float | None = _ranged("strength")
    feather: int | None = _ranged("feather")
    style_weight: float | None = _ranged("style_weight")
    subject_weight: float | None = _ranged("subject_weight")
    adapters: list[Named] | None = Field(default=None, max_length=MAX_PICTURES)
    embeddings: list[str] | None = Field(default=None, max_length=MAX_PICTURES, description="By the operator's names.")
    prompt_language: bool | None = Field(default=None, description="Read the prompt as the prompt language.")


class Output(Wishes):
    """What all three calls have in common."""

    model: str | None = None
    n: int | None = _ranged("n")
    size: str | None = Field(default=None, pattern=_SIZE)
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    background: Annotated[
        bool | Annotated[str, Field(pattern=_BACKGROUND)] | None,
        BeforeValidator(_truth),
        Field(description="The picture's background; or true: answer at once with a job, and work on."),
    ] = None
    moderation: Literal["auto", "low"] | None = None
    output_format: Literal["png", "jpeg", "webp", "svg", "gif"] | None = None
    output_compression: int | None = _ranged("output_compression")
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3)
    complexity: Literal["low", "medium", "high"] | None = None
    frame_count: int | None = Field(default=None, ge=2, le=16)
    frame_duration_ms: int | None = Field(default=None, ge=10, le=655_350)
    svg: dict[str, Any] | None = Field(default=None, description="Which of OpenAI's models draws an SVG.")
    user: str | None = None
    safety_identifier: str | None = None
    imagewright: Wishes | None = None

    @property
    def gives_url(self) -> bool:
        """Whether the client expects a URL: DALL-E's did unless told; those of all later models expect base64."""
        if self.output_format == "svg":  # no URL of ours shows anything but pixels
            return False
        if self.response_format is not None:
            return self.response_format == "url"
        return self.model is None or self.model.startswith("dall-e-")

    def check(self) -> None:
        """What OpenAI's fields forbid together. Raises ApiError."""
        animated = {"output_format": self.output_format == "gif", "frame_count": self.frame_count is not None}
        animated["frame_duration_ms"] = self.frame_duration_ms is not None
        for name in (name for name, asked in animated.items() if asked):
            raise _refused(name, "Animated pictures cannot be made here.", "Use png, jpeg, webp or svg.")
        if self.svg is not None and self.output_format != "svg":
            raise _refused("svg", "Only an SVG has these.", "Set output_format to svg.")
        if self.output_format == "svg" and self.stream:
            raise _refused("stream", "An SVG has no previews.", "Ask for it without stream.")
        if self.output_format == "svg" and self.response_format == "url":
            raise _refused("response_format", "An SVG has no URL here.", "Use b64_json.")
        if self.partial_images and not self.stream:
            raise _refused("partial_images", "Previews are sent with stream only.", "Set stream to true.")
        if self.stream and self.background is True:
            raise _refused("stream", "Work in the background has no stream here.", "Follow the job's events instead.")

    def fields(self) -> tuple[dict[str, Any], list[Adjustment]]:
        """The fields of the ImageRequest, without the prompt, and what could not be kept. Raises ApiError."""
        found, said = self._wishes(), list[Adjustment]()
        for name in ("prompt_language", "adapters", "embeddings"):  # which are not the request's own
            found.pop(name, None)
        for name in ("n", "quality", "output_format", "output_compression"):
            if (value := getattr(self, name)) is not None:
                found[name] = value
        if isinstance(self.background, str):
            found["background"] = self.background
        if self.size not in (None, "auto"):
            found["size"] = pair(self.size, "x")
        if "aspect" in found:
            found["aspect"] = pair(found["aspect"], ":")
        if found.get("style") in _OF_DALLE:
            said.append(Adjustment("style", found.pop("style"), None, "a style of DALL-E's"))
        if options := self.provider_options():
            found["provider_options"] = options
        return found, said

    def provider_options(self) -> dict[str, Any]:
        """What only hosted models can use. Who the end user is goes no further than as a hash."""
        wishes = {"moderation": self.moderation, "complexity": self.complexity, "svg": self.svg}
        return {name: value for name, value in wishes.items() if value not in (None, "auto")}

    @property
    def end_user(self) -> str | None:
        """A hash of the end user that the client names."""
        named = self.safety_identifier or self.user
        return hashlib.sha256(named.encode("utf-8", "replace")).hexdigest()[:32] if named else None

    def addons(self, adapters: Mapping[str, str], embeddings: Mapping[str, str]) -> dict[str, Any]:
        """The LoRAs and textual inversions that the operator's names stand for. Raises ApiError."""
        wishes = self._wishes()
        chosen = [
            Adapter(_of_operator(adapters, one["name"], "adapters"), one["weight"])
            for one in wishes.get("adapters", ())
        ]
        files = [_of_operator(embeddings, name, "embeddings") for name in wishes.get("embeddings", ())]
        return {"adapters": tuple(chosen), "embeddings": tuple(files)}

    @property
    def reads_language(self) -> bool:
        """Whether the prompt is in the prompt language."""
        return bool(self._wishes().get("prompt_language"))

    def _wishes(self) -> dict[str, Any]:
        here = self.model_dump(include=set(Wishes.model_fields), exclude_none=True)
        inside = self.imagewright.model_dump(exclude_none=True) if self.imagewright else {}
        for name in here.keys() & inside.keys():
            if here[name] != inside[name]:
                raise _refused(f"imagewright.{name}", f"{name} is given twice, with two values.", "Give it once.")
        return here | inside


Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]


class Generation(Output):
    """The body of /v1/images/generations."""

    prompt: Prompt


class Picture(BaseModel):
    """A picture that a JSON body names: by URL (a data URL, or one of this server's) or by the id of a file."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"oneOf": [{"required": ["image_url"]}, {"required": ["file_id"]}]},
    )

    image_url: str | None = Field(default=None, max_length=MAX_URL)
    file_id: str | None = None


class Edit(Output):
    """What /v1/images/edits takes, beside the pictures."""

    prompt: Prompt
    input_fidelity: Literal["high", "low"] | None = None
    instruction: bool | None = Field(default=None, description="Whether the prompt says what to change.")

    def provider_options(self) -> dict[str, Any]:
        """As of all, and how true to the picture to stay."""
        told = {} if self.input_fidelity is None else {"input_fidelity": self.input_fidelity}
        return super().provider_options() | told


class JsonEdit(Edit):
    """The JSON body of /v1/images/edits."""

    images: list[Picture] = Field(min_length=1, max_length=16)
    mask: Picture | None = None
    style_images: list[Picture] = Field(default=[], max_length=16)
    subject_images: list[Picture] = Field(default=[], max_length=16)


class Variation(Output):
    """What /v1/images/variations takes, beside the picture."""

    prompt: Prompt | None = None


def read(kind: type[Body], values: Mapping[str, Any], *, form: bool = False) -> Body:
    """A body. In a form, numbers are text. Raises RequestValidationError, which the application answers."""
    try:
        return kind.model_validate(values, strict=not form)
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from None


def order(body: Output, words: str, **fields: Any) -> ImageRequest:
    """The request that a body stands for; `fields` are those that its pictures fill. Raises ApiError, RequestError."""
    body.check()
    found, said = body.fields()
    found |= fields
    said += found.pop("adjustments", [])
    if not body.reads_language:
        return ImageRequest(prompt=words, **found, adjustments=tuple(said))
    parsed = language.parse(words, seed=found.get("seed"), n=found.get("n", 1))
    if len(parsed) > 1:
        raise PromptError(f"The prompt stands for {len(parsed)} requests.", "Send them one by one.")
    read = parsed[0].request(None, **found)
    return replace(read, adjustments=(*said, *read.adjustments))


def pair(text: str, between: str) -> tuple[int, int]:
    """(width, height) of a size or an aspect, already found to be one."""
    width, height = text.split(between)
    return int(width), int(height)


def inlined(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a body without references, for bodies that FastAPI does not read itself."""
    schema = kind.model_json_schema()
    definitions = schema.pop("$defs", {})

    def put(part: Any) -> Any:
        if isinstance(part, list):
            return [put(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return put(definitions[part["$ref"].rpartition("/")[2]])
        return {name: put(one) for name, one in part.items()}

    found: dict[str, Any] = put(schema)
    return found


def _of_operator(names: Mapping[str, str], name: str, param: str) -> str:
    if name not in names:
        raise _refused(param, f"There is no {name[:80]!r} here.", f"There are: {', '.join(names) or 'none'}.")
    return names[name]


def _refused(param: str, message: str, fix: str) -> ApiError:
    return ApiError(400, message, fix, param=param, code="invalid_value")
