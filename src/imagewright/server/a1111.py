"""The routes of AUTOMATIC1111's web UI that its clients use: /sdapi/v1/txt2img, img2img, png-info, progress, ...

Names and shapes are that program's (its own API documentation at /docs, as of 1.10). What is not done here (scripts,
face restoration, a second pass of its own) is said in `info`, under `adjustments`. A mask is white where the picture
may change. `interrupt` cancels the work: the waiting request gets an error, where that program sends what it has.
"""

from __future__ import annotations

import asyncio
import json
import time
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from imagewright.engines.engine import ModelInfo
from imagewright.prompt.weights import weighted
from imagewright.provenance.record import parameters
from imagewright.request import Adjustment, ImageRequest
from imagewright.server import brought, jobs
from imagewright.server.desk import Desk, Outcome
from imagewright.server.errors import ApiError
from imagewright.server.jobs import Job
from imagewright.server.security import Caller, Maker
from imagewright.server.waiting import while_connected

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])
KINDS = ("txt2img", "img2img")
ALIASES: dict[str, tuple[str, ...]] = {  # our samplers, with that program's names for them
    "euler": ("Euler", "k_euler"),
    "heun": ("Heun", "k_heun"),
    "ddim": ("DDIM",),
    "dpmpp_2m": ("DPM++ 2M", "DPM++ 2M Karras", "k_dpmpp_2m"),
    "ancestral": ("Euler a", "k_euler_a"),
    "ancestral_wide": (),
    "heun_sde": (),
    "lcm": ("LCM",),
}
_BY_NAME = {alias.lower(): name for name, aliases in ALIASES.items() for alias in (name, *aliases)}
_PLAIN = {  # fields of that program that ask for nothing when they have these values
    "width": 512,
    "height": 512,
    "denoising_strength": 0.7,
    "subseed_strength": 0,
    "s_noise": 1,
    "resize_mode": 0,
    "mask_blur": 4,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "inpainting_fill": 0,
    "image_cfg_scale": 1.5,
}
_UNTOLD = {  # they change no picture here
    "do_not_save_samples",
    "do_not_save_grid",
    "save_images",
    "override_settings_restore_afterwards",
    "subseed",
    "seed_resize_from_h",
    "seed_resize_from_w",
    "s_tmax",
    "s_tmin",
    "s_churn",
    "eta",
    "firstphase_width",
    "firstphase_height",
    "hr_upscaler",
    "hr_second_pass_steps",
    "hr_resize_x",
    "hr_resize_y",
    "scheduler",
    "script_args",
    "include_init_images",
    "mask_blur_x",
    "mask_blur_y",
    "initial_noise_multiplier",
    "hr_scale",
    "sampler_index",
    "resize_mode",
}


class Options(BaseModel):
    """The options that are heard of; the others are taken and ignored, as the program's own clients send them all."""

    model_config = ConfigDict(extra="allow")
    sd_model_checkpoint: str | None = None


class Drawing(BaseModel):
    """The body of txt2img. Fields that are not listed here are taken, and told of where they ask for something."""

    model_config = ConfigDict(extra="allow")
    prompt: str = ""
    negative_prompt: str | None = ""
    seed: int | None = -1
    steps: int | None = Field(default=None, ge=1)
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int | None = Field(default=1, ge=1)
    n_iter: int | None = Field(default=1, ge=1)
    sampler_name: str | None = None
    styles: list[str] | None = None
    tiling: bool | None = False
    enable_hr: bool | None = False
    hr_scale: float | None = Field(default=2.0, ge=1, le=8)
    denoising_strength: float | None = None
    override_settings: Options | None = None
    send_images: bool | None = True


class Redrawing(Drawing):
    """The body of img2img."""

    init_images: list[str] = Field(min_length=1, max_length=1)
    mask: str | None = None
    mask_blur: int | None = Field(default=4, ge=0, le=1024)
    inpainting_mask_invert: int | bool | None = 0


class PngInfo(BaseModel):
    """The body of png-info."""

    image: str


@dataclass(frozen=True)
class _Seen:
    """Steps done and in all, and the newest preview's file."""

    done: int = 0
    total: int = 0
    picture: bytes = b""


@router.post("/txt2img")
async def txt2img(body: Drawing, http: Request, caller: Maker) -> dict[str, Any]:
    """Pictures from words."""
    return await _draw(http, caller, body, {})


@router.post("/img2img")
async def img2img(body: Redrawing, http: Request, caller: Maker) -> dict[str, Any]:
    """Pictures from a picture and words; with a mask, only what is white in it changes."""
    (image,) = await brought.decoded(http, [_bytes(body.init_images[0], "init_images")], "init_images")
    fields: dict[str, Any] = {"image": image.image}
    if body.mask is not None:
        (mask,) = await brought.decoded(http, [_bytes(body.mask, "mask")], "mask")
        fields |= {"mask": _mask(mask.image, image.image.size, bool(body.inpainting_mask_invert))}
        fields |= {"feather": body.mask_blur or 0}
    fields["strength"] = 0.75 if body.denoising_strength is None else body.denoising_strength
    return await _draw(http, caller, body, fields)


@router.post("/png-info")
async def png_info(body: PngInfo, http: Request, caller: Maker) -> dict[str, Any]:
    """What a picture says of how it was made: a stranger's words, shown and never followed."""
    (upload,) = await brought.decoded(http, [_bytes(body.image, "image")], "image")
    told = dict(upload.record or {})
    try:
        text = parameters(told) if told else ""
    except (KeyError, TypeError):
        text = ""
    return {"info": text, "items": {"parameters": text} if text else {}, "parameters": told}


@router.get("/progress")
async def progress(http: Request, caller: Maker, skip_current_image: bool = False) -> dict[str, Any]:
    """How far the caller's newest request is: a share, and the seconds that it may still take."""
    open_jobs = await run_in_threadpool(_open, http, caller)
    job = open_jobs[0] if open_jobs else None
    seen = _watched(http).get(job.id, _Seen(job.done, job.total)) if job else _Seen()
    told = _progress(job, seen, len(open_jobs))
    return told | {"current_image": None} if skip_current_image else told


@router.post("/interrupt")
async def interrupt(http: Request, caller: Maker) -> dict[str, Any]:
    """Cancel all of the caller's requests that came through these routes."""
    desk: Desk = http.app.state.desk
    for job in await run_in_threadpool(_open, http, caller):
        await run_in_threadpool(desk.cancel, job.id)
    return {}


@router.get("/samplers")
async def samplers(caller: Maker) -> list[dict[str, Any]]:
    """The samplers, with that program's names for them."""
    return [{"name": name, "aliases": list(aliases), "options": {}} for name, aliases in ALIASES.items()]


@router.get("/sd-models")
async def sd_models(http: Request, caller: Maker) -> list[dict[str, Any]]:
    """The models that the caller may use."""
    served = await run_in_threadpool(http.app.state.gateway.models, caller)
    facts = [(name, info.digest) for name, info in served]
    return [
        {
            "title": name,
            "model_name": name,
            "hash": digest[:10] or None,
            "sha256": digest or None,
            "filename": name,
            "config": None,
        }
        for name, digest in facts
    ]


@router.get("/options")
async def options(http: Request, caller: Maker) -> dict[str, Any]:
    """The model that is chosen, and what stays as it is."""
    chosen = _chosen(http).get(caller.key_id)
    if chosen is None:
        chosen = (await run_in_threadpool(_model, http, caller, None, ImageRequest(prompt="a picture"))).name
    return {"sd_model_checkpoint": chosen, "samples_format": "png"}


@router.post("/options")
async def set_options(body: Options, http: Request, caller: Maker) -> dict[str, Any]:
    """Choose the model for the caller's next requests, until the server ends."""
    if body.sd_model_checkpoint is not None:
        await run_in_threadpool(_model, http, caller, body.sd_model_checkpoint, ImageRequest(prompt="a picture"))
        _chosen(http)[caller.key_id] = body.sd_model_checkpoint
    return {}


async def _draw(http: Request, caller: Caller, body: Drawing, fields: dict[str, Any]) -> dict[str, Any]:
    desk: Desk = http.app.state.desk
    order = _order(body, fields)
    override = body.override_settings or Options()
    asked = override.sd_model_checkpoint or _chosen(http).get(caller.key_id)
    order = _within(order, await run_in_threadpool(_model, http, caller, asked, order))
    kind = "img2img" if "image" in fields else "txt2img"
    job = await desk.submit(caller, order, kind=kind, asked=asked, previews=3, request_id=http.state.request_id)
    outcome = await while_connected(http, _outcome(http, desk, job))
    return await run_in_threadpool(_answer, body, order, outcome)


async def _outcome(http: Request, desk: Desk, job: Job) -> Outcome:
    """The outcome of a job; how far it is can be asked for meanwhile."""
    watched, files = _watched(http), dict[str, bytes]()
    try:
        async with aclosing(desk.news(job)) as coming:
            async for news in coming:
                if news.kind == "progress":
                    watched[job.id] = replace(watched.get(job.id, _Seen()), **news.data)
                elif news.kind == "partial":
                    watched[job.id] = replace(watched.get(job.id, _Seen()), picture=news.data["file"])
                elif news.kind == "ended":
                    files = news.data["files"]
        return await run_in_threadpool(desk.finished, job.id, files)
    except (asyncio.CancelledError, GeneratorExit):
        await asyncio.shield(run_in_threadpool(desk.cancel, job.id))
        raise
    finally:
        watched.pop(job.id, None)


def _order(body: Drawing, fields: dict[str, Any]) -> ImageRequest:
    """The request that a body asks for. Raises RequestError."""
    said = list(_unheard(body))
    words = weighted(body.prompt)
    sampler = None
    if body.sampler_name:
        sampler = _BY_NAME.get(body.sampler_name.lower())
        if sampler is None:
            said.append(Adjustment("sampler", body.sampler_name, None, "there is no such sampler; the model's own"))
    size = (body.width or 512, body.height or 512)
    if body.enable_hr:
        scale = body.hr_scale or 2.0
        size = (round(size[0] * scale), round(size[1] * scale))
        said.append(Adjustment("enable_hr", True, f"{size[0]}x{size[1]}", "the model draws once, and it is enlarged"))
    if body.styles:
        said.append(Adjustment("styles", body.styles, body.styles[0], "one style at a time"))
    return ImageRequest(
        prompt=words.text,
        emphasis=words.emphasis,
        negative_prompt=", ".join(part for part in (body.negative_prompt, *words.negative) if part),
        n=(body.batch_size or 1) * (body.n_iter or 1),
        size=size if "mask" not in fields else None,
        seed=None if body.seed is None or body.seed < 0 else body.seed,
        num_inference_steps=body.steps,
        guidance_scale=body.cfg_scale,
        sampler=sampler,
        style=body.styles[0] if body.styles else None,
        tile=bool(body.tiling),
        adjustments=tuple(said),
        **fields,
    )


def _model(http: Request, caller: Caller, asked: str | None, order: ImageRequest) -> ModelInfo:
    """What a name stands for. Raises ApiError."""
    gateway = http.app.state.gateway
    engine, name = gateway.workshop.catalog.find(gateway.choose(caller, asked, order).model)
    found: ModelInfo = engine.find(name)
    return found


def _within(order: ImageRequest, info: ModelInfo) -> ImageRequest:
    """The order without a sampler or style that the model has not got: these clients always name one."""
    changes, said = dict[str, Any](), list(order.adjustments)
    for name, allowed in (("sampler", info.capabilities.samplers), ("style", info.capabilities.styles)):
        if (asked := getattr(order, name)) is not None and asked not in allowed:
            said.append(Adjustment(name, asked, None, f"this model has no such {name}"))
            changes[name] = None
    return replace(order, **changes, adjustments=tuple(said))


def _unheard(body: Drawing) -> Sequence[Adjustment]:
    """What a body asks for that is not done here."""
    extra = {name: value for name, value in (body.model_extra or {}).items() if name not in _UNTOLD}
    asked = {name: value for name, value in extra.items() if value and value != _PLAIN.get(name, not value)}
    scripts = asked.pop("alwayson_scripts", {})
    if isinstance(scripts, dict):
        asked |= {f"alwayson_scripts.{name}": True for name, told in scripts.items() if _is_on(told)}
    return [Adjustment(name, _short(value), None, "not done here") for name, value in asked.items()]


def _is_on(script: Any) -> bool:
    """Whether a script is asked for: clients send those that are off as well."""
    arguments = script.get("args") if isinstance(script, dict) else script
    return bool(arguments) and arguments != [False]


def _short(value: Any) -> str:
    return str(value)[:80]


def _answer(body: Drawing, order: ImageRequest, outcome: Outcome) -> dict[str, Any]:
    """The pictures, what was asked for, and what was done, as that program tells it: JSON inside a string."""
    records = outcome.result["records"]
    seeds = [record["seed"] for record in records]
    first = records[0]
    info = {
        "prompt": order.prompt,
        "all_prompts": [order.prompt] * len(records),
        "negative_prompt": order.negative_prompt,
        "seed": seeds[0],
        "all_seeds": seeds,
        "width": first["size"][0],
        "height": first["size"][1],
        "sampler_name": first.get("sampler"),
        "cfg_scale": first.get("guidance_scale"),
        "steps": first.get("num_inference_steps"),
        "batch_size": order.n,
        "sd_model_name": outcome.result["model"],
        "sd_model_hash": str(first.get("model_digest", ""))[:10],
        "infotexts": [parameters(record) for record in records],
        "adjustments": outcome.result["adjustments"],
        "job": outcome.job.id,
    }
    pictures = [_base64(file) for _, file in outcome.pictures] if body.send_images is not False else []
    asked = body.model_dump(exclude={"init_images", "mask", *(body.model_extra or {})})
    return {"images": pictures, "parameters": asked, "info": json.dumps(info)}


def _bytes(text: str, param: str) -> bytes:
    """The bytes of base64 text, with or without the head of a data URL. Raises ApiError."""
    try:
        return a2b_base64(text.partition(",")[2] if text[:5].lower() == "data:" else text)
    except (Base64Error, ValueError) as error:
        raise ApiError(400, f"{param} holds no base64.", param=param, code="invalid_value") from error


def _base64(file: bytes) -> str:
    return b2a_base64(file, newline=False).decode()


def _mask(drawn: Image.Image, size: tuple[int, int], inverted: bool) -> Image.Image:
    """That program's mask, white where the picture may change, as OpenAI's: transparent there."""
    flat = Image.new("RGB", drawn.size)
    flat.paste(drawn, mask=drawn.getchannel("A") if drawn.mode == "RGBA" else None)
    change = flat.convert("L").resize(size, Image.Resampling.BILINEAR).point(lambda value: 255 if value >= 128 else 0)
    mask = Image.new("RGBA", size, "black")
    mask.putalpha(change if inverted else ImageChops.invert(change))
    return mask


def _open(http: Request, caller: Caller) -> list[Job]:
    """The caller's requests of these routes that are not done, the newest first."""
    with http.app.state.database.read() as connection:
        found = jobs.listed(connection, caller.key_id, states=jobs.OPEN, limit=100)
    return [job for job in found if job.kind in KINDS]


def _progress(job: Job | None, seen: _Seen, count: int) -> dict[str, Any]:
    share = seen.done / seen.total if seen.total else 0.0
    begun = job.started if job is not None and job.started else time.time()
    state = {
        "skipped": False,
        "interrupted": bool(job and job.cancel),
        "job": job.id if job else "",
        "job_count": count,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(begun)),
        "job_no": 0,
        "sampling_step": seen.done,
        "sampling_steps": seen.total,
    }
    left = (time.time() - begun) * (1 - share) / share if share else 0.0
    picture = _base64(seen.picture) if seen.picture else None
    return {"progress": share, "eta_relative": left, "state": state, "current_image": picture, "textinfo": None}


def _chosen(http: Request) -> dict[str, str]:
    """The model that each key chose by /options."""
    return _kept(http, "a1111_chosen")


def _watched(http: Request) -> dict[str, _Seen]:
    """How far the jobs are that are waited for here."""
    return _kept(http, "a1111_watched")


def _kept(http: Request, name: str) -> dict[str, Any]:
    state = http.app.state
    if not hasattr(state, name):
        setattr(state, name, {})
    found: dict[str, Any] = getattr(state, name)
    return found
