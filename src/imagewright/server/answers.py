"""What the Images API answers: pictures as base64 or URLs, what was used for them, and what could not be kept.

Beyond OpenAI's keys: `model` (what really drew), `adjustments` (what was changed or could not be honoured) and
`imagewright` (the job, seeds, seconds, the record of each picture's making); the first two also as headers.

`usage` counts what a picture took in and gave out, by a rule that every model has in common, so that no tokenizer is
needed to check it: one token for every four characters of the prompt, and one for every patch of 32x32 pixels of each
picture, brought or made. What a hosted service counted itself is passed on instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import pybase64
from fastapi import Request
from starlette.responses import Response

from imagewright.pictures import open_picture
from imagewright.request import ImageRequest
from imagewright.server import jobs, orders, turns
from imagewright.server.desk import Outcome
from imagewright.server.errors import ApiError
from imagewright.server.jobs import Job
from imagewright.server.links import Links
from imagewright.server.wire import Output
from imagewright.store import NotFoundError

CHARACTERS, PATCH = 4, 32  # of a text token; pixels a side of an image token
MAX_HEADER = 2048  # characters of all adjustments in a header
MAX_TOLD = 80  # characters of one value there
_QUALITIES = {"auto": "medium", "standard": "medium", "hd": "high"}
STATUSES = {
    jobs.QUEUED: "queued",
    jobs.RUNNING: "in_progress",
    jobs.DONE: "completed",
    jobs.FAILED: "failed",
    jobs.CANCELLED: "cancelled",
}
_TYPES = {"generate": "image.generation", "edit": "image.edit", "variation": "image.variation"}
Json = dict[str, Any]


def images(http: Request, outcome: Outcome, body: Output, words: str, order: ImageRequest) -> Response:
    """The answer to a finished job; to be called in a thread, where pictures are large."""
    content = _content(http, outcome, body, words, order, made(outcome))
    return Response(orjson.dumps(content), media_type="application/json", headers=headers(outcome))


def _content(
    http: Request, outcome: Outcome, body: Output, words: str, order: ImageRequest, since: float | None = None
) -> Json:
    """`since`: when the hour of the URLs began (None: now)."""
    links: Links = http.app.state.links
    data = []
    for (picture, file), record in _pictures(outcome):
        shown = {"url": links.url(http, picture["id"], since)} if body.gives_url else {"b64_json": base64(file)}
        data.append({**shown, **_revised(record, words)})
    return {
        "created": int(outcome.job.created),
        "data": data,
        **facts(outcome, 0),
        "usage": usage(order, outcome.result["records"]),
        **({"safety_identifier": body.safety_identifier} if body.safety_identifier else {}),
        **extras(outcome),
    }


def accepted(job: Job) -> Response:
    """The answer to a job in the background."""
    where = {"location": f"/v1/jobs/{job.id}", "preference-applied": "respond-async"}
    return Response(orjson.dumps(job_object(job)), 202, where, media_type="application/json")


def whole_job(http: Request, job: Job) -> Response:
    """A job with its result; to be called in a thread."""
    return Response(orjson.dumps(job_object(job, http)), media_type="application/json")


def job_object(job: Job, http: Request | None = None) -> Json:
    """A job as clients see it; with `http` also its result, which is what the Images API would have answered."""
    error = None if job.error is None else ApiError.from_json(job.error).body()["error"]
    return {
        "id": job.id,
        "object": "job",
        "type": _TYPES.get(job.kind, job.kind),
        "status": STATUSES[job.state],
        "model": job.asked,
        "served_by": job.model,
        "background": job.background,
        "priority": job.priority,
        "created_at": int(job.created),
        "started_at": None if job.started is None else int(job.started),
        "completed_at": None if job.finished is None else int(job.finished),
        "progress": {"done": job.done, "total": job.total},
        "error": error,
        "result": _result(http, job) if http is not None and job.state == jobs.DONE else None,
    }


def reply(body: Output, words: str) -> Json:
    """What a job keeps so that its result can be answered later: how the client wants it, and its own words. Not who
    the end user is."""
    return {"response_format": "url" if body.gives_url else "b64_json", "words": words}


def _result(http: Request, job: Job) -> Json | None:
    """None where its pictures are gone; of a turn of a conversation, where its response is."""
    state, kept = http.app.state, job.reply or {}
    if job.kind == turns.KIND:
        return {"response": turns.response_id(job.id)}
    try:
        outcome = state.desk.concluded(job, {})
        order = orders.from_json(job.order, state.store.load)
    except (ApiError, NotFoundError):
        return None
    body = Output(response_format=kept.get("response_format", "b64_json"))
    return _content(http, outcome, body, kept.get("words", order.prompt), order)


def made(outcome: Outcome) -> float:
    """When the last picture was made, seconds since 1970: the same whenever one looks, so that a request that is sent
    again gets the same URLs. Signing and storing may take a little longer, for which a minute is added."""
    times = [datetime.fromisoformat(record["created"]).timestamp() for record in outcome.result["records"]]
    return max(times) + 60


def _pictures(outcome: Outcome) -> list[tuple[tuple[Json, bytes], Json]]:
    return list(zip(outcome.pictures, outcome.result["records"], strict=True))


def _revised(record: Mapping[str, Any], words: str) -> Json:
    """The words that a picture was made from, where they are not those that the client sent."""
    used = record.get("revised_prompt") or record.get("prompt")
    return {"revised_prompt": used} if used and used != words else {}


def base64(file: bytes) -> orjson.Fragment:
    """The file as a JSON string, which needs no second look at every character."""
    return orjson.Fragment(b'"%s"' % pybase64.b64encode(file))


def facts(outcome: Outcome, index: int) -> Json:
    """What OpenAI's answers and events say of a picture."""
    picture, record = outcome.result["pictures"][index], outcome.result["records"][index]
    quality = next(
        (one["used"] for one in reversed(outcome.result["adjustments"]) if one["field"] == "quality"),
        record.get("quality", "auto"),
    )
    return {
        "background": "transparent" if picture["transparent"] else "opaque",
        "output_format": record["output_format"],
        "quality": _QUALITIES.get(quality, quality),
        "size": "{}x{}".format(*picture["size"]),
    }


def partial(job: Job, news: Mapping[str, Any]) -> Json:
    """The data of the event that shows a picture on the way."""
    background, quality = job.order.get("background", "auto"), job.order.get("quality", "auto")
    return {
        "b64_json": base64(news["file"]),
        "partial_image_index": news["index"],
        "created_at": int(job.created),
        "size": "{}x{}".format(*open_picture(news["file"], decode=False).size),
        "quality": _QUALITIES.get(quality, quality),
        "background": background if background in ("auto", "transparent") else "opaque",
        "output_format": job.order.get("output_format", "png"),
    }


def completed(outcome: Outcome, index: int, body: Output, words: str, order: ImageRequest) -> Json:
    """The data of the event that brings picture `index`; the tokens of what went in count with the first."""
    (_, file), record = _pictures(outcome)[index]
    used = usage(order, [record])
    if index:
        used = _without_input(used)
    return {
        "b64_json": base64(file),
        **_revised(record, words),
        "image_index": index,
        "created_at": int(outcome.job.created),
        **facts(outcome, index),
        "usage": used,
        **({"safety_identifier": body.safety_identifier} if body.safety_identifier else {}),
        **extras(outcome),
    }


def _without_input(used: Json) -> Json:
    none = {"text_tokens": 0, "image_tokens": 0}
    output = used["output_tokens"]
    return {**used, "total_tokens": output, "input_tokens": 0, "input_tokens_details": none}


def extras(outcome: Outcome) -> Json:
    """What this server tells beyond OpenAI's keys."""
    result, job = outcome.result, outcome.job
    return {
        "model": served(outcome),
        "adjustments": adjustments(outcome),
        "imagewright": {
            "job": job.id,
            "pictures": [picture["id"] for picture in result["pictures"]],
            "seeds": [record.get("seed") for record in result["records"]],
            "seconds": round(result["seconds"], 4),
            "cost": None if job.cost is None else job.cost / 1_000_000,
        },
    }


def adjustments(outcome: Outcome) -> list[Json]:
    """What was changed or could not be honoured, by the names of the API's fields."""
    return [{**one, "field": one["field"].removeprefix("provider_options.")} for one in outcome.result["adjustments"]]


def served(outcome: Outcome) -> str:
    """The model that really drew."""
    return f"{outcome.result['engine']}/{outcome.result['model']}"


def headers(outcome: Outcome) -> dict[str, str]:
    """The model and the adjustments, for clients that drop unknown keys; ASCII, and no longer than servers take."""
    told = [{name: _short(value) for name, value in one.items()} for one in adjustments(outcome)]
    while len(text := json.dumps(told, separators=(",", ":"))) > MAX_HEADER:
        told.pop()
    model = served(outcome).encode("ascii", "replace").decode()
    return {"x-imagewright-model": model, "x-imagewright-adjustments": text}


def _short(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value)
    return value if len(text) <= MAX_TOLD else f"{text[: MAX_TOLD - 3]}..."


def usage(order: ImageRequest, records: Sequence[Mapping[str, Any]]) -> Json:
    """Tokens in and out, by the rule above, or as the hosted service that drew counted them."""
    if told := next((told for record in records if (told := _counted(record))), None):
        return told
    brought = [order.image, *order.images, *order.style_images, *order.subject_images]
    text = -(-len(order.prompt) // CHARACTERS)
    seen = sum(_patches(*image.size) for image in brought if image is not None)
    drawn = sum(_patches(*record["size"]) for record in records)
    return {
        "total_tokens": text + seen + drawn,
        "input_tokens": text + seen,
        "output_tokens": drawn,
        "input_tokens_details": {"text_tokens": text, "image_tokens": seen},
        "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn},
    }


def _counted(record: Mapping[str, Any]) -> Json | None:
    told = record.get("usage")
    needed = ("total_tokens", "input_tokens", "output_tokens", "input_tokens_details")
    return dict(told) if isinstance(told, dict) and all(name in told for name in needed) else None


def _patches(width: int, height: int) -> int:
    return -(-width // PATCH) * -(-height // PATCH)
