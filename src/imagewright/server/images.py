"""OpenAI's Images API: /v1/images/generations, /edits and /variations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from imagewright.editing import masks
from imagewright.engines.engine import ModelInfo, adapt
from imagewright.errors import RequestError
from imagewright.request import Adjustment, ImageRequest
from imagewright.server import answers, brought, idempotency, wire
from imagewright.server.brought import Brought
from imagewright.server.desk import Desk
from imagewright.server.documents import EDIT_BODY, IMAGES, VARIATION_BODY
from imagewright.server.errors import ApiError
from imagewright.server.gateway import Gateway
from imagewright.server.idempotency import Once
from imagewright.server.jobs import Job
from imagewright.server.security import Caller, Maker
from imagewright.server.settings import Settings
from imagewright.server.streaming import Event, EventStream
from imagewright.server.waiting import while_connected
from imagewright.server.wire import Edit, Generation, Output, Variation
from imagewright.verbs import SUBTLE, feather_of

router = APIRouter(prefix="/v1/images", tags=["images"])
SMALL = 64 * 2**10  # bytes of pictures that are put into an answer before a thread would have begun
MAX_PIXELS = 10 * 3840 * 2160  # of one request
Kind = Literal["generate", "edit", "variation"]


@router.post("/generations", responses=IMAGES, response_class=Response)
async def generations(body: Generation, http: Request, caller: Maker) -> Response:
    """Pictures from words."""
    return await generated(http, caller, body)


@router.post("/edits", responses=IMAGES, response_class=Response, openapi_extra=EDIT_BODY)
async def edits(http: Request, caller: Maker) -> Response:
    """A picture changed as the words say: inside the mask, or as an instruction where the model follows those."""
    return await edited(http, caller, await brought.edit(http, caller))


@router.post("/variations", responses=IMAGES, response_class=Response, openapi_extra=VARIATION_BODY)
async def variations(http: Request, caller: Maker) -> Response:
    """The picture drawn again with small changes."""
    given = await brought.variation(http, caller)
    body, said = given.body, list(given.adjustments)
    words = body.prompt or ""
    if not words:
        words, told = await run_in_threadpool(_seen, given)
        said.append(told)
    order = wire.order(body, words, image=given.image, adjustments=said)
    if order.strength is None:
        order = replace(order, strength=SUBTLE)
    info = await _model(http, caller, body, order)
    return await _deliver(http, caller, body, order, info, "variation", words, given.once)


async def generated(http: Request, caller: Caller, body: Generation, **how: Any) -> Response:
    """The answer to a generation; `how`: see `_deliver`."""
    order = wire.order(body, body.prompt)
    info = await _model(http, caller, body, order)
    once = await idempotency.of(http)
    return await _deliver(http, caller, body, order, info, "generate", body.prompt, once, **how)


async def edited(http: Request, caller: Caller, given: Brought[Edit], **how: Any) -> Response:
    """The answer to an edit; `how`: see `_deliver`."""
    body = given.body
    asked = wire.order(body, body.prompt, image=given.image, mask=given.mask)
    info = await _model(http, caller, body, asked)
    return await _deliver(http, caller, body, _edit(given, info), info, "edit", body.prompt, given.once, **how)


async def _model(http: Request, caller: Caller, body: Output, order: ImageRequest) -> ModelInfo:
    """What will draw, as far as it can be known before the request is complete."""
    gateway: Gateway = http.app.state.gateway
    if gateway.remembers(body.model, order.technique):  # nothing to look up: quicker than a thread
        return gateway.drawer(caller, body.model, order)
    return await run_in_threadpool(gateway.drawer, caller, body.model, order)


def _edit(given: Brought[Edit], info: ModelInfo) -> ImageRequest:
    """The request for an edit, as the model can do it."""
    can, body, said = info.capabilities, given.body, list(given.adjustments)
    if given.mask is None and body.model == "dall-e-2" and (mask := _in_picture(given.image)):
        given = replace(given, mask=mask)
        said.append(Adjustment("mask", None, "the picture's transparency", "as DALL-E 2 did"))
    fields: dict[str, Any] = {"image": given.image, "style_images": given.style_images}
    if given.others and "images" in can.features:
        fields |= {"images": given.others, "subject_images": given.subject_images}
    else:
        fields["subject_images"] = (*given.subject_images, *given.others)
    if given.mask is not None:
        fields |= {"mask": given.mask, "feather": body.fields()[0].get("feather", feather_of(given.image.size))}
    elif body.instruction is not False:
        follows = "instruction" in can.features and (not given.others or info.is_hosted)
        if follows or body.instruction:
            fields["instruction"] = True
        else:
            why = "several pictures are blended" if given.others else "the model follows no instructions"
            said.append(Adjustment("instruction", True, False, f"{why}: the words describe the whole picture"))
    return wire.order(body, body.prompt, **fields, adjustments=said)


def _in_picture(image: Image.Image) -> Image.Image | None:
    """The mask that a picture is itself: where it is fully transparent."""
    try:
        return masks.mask_of(masks.hole(image)) if image.mode == "RGBA" else None
    except RequestError:
        return None


def _seen(given: Brought[Variation]) -> tuple[str, Adjustment]:
    """What a picture without words was made with, as it says itself, or what it seems to show."""
    if words := str((given.record or {}).get("prompt") or "").strip():
        return words, Adjustment("prompt", None, words, "from the picture's record")
    from imagewright.refine.describe import describe

    words = describe(given.image, 1)[0].text
    return words, Adjustment("prompt", None, words, "what the picture seems to show")


async def _deliver(
    http: Request,
    caller: Caller,
    body: Output,
    order: ImageRequest,
    info: ModelInfo,
    kind: Kind,
    words: str,
    once: Once | None,
    background: bool = False,
    priority: int = 0,
) -> Response:
    """Submit the order, and answer as the body asks: with pictures, events, or (`background` too) the job."""
    desk: Desk = http.app.state.desk
    settings: Settings = http.app.state.settings
    order = _for_user(replace(order, **body.addons(settings.adapters, settings.embeddings)), body, info)
    _check_size(adapt(order, info.capabilities)[0])  # what cannot be done is said before anything waits
    background |= body.background is True or "respond-async" in http.headers.get("prefer", "")
    job = await desk.submit(
        caller,
        order,
        kind=kind,
        asked=body.model,
        background=background,
        priority=priority,
        previews=body.partial_images or 0,
        reply=answers.reply(body, words),
        request_id=http.state.request_id,
        once=once,
        relay=not body.gives_url,
    )
    if background:
        return answers.accepted(job)
    if body.stream:
        return EventStream(_events(desk, job, body, order, words))
    outcome = await while_connected(http, desk.outcome(job))
    if sum(map(len, outcome.files.values())) < SMALL:
        return answers.images(http, outcome, body, words, order)
    return await run_in_threadpool(answers.images, http, outcome, body, words, order)


def _check_size(order: ImageRequest) -> None:
    """Refuses what would fill the memory: as many pictures and pixels as OpenAI draws at most are drawn."""
    assert order.size is not None
    if (pixels := order.n * order.size[0] * order.size[1]) > MAX_PIXELS:
        raise ApiError(
            400, f"These pictures have {pixels:,} pixels together; at most {MAX_PIXELS:,} are drawn at a time.",
            "Ask for fewer or smaller ones.", param="n" if order.n > 1 else "size", code="invalid_value",
        )  # fmt: skip


def _for_user(order: ImageRequest, body: Output, info: ModelInfo) -> ImageRequest:
    """The order with a hash of who the end user is, where a hosted model wants to know that."""
    taken = info.capabilities.provider_options
    name = next((name for name in ("safety_identifier", "user") if name in taken), None)
    if name is None or body.end_user is None:
        return order
    return replace(order, provider_options={**order.provider_options, name: body.end_user})


async def _events(desk: Desk, job: Job, body: Output, order: ImageRequest, words: str) -> AsyncGenerator[Event]:
    """Previews as they come, then each picture. A client that goes away cancels the job."""
    name = "image_edit" if job.kind == "edit" else "image_generation"
    ended: Mapping[str, Any] | None = None
    try:
        async with aclosing(desk.news(job)) as coming:
            async for news in coming:
                if news.kind == "partial":
                    yield _event(f"{name}.partial_image", answers.partial(job, news.data))
                elif news.kind == "ended":
                    ended = news.data
    finally:
        if ended is None:
            await asyncio.shield(run_in_threadpool(desk.cancel, job.id))
    assert ended is not None  # news ends with the job
    outcome = await run_in_threadpool(desk.concluded, ended["job"], ended["files"])
    for index in range(len(outcome.pictures)):
        yield _event(f"{name}.completed", answers.completed(outcome, index, body, words, order))


def _event(name: str, data: dict[str, Any]) -> Event:
    return name, {"type": name, **data}
