"""One turn of a conversation as a job: planned when it is accepted, done by whichever worker takes it.

The job's `reply` holds the conversation before the turn and the plan, its `result` the conversation after it; pictures
lie in the store, by digest. So a turn outlives any process, and who sees the job sees the conversation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from imagewright import chain
from imagewright.conversation.acting import act
from imagewright.conversation.planner import PREVIOUS, Plan
from imagewright.conversation.state import Conversation, Turn
from imagewright.pictures import encode, open_picture
from imagewright.provenance import metadata
from imagewright.request import ImageRequest, ImageResult
from imagewright.server.gateway import Gateway
from imagewright.server.jobs import Job
from imagewright.server.usage import Bill
from imagewright.store import NotFoundError, Row, Store, new_id
from imagewright.watch import Watch
from imagewright.workshop import Workshop

KIND = "response"
DRAWS = ("generate", "edit", "vary", "restyle", "remove_background")  # actions for which a model may draw
Json = dict[str, Any]


@dataclass(frozen=True)
class State:
    """A conversation as jobs keep it: `files` are the digests of its pictures' files by id, and `lossless` those of
    their pixels, where a file has lost some."""

    conversation: Json = field(default_factory=lambda: Conversation().to_json())
    files: Mapping[str, str] = field(default_factory=dict)
    lossless: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> Json:
        """JSON values."""
        return {"conversation": self.conversation, "files": dict(self.files), "lossless": dict(self.lossless)}

    def opened(self, store: Store) -> Conversation:
        """The conversation, whose pictures are read when they are needed."""
        return Conversation.from_json(self.conversation, Album(store, {**self.files, **self.lossless}))


class Album(Mapping[str, Image.Image]):
    """The pictures of a conversation in the store, with their records."""

    def __init__(self, store: Store, digests: Mapping[str, str]) -> None:
        self.store, self.digests = store, digests

    def __getitem__(self, id_: str) -> Image.Image:
        try:
            return opened(self.store.load(self.digests[id_]))
        except NotFoundError:
            raise KeyError(id_) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.digests)

    def __len__(self) -> int:
        return len(self.digests)


def opened(data: bytes) -> Image.Image:
    """A picture of ours with its record."""
    image = open_picture(data)
    found = metadata.read(image).record
    image.info = {name: image.info[name] for name in ("icc_profile",) if name in image.info}
    if found is not None:
        image.info["imagewright"] = found
    return image


def response_id(job_id: str) -> str:
    """The id of the response that a job is the work of."""
    return f"resp_{job_id.removeprefix('job_')}"


def before(job: Job) -> State:
    """The conversation that a turn's job began with, with the pictures that came with the turn."""
    return State(**(job.reply or {})["state"])


def after(job: Job) -> State:
    """The conversation after the turn of a job that is over; before it, where nothing came of it."""
    state, result = before(job), job.result
    if result is None:
        return state
    made = {one["id"]: one["digest"] for one in result["pictures"]}
    turn = result["turn"]
    return State(turn["conversation"], {**state.files, **made}, {**state.lossless, **turn["lossless"]})


@dataclass(frozen=True, kw_only=True)
class Made(ImageResult):
    """What became of a turn: its new pictures with their `ids` and the files they were made from (`sources`), `told`
    for the job's result, `rows` of further pictures to keep, and the `bill`."""

    ids: tuple[str, ...]
    sources: tuple[tuple[bytes, ...], ...]
    parents: tuple[tuple[str, ...], ...]
    told: Json
    rows: tuple[Row, ...]
    bill: Bill


class _Drawing(Workshop):
    """A workshop whose pictures come through the gateway, as those of the Images API do, and are counted."""

    def __init__(self, gateway: Gateway, job: Job) -> None:
        workshop = gateway.workshop
        super().__init__(workshop.catalog, workshop.judges)
        self.gateway, self.job = gateway, job
        self.done: list[tuple[ImageRequest, ImageResult]] = []

    def make_many(self, requests: Sequence[ImageRequest], watches: Sequence[Watch]) -> list[ImageResult | Exception]:
        """As Workshop.make_many, one after the other."""
        found = []
        for request, watch in zip(requests, watches, strict=True):
            found += self.gateway.make([(self.job, request, watch)])
            if isinstance(found[-1], ImageResult):
                self.done.append((request, found[-1]))
        return found

    def bill(self) -> Bill:
        """What all of it cost."""
        bills = [self.gateway.bill(request, result) for request, result in self.done]
        costs = [bill.cost for bill in bills]
        return Bill(
            model=bills[-1].model if bills else None,
            images=sum(bill.images for bill in bills),
            tokens=(sum(bill.tokens[0] for bill in bills), sum(bill.tokens[1] for bill in bills)),
            seconds=sum(bill.seconds for bill in bills),
            cost=None if None in costs else sum(cost or 0 for cost in costs),
        )


def make(
    job: Job, request: ImageRequest, watch: Watch, gateway: Gateway, store: Store, keep: float
) -> Made | Exception:
    """Do the turn of a job; pictures are kept for `keep` seconds."""
    try:
        return _made(job, request, watch, gateway, store, keep)
    except Exception as error:
        return error


def _made(job: Job, request: ImageRequest, watch: Watch, gateway: Gateway, store: Store, keep: float) -> Made:
    kept, state = job.reply or {}, before(job)
    now = state.opened(store)
    workshop = _Drawing(gateway, job)
    turn = act(
        _unformatted(Plan.from_json(kept["plan"])),
        now,
        workshop,
        watch,
        said=kept["said"],
        model=job.model,
        alone=True,
        mask=request.mask,
        ids=kept["ids"],
    )
    then = now.then(turn)
    images = [turn.images[shown.id] for shown in turn.shown]
    rows, lossless = _lossless(job, turn, store, keep)
    finished = [_delivered(image, request) for image in images]
    drawn = [result for _, result in workshop.done]
    return Made(
        images=tuple(finished),
        records=tuple(image.info["imagewright"] for image in finished),
        model=drawn[-1].model if drawn else "",
        engine=drawn[-1].engine if drawn else "",
        adjustments=request.adjustments,
        seconds=sum(result.seconds for result in drawn),
        ids=tuple(shown.id for shown in turn.shown),
        sources=tuple(_sources(shown.parent, turn, state, store) for shown in turn.shown),
        parents=tuple((shown.parent,) if shown.parent else () for shown in turn.shown),
        told={"turn": _told(turn, then) | {"lossless": lossless}},
        rows=tuple(rows),
        bill=workshop.bill(),
    )


def _unformatted(plan: Plan) -> Plan:
    """The plan without formats: pictures keep all their pixels until they are delivered."""
    steps = (replace(one, fields={n: v for n, v in one.fields.items() if n != "output_format"}) for one in plan.steps)
    return replace(plan, steps=tuple(steps))


def _told(turn: Turn, then: Conversation) -> Json:
    return {
        "answer": turn.answer,
        "notes": list(turn.notes),
        "pictures": list(turn.pictures),
        "action": turn.action,
        "conversation": then.to_json(),
    }


def _delivered(image: Image.Image, request: ImageRequest) -> Image.Image:
    """The picture in the format that the turn's caller asked for."""
    record = image.info["imagewright"]
    result = ImageResult(images=(image,), records=(record,), model="", engine="", size=image.size)
    return chain.stored_as(result, request.output_format, request.output_compression)[0]


def _lossless(job: Job, turn: Turn, store: Store, keep: float) -> tuple[list[Row], dict[str, str]]:
    """Where the file loses pixels, those are kept beside it, so that the next turn starts from them."""
    asked = job.order.get("output_format", "png"), job.order.get("output_compression", 100)
    if asked[0] == "png" or asked == ("webp", 100):
        return [], {}
    rows, digests = [], {}
    for shown in turn.shown:
        image = turn.images[shown.id]
        data = encode(image, "png", **metadata.save_options(image.info["imagewright"], "png"))
        digests[shown.id] = store.save(data)
        rows.append(
            Row(
                id=new_id(),
                digest=digests[shown.id],
                media_type="image/png",
                width=image.width,
                height=image.height,
                bytes=len(data),
                owner=job.owner,
                created=time.time(),
                expires=time.time() + keep,
                kind="input",
                job=job.id,
            )
        )
    return rows, digests


def _sources(parent: str | None, turn: Turn, state: State, store: Store) -> tuple[bytes, ...]:
    """The file that a picture was made from, for its credential; one of this same turn has none yet."""
    if parent is None or parent in turn.images:
        return ()
    return (store.load(state.files[parent]),)


def draws(plan: Plan) -> int:
    """How many pictures a model may have to draw for a plan, at least one."""
    return max(1, sum(int(step.fields.get("n", 1)) for step in plan.steps if step.action in DRAWS))


def ids_for(plan: Plan, fresh: Sequence[str]) -> list[str]:
    """The ids of the pictures that the last step will show, in order: `fresh` ones, or that of an earlier picture."""
    last = next((step for step in reversed(plan.steps) if step.action != "answer"), None)
    if last is None:
        return []
    if last.action == "undo" and last.target not in (None, PREVIOUS):
        return [str(last.target)]
    return list(fresh[: int(last.fields.get("n", 1))])
