"""What /v1/openapi.json says of bodies that are read by hand, of answers, and of errors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from imagewright.server.wire import Edit, JsonEdit, Variation, inlined

Json = dict[str, Any]


class Error(BaseModel):
    """What went wrong; the four keys are always there."""

    model_config = ConfigDict(extra="forbid")

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is no success."""

    model_config = ConfigDict(extra="forbid")

    error: Error


class Item(BaseModel):
    """One picture: as base64 or at a URL that works for an hour. `revised_prompt`: the words, if they were changed."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class TokenDetails(BaseModel):
    """Tokens by kind."""

    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """One token for every four characters of the prompt and every 32x32 pixels of a picture."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_tokens_details: TokenDetails
    output_tokens_details: TokenDetails | None = None


class Adjusted(BaseModel):
    """Something that was changed or could not be honoured."""

    field: str
    requested: Any
    used: Any
    reason: str


class Making(BaseModel):
    """How the pictures came about; `cost` in US dollars, if it is known."""

    job: str
    pictures: list[str]
    seeds: list[int | None]
    seconds: float
    cost: float | None


class Images(BaseModel):
    """The answer of the Images API; `model` is what really drew."""

    created: int
    data: list[Item]
    background: Literal["transparent", "opaque"]
    output_format: Literal["png", "jpeg", "webp", "svg"]
    quality: str
    size: str = Field(pattern=r"^[0-9]+x[0-9]+$")
    usage: Usage
    safety_identifier: str | None = None
    model: str
    adjustments: list[Adjusted]
    imagewright: Making


_SAID = {
    400: "Not as it must be",
    401: "No key, or a wrong one",
    403: "Not for this key",
    404: "Not there",
    408: "Too slow",
    409: "In conflict with another request",
    413: "Too large",
    415: "Of a type that is not understood",
    421: "Not a name of this server",
    422: "An Idempotency-Key with another body",
    429: "Too much for now",
    499: "Cancelled",
    500: "The server's fault",
    502: "The fault of a service behind this server",
    503: "Not now",
    504: "No answer of a service behind this server",
    507: "No room left",
}


def failures(*statuses: int) -> dict[int | str, Json]:
    """The documentation of errors; those that any route may answer with are always there."""
    every = sorted({400, 401, 403, 408, 413, 421, 429, 500, 503, *statuses})
    return {status: {"model": ErrorBody, "description": _SAID[status]} for status in every}


IMAGES: dict[int | str, Json] = {
    200: {"model": Images, "description": "Pictures, or with `stream` events", "content": {"text/event-stream": {}}},
    202: {"description": "A job, with `background` true or Prefer: respond-async"},
    **failures(404, 409, 415, 499, 502, 504, 507),
}


def _form(kind: type[BaseModel], parts: Json) -> Json:
    schema = _without_null(inlined(kind))
    schema["properties"] = {**parts, **schema["properties"]}
    schema["required"] = [name for name in parts if name == "image"] + schema.get("required", [])
    return {"schema": schema}


def _without_null(part: Any) -> Any:
    """A schema for forms, which know no null."""
    if isinstance(part, list):
        return [_without_null(one) for one in part if one != {"type": "null"}]
    if not isinstance(part, dict):
        return part
    return {name: _without_null(one) for name, one in part.items() if (name, one) != ("default", None)}


_FILE: Json = {"type": "string", "format": "binary"}
_FILES: Json = {"type": "array", "items": _FILE, "maxItems": 16}
_EDIT_PARTS: Json = {
    "image": {**_FILES, "minItems": 1, "description": "PNG, JPEG or WebP; also as image[]"},
    "mask": {**_FILE, "description": "With an alpha channel: fully transparent where the picture may change"},
    "style_images": _FILES,
    "subject_images": _FILES,
}
EDIT_BODY: Json = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": _form(Edit, _EDIT_PARTS),
            "application/json": {"schema": inlined(JsonEdit)},
        },
    }
}
VARIATION_BODY: Json = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": _form(Variation, {"image": {**_FILE, "description": "PNG, JPEG or WebP"}})},
    }
}
