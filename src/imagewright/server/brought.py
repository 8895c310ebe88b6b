"""The pictures that clients bring along: in forms as every client sends them, by data URL, by id, by a URL of ours.

What a picture is, is told by its bytes (`uploads`), never by the name or type of its part. Clients name the parts
`image`, `image[]` or `image[0]`, with any file name and often as application/octet-stream; all of that is the same.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import orjson
from fastapi import Request
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from imagewright.editing import masks
from imagewright.errors import PictureError
from imagewright.request import MAX_PICTURES, Adjustment
from imagewright.server import errors, idempotency, wire
from imagewright.server.errors import ApiError
from imagewright.server.fetch import Fetcher, FetchError
from imagewright.server.files import content_of
from imagewright.server.idempotency import Once
from imagewright.server.security import Caller
from imagewright.server.uploads import Upload
from imagewright.server.wire import Edit, JsonEdit, Output, Picture, Variation
from imagewright.store import Store

ALSO = ("style_images", "subject_images")
_PARTS = ("image", "mask", *ALSO)  # of a form, that hold pictures
_INDEX = re.compile(r"\[\d{0,2}\]\Z")
_INSIDE = re.compile(r"imagewright\[(\w+)\]\Z")

B = TypeVar("B", bound=Output)
Files = Mapping[str, Sequence[bytes]]


@dataclass(frozen=True)
class Brought(Generic[B]):
    """A body and its decoded pictures. `record` is what the first says of itself: a stranger's words."""

    body: B
    image: Image.Image
    others: tuple[Image.Image, ...] = ()
    mask: Image.Image | None = None
    style_images: tuple[Image.Image, ...] = ()
    subject_images: tuple[Image.Image, ...] = ()
    adjustments: tuple[Adjustment, ...] = ()
    once: Once | None = None
    record: Mapping[str, Any] | None = None


async def edit(http: Request, caller: Caller) -> Brought[Edit]:
    """The body of an edit, as a form or as JSON. Raises ApiError, RequestValidationError."""
    if _media_type(http) == "application/json":
        return await json_edit(http, caller, wire.read(JsonEdit, await _json(http)))
    return await _of_form(http, Edit)


async def json_edit(http: Request, caller: Caller, body: JsonEdit) -> Brought[Edit]:
    """A JSON body with the pictures that it names. Raises ApiError."""
    named = {"image": body.images, "mask": [body.mask] if body.mask else [], **{n: getattr(body, n) for n in ALSO}}
    files: Files = {
        name: [await _fetched(http, caller, one, "images" if name == "image" else name) for one in several]
        for name, several in named.items()
    }
    return await _decoded(http, body, files)


async def variation(http: Request, caller: Caller) -> Brought[Variation]:
    """The body of a variation, a form. Raises ApiError, RequestValidationError."""
    return await _of_form(http, Variation)


async def _of_form(http: Request, kind: type[B]) -> Brought[B]:
    try:
        values, files = await _form(http)
        return await _decoded(http, wire.read(kind, values, form=True), files)
    finally:
        await http.close()  # the files of the form


def _media_type(http: Request) -> str:
    return http.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _json(http: Request) -> dict[str, Any]:
    return _parsed(await http.body(), "the body")


def _parsed(text: bytes, what: str) -> dict[str, Any]:
    """The values of a JSON object. Raises ApiError."""
    try:
        values = orjson.loads(text)
    except ValueError as error:
        raise ApiError(400, f"JSON is needed for {what}: {error}.", code="invalid_json") from error
    if not isinstance(values, dict):
        raise ApiError(400, f"A JSON object is needed for {what}.", code="invalid_json")
    return values


async def _form(http: Request) -> tuple[dict[str, Any], Files]:
    """The texts and the files of a form."""
    if _media_type(http) != "multipart/form-data":
        raise errors.unsupported_media_type(http.headers.get("content-type", ""), "multipart/form-data")
    values: dict[str, Any] = {}
    files: dict[str, list[bytes]] = defaultdict(list)
    form = await http.form(max_files=4 * MAX_PICTURES, max_fields=100)
    for key, value in form.multi_items():
        name = _INDEX.sub("", key)
        if (name in _PARTS) != isinstance(value, UploadFile):
            if name not in _PARTS:
                raise ApiError(400, f"Unknown parameter: {key[:80]}.", param=key[:80], code="unknown_parameter")
            raise ApiError(400, f"{name} is no file.", "Send its bytes as a part with a filename.", param=name)
        if isinstance(value, UploadFile):
            files[name].append(await value.read())
        elif inside := _INSIDE.match(key):
            values.setdefault("imagewright", {})[inside[1]] = value
        elif name == "imagewright":
            values[name] = _parsed(value.encode(), name)
        else:
            values[name] = value
    return values, files


async def _fetched(http: Request, caller: Caller, named: Picture, param: str) -> bytes:
    """The bytes of a picture that a JSON body names."""
    if (named.image_url is None) == (named.file_id is None):
        raise ApiError(400, f"{param} needs one of image_url and file_id.", param=param, code="invalid_value")
    if named.file_id is not None:
        return await run_in_threadpool(content_of, http, named.file_id, caller, param)
    assert named.image_url is not None
    return await of_url(http, named.image_url, param)


async def of_url(http: Request, url: str, param: str) -> bytes:
    """The bytes of the picture at a URL (see fetch.py). Raises ApiError."""
    fetcher: Fetcher = http.app.state.fetcher
    try:
        return await fetcher.fetch(url, partial(_own, http))
    except FetchError as error:
        raise ApiError(400, error.message, error.fix, param=param, code="invalid_image_url") from error


def _own(http: Request, url: str) -> bytes | None:
    """The bytes of a picture of this server's, which its URL gives to everybody."""
    picture = http.app.state.links.of_url(url, http.headers["host"])
    if picture is None:
        return None
    store: Store = http.app.state.store
    return store.load(store.get(picture, None).digest)


async def _decoded(http: Request, body: B, files: Files) -> Brought[B]:
    """The pictures of a body, decoded by others."""
    for name, several in files.items():
        if len(several) > (most := 1 if name == "mask" else MAX_PICTURES):
            raise ApiError(400, f"{len(several)} files for {name}; at most {most}.", param=name, code="invalid_value")
    if not files.get("image"):
        raise errors.missing("image", "image")
    first, *others = await decoded(http, files["image"], "image")
    also = {name: tuple(one.image for one in await decoded(http, files.get(name, ()), name)) for name in ALSO}
    said = [told for one in (first, *others) for told in one.adjustments]
    mask = None
    if files.get("mask"):
        (given,) = await decoded(http, files["mask"], "mask")
        mask, resized = _mask(given, first.image.size)
        said += [*given.adjustments, *resized]
    return Brought(
        body=body,
        image=first.image,
        others=tuple(one.image for one in others),
        mask=mask,
        **also,
        adjustments=tuple(said),
        once=await idempotency.of(http),
        record=first.record,
    )


async def decoded(http: Request, files: Sequence[bytes], param: str) -> list[Upload]:
    """The pictures in files. Raises ApiError."""
    decoder = http.app.state.decoder
    what = "mask" if param == "mask" else "image"
    try:
        return list(await asyncio.gather(*(decoder.adecode(data, what) for data in files)))
    except PictureError as error:
        raise ApiError(400, error.message, error.fix, param=param, code="invalid_image") from error


def _mask(given: Upload, size: tuple[int, int]) -> tuple[Image.Image, list[Adjustment]]:
    """A mask as OpenAI's API has it: with an alpha channel, of the picture's size or at least its shape."""
    if given.image.mode != "RGBA":
        raise ApiError(
            400,
            "The mask has no alpha channel, so it does not say where the picture may change.",
            "Make it a PNG or WebP that is fully transparent there.",
            param="mask",
            code="invalid_mask",
        )
    return masks.fitted(given.image, size)
