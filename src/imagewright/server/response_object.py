"""A response as OpenAI's SDKs read it, from the job that is its work, and the events that tell how it comes about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.concurrency import run_in_threadpool

from imagewright.pictures import open_picture
from imagewright.request import ImageRequest
from imagewright.server import answers, jobs, turns
from imagewright.server.desk import Desk
from imagewright.server.errors import ApiError
from imagewright.server.jobs import Job
from imagewright.server.streaming import Event
from imagewright.store import NotFoundError, Store

STATUSES = {
    jobs.QUEUED: "queued",
    jobs.RUNNING: "in_progress",
    jobs.DONE: "completed",
    jobs.FAILED: "failed",
    jobs.CANCELLED: "cancelled",
}
_CODES = {  # of our errors in the words that a response's error may have
    "moderation_blocked": "image_content_policy_violation",
    "rate_limit_exceeded": "rate_limit_exceeded",
    "insufficient_quota": "rate_limit_exceeded",
    "invalid_image": "invalid_image",
}
Json = dict[str, Any]


def whole(job: Job, store: Store, files: Mapping[str, bytes] | None = None) -> Json:
    """The response of a job as it stands; pictures that are not in `files` are read from the store."""
    kept = job.reply or {}
    error = None if job.error is None else ApiError.from_json(job.error)
    status = STATUSES[job.state]
    return {
        "id": turns.response_id(job.id),
        "object": "response",
        "created_at": int(job.created),
        "status": status,
        "background": job.background,
        "completed_at": None if job.finished is None else int(job.finished),
        "error": None if error is None or status == "cancelled" else _error(error),
        "incomplete_details": None,
        **kept["echo"],
        "output": list(_output(job, store, files or {})),
        "usage": usage(job),
        "imagewright": _told(job),
    }


def _error(error: ApiError) -> Json:
    otherwise = "server_error" if error.status >= 500 else "invalid_prompt"
    return {"code": _CODES.get(error.code or "", otherwise), "message": str(error)}


def _told(job: Job) -> Json:
    """What this server says beyond OpenAI's keys."""
    plan, result = (job.reply or {})["plan"], job.result or {}
    turn = result.get("turn", {})
    return {
        "job": job.id,
        "understood": plan["understood"],
        "steps": [step["action"] for step in plan["steps"]],
        "notes": [*(job.reply or {})["notes"], *turn.get("notes", plan["doubts"])],
        "adjustments": result.get("adjustments", []),
        "model": f"{result['engine']}/{result['model']}" if result.get("model") else None,
        "cost": None if job.cost is None else job.cost / 1_000_000,
    }


def usage(job: Job) -> Json | None:
    """Tokens in and out, counted as the Images API does; None before the end."""
    if job.result is None:
        return None
    words, turn = (job.reply or {})["said"], job.result["turn"]
    told = answers.usage(ImageRequest(prompt=words), job.result["records"])
    text = -(-len(message(job)) // answers.CHARACTERS)
    return {
        "input_tokens": told["input_tokens"],
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": told["output_tokens"] + text,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": told["total_tokens"] + text,
    } | ({} if turn["pictures"] else {"output_tokens": text, "total_tokens": told["input_tokens"] + text})


def _output(job: Job, store: Store, files: Mapping[str, bytes]) -> Iterator[Json]:
    """The items of a job that is over: pictures, then words."""
    if job.state == jobs.FAILED:
        yield from (_failed(job, id_) for id_ in _ids(job))
    if job.result is None:
        return
    state = turns.after(job)
    for id_ in job.result["turn"]["pictures"]:
        yield _picture(job, id_, files.get(id_) or _file(store, state.files.get(id_)))
    yield _message(job)


def _file(store: Store, digest: str | None) -> bytes | None:
    try:
        return None if digest is None else store.load(digest)
    except NotFoundError:
        return None


def _ids(job: Job) -> list[str]:
    return list((job.reply or {})["ids"])


def _picture(job: Job, id_: str, file: bytes | None) -> Json:
    """A call that made a picture, or went back to one; its result is null where the picture is gone."""
    call: Json = {"id": id_, "type": "image_generation_call", "status": "completed", "result": None}
    if file is None:
        return call
    steps = (job.reply or {})["plan"]["steps"]
    step: Json = next((one for one in reversed(steps) if one["action"] != "answer"), {})
    new = step.get("action") == "generate"
    image = open_picture(file, decode=False)
    return {
        **call,
        "result": answers.base64(file),
        "action": "generate" if new else "edit",
        "revised_prompt": step.get("words") or None,
        "size": "{}x{}".format(*image.size),
        "quality": job.order.get("quality", "auto"),
        "background": "transparent" if image.has_transparency_data else "opaque",
        "output_format": str(image.format).lower(),
    }


def _failed(job: Job, id_: str) -> Json:
    error = ApiError.from_json(job.error or {})
    told = error.body()["error"]
    if error.code == "moderation_blocked":
        told["moderation_details"] = {"categories": [], "moderation_stage": "unknown"}
    return {"id": id_, "type": "image_generation_call", "status": "failed", "result": None, "error": told}


def message(job: Job) -> str:
    """What is said about a turn that is over: the answer, and what was not understood."""
    answer, doubts = (job.result or {})["turn"]["answer"], (job.reply or {})["plan"]["doubts"]
    return " ".join([answer, *(doubt for doubt in doubts if doubt not in answer)])


def _message(job: Job) -> Json:
    return {
        "id": _message_id(job),
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": message(job), "annotations": [], "logprobs": []}],
    }


def _message_id(job: Job) -> str:
    return f"msg_{job.id.removeprefix('job_')}"


class Events:
    """The events of a response in OpenAI's order, numbered."""

    def __init__(self, desk: Desk, store: Store, job: Job, previews: int) -> None:
        self.desk, self.store, self.job, self.previews = desk, store, job, previews
        self.number = -1

    async def all(self, ended: Callable[[Job], None]) -> AsyncGenerator[Event]:
        """From the beginning to the end, where `ended` is called with the job; a client that leaves ends the work,
        unless it goes on in the background."""
        begun = whole(self.job, self.store) | {"status": "in_progress"}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        for index, id_ in enumerate(_ids(self.job)):
            item = {"id": id_, "type": "image_generation_call", "status": "in_progress", "result": None}
            yield self._event("response.output_item.added", output_index=index, item=item)
            for state in ("in_progress", "generating"):
                yield self._call(state, index, id_)
        files: Mapping[str, bytes] = {}
        try:
            async with aclosing(self.desk.news(self.job)) as coming:
                async for news in coming:
                    if news.kind == "partial" and _ids(self.job) and news.data["index"] < self.previews:
                        yield self._partial(news.data)
                    elif news.kind == "ended":
                        self.job, files = news.data["job"], news.data["files"]
        except (asyncio.CancelledError, GeneratorExit):
            if not self.job.background:
                await asyncio.shield(run_in_threadpool(self.desk.cancel, self.job.id))
            raise
        response = await run_in_threadpool(whole, self.job, self.store, files)
        for event in self._end(response):
            yield event
        await run_in_threadpool(ended, self.job)

    def _partial(self, news: Mapping[str, Any]) -> Event:
        facts = answers.partial(self.job, news)
        del facts["created_at"]
        facts["partial_image_b64"] = facts.pop("b64_json")
        return self._call("partial_image", 0, _ids(self.job)[0], **facts)

    def _end(self, response: Json) -> Iterator[Event]:
        for index, item in enumerate(response["output"]):
            if item["type"] == "message":
                yield from self._said(index, item)
                continue
            if item["status"] == "completed":
                yield self._call("completed", index, item["id"])
            yield self._event("response.output_item.done", output_index=index, item=item)
        name = {"completed": "completed", "failed": "failed"}.get(response["status"], "incomplete")
        yield self._event(f"response.{name}", response=response)

    def _said(self, index: int, item: Json) -> Iterator[Event]:
        where = {"item_id": item["id"], "output_index": index, "content_index": 0}
        part, text = item["content"][0], item["content"][0]["text"]
        begun = {**item, "status": "in_progress", "content": []}
        yield self._event("response.output_item.added", output_index=index, item=begun)
        yield self._event("response.content_part.added", **where, part={**part, "text": ""})
        yield self._event("response.output_text.delta", **where, delta=text, logprobs=[])
        yield self._event("response.output_text.done", **where, text=text, logprobs=[])
        yield self._event("response.content_part.done", **where, part=part)
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _call(self, state: str, index: int, id_: str, **facts: Any) -> Event:
        return self._event(f"response.image_generation_call.{state}", item_id=id_, output_index=index, **facts)

    def _event(self, name: str, **data: Any) -> Event:
        self.number += 1
        return name, {"type": name, "sequence_number": self.number, **data}
