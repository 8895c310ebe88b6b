"""OpenAI's Responses API for pictures in a conversation: /v1/responses.

What is said is planned by rules, or by the language model of the configuration (conversation/), whatever `model` the
client names; pictures are made by the `image_generation` tool's model. Each turn is a job, accepted before anything is
done: the response's id is the job's, so a response is kept, seen and paid for as its job is. `background` answers at
once with a response to be looked at later.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from imagewright.conversation.planner import Force, Plan, Planner, Step
from imagewright.conversation.state import Conversation, Turn, new_id
from imagewright.editing import masks
from imagewright.pictures import encode
from imagewright.request import MAX_N, ImageRequest
from imagewright.server import brought, errors, idempotency, jobs, turns, wire
from imagewright.server.desk import Desk
from imagewright.server.documents import failures
from imagewright.server.errors import ApiError
from imagewright.server.gateway import Gateway
from imagewright.server.jobs import Job
from imagewright.server.response_object import Events, whole
from imagewright.server.response_wire import Body, Said, Tool, heard, picture_of
from imagewright.server.security import Caller, Maker
from imagewright.server.settings import DAY
from imagewright.server.streaming import EventStream
from imagewright.server.turns import State
from imagewright.server.waiting import while_connected
from imagewright.store import Row, Store

router = APIRouter(prefix="/v1/responses", tags=["responses"])
_HERE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A response, or with `stream` its events",
        "content": {"application/json": {}, "text/event-stream": {}},
    },
    **failures(404, 409, 415, 499, 502, 504, 507),
}
_OF_STEPS = ("size", "quality", "background")  # a tool's fields that each step may use
SHORTLY = 3600.0  # s that pictures are kept that came along with what is not to be stored
Json = dict[str, Any]


@router.post("", responses=_HERE, response_class=Response)
async def create(body: Body, http: Request, caller: Maker) -> Response:
    """What the user says is understood and done."""
    tool = _tool(body)
    _check(body)
    said = await heard(http, caller, body.input)
    before = await run_in_threadpool(_before, http, caller, body.previous_response_id)
    keep = SHORTLY if body.store is False else http.app.state.settings.keep_days * DAY
    state, now = await run_in_threadpool(_joined, http, caller, said, before, keep)
    words = said.words or ("what is in the picture?" if said.order else "")
    if not words:
        raise errors.missing("the user's words", "input")
    plan, notes = await run_in_threadpool(_planned, http, caller, body, tool, words, now)
    order = await _order(http, caller, tool, words, plan, now)
    kept = {
        "said": words,
        "plan": plan.to_json(),
        "ids": turns.ids_for(plan, [new_id() for _ in range(MAX_N)]),
        "state": replace(state, conversation=now.to_json()).to_json(),
        "items": said.items or [_item(words)],
        "store": body.store is not False,
        "notes": [*body.said(), *notes],
        "echo": _echo(body, _planner(http)),
    }
    desk: Desk = http.app.state.desk
    job = await desk.submit(
        caller,
        order,
        kind=turns.KIND,
        asked=await run_in_threadpool(_drawn_by, http, caller, tool, plan),
        background=body.background is True,
        previews=tool.partial_images or 0,
        reply=kept,
        request_id=http.state.request_id,
        once=await idempotency.of(http),
    )
    return await _answer(http, body, tool, job)


async def _answer(http: Request, body: Body, tool: Tool, job: Job) -> Response:
    """The response to a turn that was accepted: its events, itself, or (`background`) what there is so far."""
    desk, store = http.app.state.desk, http.app.state.store

    def ended(job: Job) -> None:
        if not (job.reply or {})["store"]:
            _forget(http, job)

    if body.stream:
        return EventStream(Events(desk, store, job, tool.partial_images or 0).all(ended))
    if body.background:
        return await run_in_threadpool(_json, job, store)
    try:
        outcome = await while_connected(http, desk.outcome(job))
    except ApiError as error:
        over = await run_in_threadpool(desk.get, job.id)
        if over is None or over.state != jobs.FAILED or error.status in (499, 503):
            raise
        answer = await run_in_threadpool(_json, over, store)
        await run_in_threadpool(ended, over)
        return answer
    answer = await run_in_threadpool(_json, outcome.job, store, outcome.files)
    await run_in_threadpool(ended, outcome.job)
    return answer


def _json(job: Job, store: Store, files: Any = None) -> Response:
    return Response(orjson.dumps(whole(job, store, files)), media_type="application/json")


@router.get("/{response_id}", responses=failures(404), response_class=Response)
def one(response_id: str, http: Request, caller: Maker) -> Response:
    """A response as it stands."""
    return _json(_job(http, caller, response_id), http.app.state.store)


@router.get("/{response_id}/input_items", responses=failures(404))
def input_items(
    response_id: str, http: Request, caller: Maker, order: Literal["asc", "desc"] = "desc", limit: int = 20
) -> Json:
    """What was said in the turn; the bytes of pictures are not repeated."""
    items = (_job(http, caller, response_id).reply or {})["items"]
    items = items if order == "asc" else items[::-1]
    shown = items[: max(1, min(limit, 100))]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"],
        "last_id": shown[-1]["id"],
        "has_more": len(items) > len(shown),
    }


@router.delete("/{response_id}", responses=failures(404, 409))
def delete(response_id: str, http: Request, caller: Maker) -> Json:
    """Forget a response and the pictures that it made; later turns can no longer go back to these."""
    job = _job(http, caller, response_id)
    if job.is_open:
        raise ApiError(409, "The response is still at work.", "Cancel it first.", code="in_progress")
    _forget(http, job)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/{response_id}/cancel", responses=failures(404), response_class=Response)
def cancel(response_id: str, http: Request, caller: Maker) -> Response:
    """End a turn as soon as can be. One that is over stays as it is."""
    job = _job(http, caller, response_id)
    http.app.state.desk.cancel(job.id)
    return _json(_job(http, caller, response_id), http.app.state.store)


def _job(http: Request, caller: Caller, response_id: str) -> Job:
    owner = None if caller.is_admin else caller.key_id
    head, _, name = response_id.partition("_")
    plain = head == "resp" and name.isascii() and len(name) <= 64
    desk: Desk = http.app.state.desk
    job = desk.get(f"job_{name}", owner) if plain else None
    if job is None or job.kind != turns.KIND or not (job.reply or {})["store"]:
        raise ApiError(404, f"Response with id {response_id[:80]!r} not found.", code="not_found")
    return job


def _forget(http: Request, job: Job) -> None:
    """The job and its pictures, gone; the files go with the store's next sweep."""
    store: Store = http.app.state.store
    for row in store.of_job(job.id):
        store.forget(row.id, None)
    with http.app.state.database.write() as connection:
        connection.execute(jobs.jobs.delete().where(jobs.jobs.c.id == job.id))


def _tool(body: Body) -> Tool:
    """The image_generation tool; one without fields where the body has none, which then makes nothing."""
    found = next((tool for tool in body.tools if tool.get("type") == "image_generation"), {"type": "image_generation"})
    try:
        return wire.read(Tool, found)
    except RequestValidationError as error:
        where = ("body", "tools", "image_generation")
        raise RequestValidationError([{**one, "loc": (*where, *one["loc"][1:])} for one in error.errors()]) from error


def _check(body: Body) -> None:
    if body.conversation is not None:
        raise _refused("conversation", "There are no conversations here.", "Chain turns by previous_response_id.")
    if body.background and body.store is False:
        raise _refused("background", "What works in the background must be stored.", "Leave out store: false.")


def _before(http: Request, caller: Caller, response_id: str | None) -> State:
    """The conversation so far. Raises ApiError."""
    if response_id is None:
        return State()
    try:
        job = _job(http, caller, response_id)
    except ApiError as error:
        raise ApiError(
            400, f"Previous response with id {response_id[:80]!r} not found.",
            "It may have expired, or not have been stored.",
            param="previous_response_id", code="previous_response_not_found",
        ) from error  # fmt: skip
    if job.is_open:
        raise _refused("previous_response_id", "That response is still at work.", "Wait for it, or cancel it.")
    return turns.after(job)


def _joined(http: Request, caller: Caller, said: Said, before: State, keep: float) -> tuple[State, Conversation]:
    """The conversation with what came along in the input; new pictures are kept in the store for `keep` seconds."""
    store: Store = http.app.state.store
    now, files, lossless = before.opened(store), dict(before.files), dict(before.lossless)
    given = {shown.id: (shown, image) for shown, image in said.given}
    recalled = {shown.id: (shown, file, pixels) for shown, file, pixels in said.recalled}
    rows = []
    for id_ in said.order:
        known = {shown.id for shown in now.pictures}
        if id_ in given:
            shown, image = given[id_]
            rows.append(_kept(http, caller, id_, image, keep))
            files[id_] = rows[-1].digest
        elif id_ not in known:
            shown, files[id_], pixels = recalled[id_]
            shown = replace(shown, parent=shown.parent if shown.parent in known else None)
            lossless |= {id_: pixels} if pixels else {}
        if id_ not in known:
            now = replace(now, pictures=(*now.pictures, shown))
        now = now.shows(id_)
    if rows:
        with http.app.state.database.write() as connection:
            store.enter(connection, rows)
    now = replace(now, turns=(*now.turns, *(Turn(words, {}) for words in said.earlier)))
    state = State(now.to_json(), files, lossless)
    return state, state.opened(store)


def _kept(http: Request, caller: Caller, id_: str, image: Image.Image, keep: float) -> Row:
    """A picture that came along, in the store."""
    store: Store = http.app.state.store
    data, created = encode(image, "png"), time.time()
    return Row(
        id=id_, digest=store.save(data), media_type="image/png", width=image.width, height=image.height,
        bytes=len(data), owner=caller.key_id, created=created, expires=created + keep, kind="input",
    )  # fmt: skip


def _planner(http: Request) -> Planner:
    planner: Planner = http.app.state.planner
    return planner


def _planned(
    http: Request, caller: Caller, body: Body, tool: Tool, words: str, now: Conversation
) -> tuple[Plan, list[str]]:
    """What is to be done, with the tool's fields in it, and what of the words they overrule."""
    gateway: Gateway = http.app.state.gateway
    engine, name = gateway.workshop.catalog.find(gateway.choose(caller, tool.model, ImageRequest(prompt=words)).model)
    styles = engine.find(name).capabilities.styles
    force: Force | None = tool.action if tool.action in ("generate", "edit") else None
    plan = _planner(http).plan(words, now, styles, force)
    may_draw = body.tool_choice != "none" and any(one.get("type") == "image_generation" for one in body.tools)
    makes = any(step.action != "answer" for step in plan.steps)
    if makes and not may_draw:
        told = "I can make pictures only with the image_generation tool: add it to tools."
        return Plan((Step("answer", told),), plan.understood, plan.doubts), []
    if not makes and _must_draw(body.tool_choice):
        plan = _planner(http).plan(words, now, styles, "edit" if now.last is not None else "generate")
    return _with_fields(plan, tool)


def _drawn_by(http: Request, caller: Caller, tool: Tool, plan: Plan) -> str | None:
    """The model to ask for: the tool's, or where a picture is changed and the default cannot do that, one that can."""
    if all(step.action in ("generate", "answer") for step in plan.steps):
        return tool.model
    gateway: Gateway = http.app.state.gateway
    blank = Image.new("RGB", (1, 1))
    choice = gateway.choose(caller, tool.model, ImageRequest(prompt="a change", image=blank))
    gives_way = any(one.field == "model" and "takes no pictures" in one.reason for one in choice.adjustments)
    return choice.model if gives_way else tool.model


def _must_draw(choice: Any) -> bool:
    return choice == "required" or (isinstance(choice, dict) and choice.get("type") == "image_generation")


def _with_fields(plan: Plan, tool: Tool) -> tuple[Plan, list[str]]:
    """The plan with the tool's fields, which win over the words; its format is the order's (`_order`)."""
    asked = {name: value for name, value in tool.fields().items() if name in _OF_STEPS}
    steps, notes = [], []
    for step in plan.steps:
        fields = dict(step.fields)
        if step.action in turns.DRAWS:
            if "size" in asked:
                fields.pop("aspect", None)
            notes += [f"{name}: the tool's {asked[name]} wins over the words" for name in asked if name in fields]
            fields |= asked if step.action == "generate" else {n: v for n, v in asked.items() if n != "size"}
        steps.append(replace(step, fields=fields))
    return replace(plan, steps=tuple(steps)), notes


async def _order(http: Request, caller: Caller, tool: Tool, words: str, plan: Plan, now: Conversation) -> ImageRequest:
    """The turn as one request: what it may cost, its format, and a mask with the picture that it belongs to."""
    first = next((step for step in plan.steps if step.action in turns.DRAWS), None)
    formats = {name: step.fields[name] for step in plan.steps for name in ("output_format",) if name in step.fields}
    fields = formats | tool.fields() | {"prompt": first.words if first is not None and first.words else words}
    fields["n"] = min(turns.draws(plan), MAX_N)
    if first is not None and "size" in first.fields:
        fields["size"] = first.fields["size"]
    if tool.input_image_mask is not None and first is not None and first.action == "edit":
        file = await picture_of(http, caller, tool.input_image_mask, "tools.input_image_mask")
        (upload,) = await brought.decoded(http, [file], "mask")
        target = await run_in_threadpool(now.image, first.target or "")
        fields["image"] = masks.upright(target)
        fields["mask"], _ = masks.fitted(upload.image, target.size)
    return ImageRequest(**fields)


def _echo(body: Body, planner: Planner) -> Json:
    """What a response repeats of its request."""
    return {
        "instructions": body.instructions,
        "max_output_tokens": None,
        "metadata": body.metadata or {},
        "model": planner.name,
        "parallel_tool_calls": True,
        "previous_response_id": body.previous_response_id,
        "store": body.store is not False,
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [{**tool, **({"input_image_mask": {}} if "input_image_mask" in tool else {})} for tool in body.tools],
        "top_p": None,
        "truncation": "disabled",
        "user": None,
    }


def _item(words: str) -> Json:
    content = [{"type": "input_text", "text": words}]
    return {"id": new_id("msg_"), "type": "message", "role": "user", "content": content}


def _refused(param: str, message: str, fix: str) -> ApiError:
    return ApiError(400, message, fix, param=param, code="invalid_value")
