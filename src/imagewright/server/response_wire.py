"""The body of /v1/responses, as far as it is about pictures, and what its input items say.

Source: OpenAI's Responses API. Fields for language models (temperature, reasoning, text, ...) are accepted and have
nothing to act on; a tool other than `image_generation` is never called. Both are said in the response's `imagewright`
object, not dropped in silence.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import Request
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from imagewright.conversation.state import Shown, new_id
from imagewright.request import MAX_PICTURES, MAX_PROMPT, RANGES
from imagewright.server import brought, errors, jobs, turns
from imagewright.server.errors import ApiError
from imagewright.server.files import content_of
from imagewright.server.security import Caller
from imagewright.store import NotFoundError, Store

MAX_ITEMS = 500
SIZE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")
Json = dict[str, Any]
_FORGETFUL = {  # fields that act on language models alone
    *("temperature", "top_p", "max_output_tokens", "max_tool_calls", "reasoning", "text", "truncation", "include"),
    *("parallel_tool_calls", "service_tier", "prompt", "prompt_cache_key", "top_logprobs", "stream_options"),
    *("verbosity", "prompt_cache_retention", "moderation", "context_management"),
}


class Tool(BaseModel):
    """The image_generation tool, with OpenAI's fields."""

    model_config = ConfigDict(extra="allow")

    type: Literal["image_generation"]
    model: str | None = None
    action: Literal["generate", "edit", "auto"] | None = None
    size: str | None = Field(default=None, pattern=r"^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$")
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    background: Literal["auto", "transparent", "opaque"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(
        default=None, ge=RANGES["output_compression"][1], le=RANGES["output_compression"][2]
    )
    partial_images: int | None = Field(default=None, ge=0, le=3)
    input_image_mask: Json | None = None
    moderation: Literal["auto", "low"] | None = None
    input_fidelity: Literal["high", "low"] | None = None

    def fields(self) -> Json:
        """Those of a request that the tool sets for all that is made."""
        found = {name: getattr(self, name) for name in ("background", "output_format", "output_compression")}
        found["quality"] = {"standard": "medium", "hd": "high", "xhigh": "high", "max": "high"}.get(
            self.quality or "", self.quality
        )
        size = SIZE.fullmatch(self.size or "")
        found["size"] = (int(size[1]), int(size[2])) if size else None
        return {name: value for name, value in found.items() if value not in (None, "auto")}


class Body(BaseModel):
    """The body of POST /v1/responses."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    input: Annotated[str, Field(max_length=MAX_PROMPT)] | list[Json]
    tools: list[Json] = Field(default=[], max_length=128)
    tool_choice: Literal["auto", "required", "none"] | Json | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    instructions: str | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None

    def said(self) -> Iterator[str]:
        """What of the body nothing acts on."""
        if self.instructions:
            yield "instructions: the planner has rules of its own"
        for name in sorted(self.model_extra or {}):
            if (self.model_extra or {})[name] is not None:
                why = "for language models" if name in _FORGETFUL else "not known here"
                yield f"{name[:80]}: {why}"
        for tool in self.tools:
            if tool.get("type") != "image_generation":
                yield f"the tool {str(tool.get('type'))[:80]}: only image_generation is called here"


@dataclass
class Said:
    """What the input items say: the `words` to act on, those said `earlier`, pictures that came along, and pictures
    of earlier calls by the id and digest of their file. `items` are the input as it is given back."""

    words: str = ""
    earlier: list[str] = field(default_factory=list)
    given: list[tuple[Shown, Image.Image]] = field(default_factory=list)
    recalled: list[tuple[Shown, str, str | None]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)  # ids of both, as they came
    items: list[Json] = field(default_factory=list)


async def heard(http: Request, caller: Caller, given: str | Sequence[Json]) -> Said:
    """Reads the input. Raises ApiError."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not given:
        raise errors.missing("input", "input")
    if len(given) > MAX_ITEMS:
        raise _refused("input", f"{len(given)} items; at most {MAX_ITEMS}.")
    said = Said()
    for index, item in enumerate(given):
        await _hear(http, caller, said, item, f"input[{index}]")
    if len(said.words) > MAX_PROMPT:
        raise _refused("input", f"The text has {len(said.words):,} characters; at most {MAX_PROMPT:,} are allowed.")
    return said


async def _hear(http: Request, caller: Caller, said: Said, item: Json, where: str) -> None:
    kind = item.get("type", "message")
    if kind in ("image_generation_call", "item_reference"):
        await _recall(http, caller, said, item, where)
    elif kind == "message":
        content = item.get("content")
        parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise _refused(f"{where}.content", "It is neither text nor a list of parts.")
        texts = [await _part(http, caller, said, part, f"{where}.content[{i}]") for i, part in enumerate(parts)]
        if item.get("role") == "user":
            said.earlier += [said.words] if said.words else []
            said.words = "\n".join(text for text in texts if text)
        elif item.get("role") not in ("assistant", "system", "developer"):
            raise _refused(f"{where}.role", "It is none of user, assistant, system and developer.")
        shown = [_without_picture(part) for part in parts]
        said.items.append({"id": new_id("msg_"), "type": "message", "role": item.get("role"), "content": shown})
    elif kind not in ("reasoning", "function_call", "function_call_output", "web_search_call", "file_search_call"):
        raise _refused(f"{where}.type", f"There are no items of type {str(kind)[:80]!r} here.")


async def _part(http: Request, caller: Caller, said: Said, part: Json, where: str) -> str:
    """The text of a part; a picture is noted."""
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text", "refusal"):
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            raise errors.missing(f"{where}.text", f"{where}.text")
        return text
    if kind not in ("input_image", "image_url"):
        raise _refused(f"{where}.type", f"There are no parts of type {str(kind)[:80]!r} here.")
    file = await picture_of(http, caller, part, where)
    await _bring(http, said, file, where)
    return ""


async def picture_of(http: Request, caller: Caller, part: Json, where: str) -> bytes:
    """The bytes of a picture that is named by a URL or by the id of a file. Raises ApiError."""
    url, file_id = part.get("image_url"), part.get("file_id")
    url = url.get("url") if isinstance(url, dict) else url
    if (url is None) == (file_id is None) or not isinstance(url or file_id, str):
        raise _refused(where, "A picture needs one of image_url and file_id.")
    if file_id is not None:
        return await run_in_threadpool(content_of, http, file_id, caller, where)
    return await brought.of_url(http, str(url), where)


async def _bring(http: Request, said: Said, file: bytes, where: str) -> None:
    if len(said.given) >= MAX_PICTURES:
        raise _refused(where, f"At most {MAX_PICTURES} pictures.")
    (upload,) = await brought.decoded(http, [file], where)
    told = upload.image.copy()
    told.info["imagewright"] = dict(upload.record or {})
    said.given.append((Shown.given(new_id(), told), upload.image))
    said.order.append(said.given[-1][0].id)


async def _recall(http: Request, caller: Caller, said: Said, item: Json, where: str) -> None:
    """A picture of an earlier call, by its id; by its bytes, where it is not kept here and they come along."""
    id_, result = item.get("id"), item.get("result")
    if not isinstance(id_, str):
        raise errors.missing(f"{where}.id", f"{where}.id")
    if item.get("type") == "item_reference" and not id_.startswith("ig_"):
        return
    found = await run_in_threadpool(_kept, http, caller, id_)
    if found is not None:
        said.recalled.append(found)
        said.order.append(id_)
    elif isinstance(result, str) and result:
        await _bring(http, said, _bytes(result, where), where)
    elif item.get("status") not in ("failed", "incomplete"):
        raise ApiError(404, f"There is no picture {id_[:80]!r}.", param=where, code="not_found")
    said.items.append({"id": id_, "type": "image_generation_call", "status": "completed", "result": None})


def _kept(http: Request, caller: Caller, id_: str) -> tuple[Shown, str, str | None] | None:
    """A picture of the caller's in the store: what its conversation knows of it, and its digests."""
    store: Store = http.app.state.store
    try:
        row = store.get(id_, caller.key_id)
    except NotFoundError:
        return None
    shown, lossless = Shown(id_, size=(row.width, row.height)), None
    with http.app.state.database.read() as connection:
        job = jobs.get(connection, row.job, caller.key_id) if row.job else None
    if job is not None and job.kind == turns.KIND and job.state == jobs.DONE:
        state = turns.after(job)
        shown = state.opened(store).picture(id_)
        lossless = state.lossless.get(id_)
    elif row.prompt:
        shown = Shown.given(id_, turns.opened(store.load(row.digest)))
    return shown, row.digest, lossless


def _bytes(text: str, where: str) -> bytes:
    """The bytes of base64. Raises ApiError."""
    try:
        return binascii.a2b_base64(text.partition(",")[2] if text.startswith("data:") else text, strict_mode=True)
    except binascii.Error as error:
        raise _refused(f"{where}.result", "It is no base64.") from error


def _without_picture(part: Json) -> Json:
    """A part as it is given back: a picture's bytes are not repeated."""
    if part.get("type") not in ("input_image", "image_url"):
        return {"type": str(part.get("type")), "text": str(part.get("text", part.get("refusal", "")))}
    url = part.get("image_url")
    url = url if isinstance(url, str) and not url.startswith("data:") else None
    return {"type": "input_image", "image_url": url, "file_id": part.get("file_id"), "detail": "auto"}


def _refused(param: str, message: str) -> ApiError:
    return ApiError(400, f"{param}: {message}", param=param, code="invalid_value")
