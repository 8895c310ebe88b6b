"""What one does with a picture: edit, fill, expand, vary, blend, restyle, upscale; and back: undo.

Each takes a picture (a PIL image or a file's path) and gives an ImageResult whose records carry the stack of edits (see
chain.py). `fields` are ImageRequest's (n, seed, model, feather, guidance_scale, ...). What a mask keeps stays byte for
byte (see editing/place.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagewright import chain
from imagewright.chain import Opened, Picture
from imagewright.editing import expand as canvas
from imagewright.editing import masks, place
from imagewright.editing.stack import Beside, Stack, Step
from imagewright.engines.catalog import Catalog
from imagewright.engines.engine import kept
from imagewright.errors import PictureError, RequestError, UnsupportedError
from imagewright.pictures import open_picture
from imagewright.provenance import record as records
from imagewright.request import MAX_PICTURES, Adjustment, ImageRequest, ImageResult
from imagewright.watch import Progress
from imagewright.workshop import Workshop

SURROUNDINGS = "background"  # what a hole without words is filled with
SUBTLE, STRONG = 0.35, 0.7  # strengths of variations
RESTYLE = 0.6  # strength of another style
FEATHER = 128  # one pixel of feather for so many of the picture's longer side, unless told
GROWN = 64  # a selection is grown by one pixel for so many, so that no rim of the thing is left
OUTPUT = ("output_format", "output_compression")
FACTORS = (2, 4)


def edit(
    picture: Picture,
    prompt: str,
    *,
    mask: Picture | None = None,
    region: str | None = None,
    select: str | None = None,
    invert: bool = False,
    original: Picture | None = None,
    workshop: Workshop | None = None,
    progress: Progress | None = None,
    **fields: Any,
) -> ImageResult:
    """The picture changed as the words say.

    With `mask` (transparent, or white without alpha, may change), `region` (x,y,w,h in pixels or percent) or `select`
    (what to find, as "the hat"): only there, as `fill`. Without: an instruction, for a model that follows them; else
    image to image, where the words describe the whole, which is said. Raises RequestError, PictureError, ModelError.
    """
    if any(one is not None for one in (mask, region, select)):
        fields |= {"mask": mask, "region": region, "select": select, "invert": invert, "original": original}
        return fill(picture, prompt, workshop=workshop, progress=progress, **fields)
    shop = workshop or shared()
    before = _opened(picture, shop, original, fields)
    said: list[Adjustment] = []
    if model := able(shop.catalog, fields, "image", "instruction"):
        fields |= {"instruction": True, "model": model}
    else:
        reason = "the model follows no instructions: the words describe the whole picture"
        said.append(Adjustment("instruction", True, False, reason))
    return _done("edit", before, {"prompt": prompt, **fields}, shop, progress, ["image"], said=said)


def fill(
    picture: Picture,
    prompt: str | None = None,
    *,
    mask: Picture | None = None,
    region: str | None = None,
    select: str | None = None,
    invert: bool = False,
    original: Picture | None = None,
    workshop: Workshop | None = None,
    progress: Progress | None = None,
    **fields: Any,
) -> ImageResult:
    """The hole filled with what the words say; all else stays byte for byte. Without words what surrounds the hole
    goes on, which removes what was there: no model draws it, unless one is named.

    The hole is given by one of `mask`, `region` and `select`, as in `edit`; `invert` turns it inside out. Raises
    RequestError, PictureError, ModelError.
    """
    shop = workshop or shared()
    before = _opened(picture, shop, original, fields)
    hole, said = hole_of(before.image, mask=mask, region=region, select=select, invert=invert)
    if prompt is None and not _modelled(fields):
        return _continued(Step("fill", {}, mask=hole), before, before.image, hole, said, fields)
    if prompt is None:
        prompt = SURROUNDINGS
        said.append(Adjustment("prompt", None, prompt, "no words were given"))
    fields.setdefault("feather", feather_of(before.image.size))
    return _done("fill", before, {"prompt": prompt, **fields}, shop, progress, ["image", "mask"], said=said, mask=hole)


def _continued(
    step: Step, before: Opened, image: Image.Image, hole: Image.Image, said: list[Adjustment], fields: dict[str, Any]
) -> ImageResult:
    """A step without words: what surrounds the `hole` of `image` (the picture, or its canvas) goes on, by no model."""
    output = {name: fields.pop(name) for name in OUTPUT if name in fields}
    said += [Adjustment(name, value, None, "without words no model draws") for name, value in fields.items()]
    asked = ImageRequest(prompt=SURROUNDINGS, image=image, mask=hole, **output)
    said += [Adjustment(name, output[name], used, reason) for name, used, reason in kept(asked)]
    if step.margins is None:
        made = chain.continued(before.image, hole, before.of_model)
    else:
        made = chain.grown(before.image, step.margins, before.of_model)
    result = chain.with_stack(chain.stored_as(made, **output), step, before)
    return replace(result, adjustments=(*said, *result.adjustments))


def _modelled(fields: dict[str, Any]) -> bool:
    return bool(fields.get("model") or fields.get("technique"))


def expand(
    picture: Picture,
    prompt: str | None = None,
    *,
    left: str | int = 0,
    right: str | int = 0,
    up: str | int = 0,
    down: str | int = 0,
    zoom_out: float | None = None,
    pan: str | None = None,
    amount: str = "25%",
    original: Picture | None = None,
    workshop: Workshop | None = None,
    progress: Progress | None = None,
    **fields: Any,
) -> ImageResult:
    """The picture on a larger canvas, its own pixels unchanged: so many pixels, or percent ("25%"), at each side, or
    `zoom_out` times as wide and high, or moved (`pan`: left, right, up, down, by `amount`), which cuts off behind.

    Without words what there is goes on, and no model draws it, unless one is named: then the words that the picture
    was made with count. Raises RequestError, PictureError, ModelError.
    """
    shop = workshop or shared()
    before = _opened(picture, shop, original, fields)
    size = before.image.size
    sides = [str(side) for side in (left, right, up, down)]
    ways = [any(side != "0" for side in sides), zoom_out is not None, pan is not None]
    if sum(ways) > 1:
        raise RequestError("Expand in one way at a time.", "Give sides, or a factor to zoom out, or a way to pan.")
    if zoom_out is not None:
        margins = canvas.zoom_out(size, zoom_out)
    elif pan is not None:
        margins = canvas.pan(size, pan, amount)
    else:
        margins = canvas.margins(size, *sides)
    margins.added.around(size)
    if prompt is None and not _modelled(fields):
        larger = canvas.canvas(before.image, margins.added)
        return _continued(Step("expand", {}, margins=margins), before, *larger, [], fields)
    prompt, said = _words(before, prompt, SURROUNDINGS)
    fields.setdefault("feather", 0)
    needs = ["image", "mask"]
    return _done("expand", before, {"prompt": prompt, **fields}, shop, progress, needs, said=said, margins=margins)


def vary(
    picture: Picture,
    prompt: str | None = None,
    *,
    strong: bool = False,
    original: Picture | None = None,
    workshop: Workshop | None = None,
    progress: Progress | None = None,
    **fields: Any,
) -> ImageResult:
    """The picture drawn again with small changes, or `strong` ones; `strength` (0-1) says how much exactly.

    Without words, those the picture was made with count, else what it seems to show. Raises RequestError,
    PictureError, ModelError.
    """
    shop = workshop or shared()
    before = _opened(picture, shop, original, fields)
    prompt, said = _words(before, prompt)
    fields = {
        "strength": STRONG if strong else SUBTLE,
        **{name: one for name, one in fields.items() if one is not None},
    }
    return _done("vary", before, {"prompt": prompt, **fields}, shop, progress, ["image"], said=said)


def blend(
    pictures: Sequence[Picture],
    prompt: str | None = None,
    *,
    weights: Sequence[float] = (),
    workshop: Workshop | None = None,
    progress: Progress | None = None,
    **fields: Any,
) -> ImageResult:
    """One picture out of two or more, by `weights` (to about a sixteenth; the same for all by default).

    Without words, those of all pictures count. Raises RequestError, PictureError, ModelError.
    """
    if len(pictures) < 2:
        raise RequestError("Blending needs two pictures or more.", "Give another one.")
    shop = workshop or shared()
    opened = [_opened(one, shop, None, fields) for one in pictures]
    said: list[Adjustment] = []
    if prompt is None:
        prompt = " and ".join(dict.fromkeys(_words(one, None)[0] for one in opened))
        said = [Adjustment("prompt", None, prompt, "from the pictures")]
    counts = shares(weights or [1] * len(pictures), len(pictures))
    others = [one for one, count in zip(pictures, [counts[0] - 1, *counts[1:]], strict=True) for _ in range(count)]
    needs = ["image", "images"]
    return _done("blend", opened[0], {"prompt": prompt, **fields}, shop, progress, needs, others, said=said)


def shares(weights: Sequence[float], pictures: int) -> list[int]:
    """How often each picture counts: the smallest numbers, 16 together at most, in the proportion of `weights`.

    Raises RequestError.
    """
    if len(weights) != pictures or not all(0 < weight < inf for weight in weights):
        raise RequestError(f"{pictures} pictures need {pictures} weights above 0.", "Give one for each, such as 2,1.")
    if pictures > MAX_PICTURES:
        raise RequestError(f"{pictures} pictures are too many.", f"Blend at most {MAX_PICTURES}.")

    def error(counts: list[int]) -> float:
        pairs = zip(counts, weights, strict=True)
        return round(max(abs(count / sum(counts) - weight / sum(weights)) for count, weight in pairs), 2)

    totals = range(pictures, MAX_PICTURES + 1)
    tried = [[max(1, round(weight * total / sum(weights))) for weight in weights] for total in totals]
    return min((counts for counts in tried if sum(counts) <= MAX_PICTURES), key=error)


def restyle(
    picture: Picture,
    prompt: str | None = None,
    *,
    like: Picture | None = None,
    style: str | None = None,
    original: Picture | None = None,
    workshop: Workshop | None = None,
    progress: Progress | None = None,
    **fields: Any,
) -> ImageResult:
    """The picture in the style of another (`like`), or in a named one of the model's. Raises RequestError,
    PictureError, ModelError."""
    if (like is None) == (style is None):
        raise RequestError("Restyling needs one style.", "Give a picture to be like, or the name of a style.")
    shop = workshop or shared()
    before = _opened(picture, shop, original, fields)
    prompt, said = _words(before, prompt)
    asked = {"prompt": prompt, "strength": RESTYLE, **fields, **({"style": style} if style else {})}
    if like is None:
        return _done("restyle", before, asked, shop, progress, ["image"], said=said)
    needs = ["image", "style_images"]
    return _done("restyle", before, asked, shop, progress, needs, [like], said=said, kind="style_images")


def upscale(
    picture: Picture,
    factor: int = 2,
    *,
    original: Picture | None = None,
    workshop: Workshop | None = None,
    **output: Any,
) -> ImageResult:
    """The picture 2 or 4 times as wide and high, outlines kept crisp; no model. `output`: output_format,
    output_compression. Raises RequestError, PictureError."""
    if factor not in FACTORS:
        raise RequestError(f"Cannot upscale {factor} times.", "Use 2 or 4.")
    before = _opened(picture, workshop or shared(), original, {})
    result = chain.stored_as(chain.enlarged(before.image, factor, before.of_model), **output)
    return chain.with_stack(result, Step("upscale", {}, factor=factor), before)


def undo(
    picture: Picture,
    steps: int = 1,
    *,
    original: Picture | None = None,
    model: str | None = None,
    workshop: Workshop | None = None,
    progress: Progress | None = None,
    **output: Any,
) -> ImageResult:
    """The picture without its last edits: the others are made again from the original. `model` (ENGINE/NAME) may be
    used although the file names it; `output` as in `upscale`. Raises RequestError, PictureError, ModelError."""
    shop = workshop or shared()
    stack, folders = stack_of(picture)
    if not 1 <= steps <= len(stack.steps):
        raise RequestError(f"{steps} steps cannot be undone: there are {len(stack.steps)}.", "See: imagewright edits")
    left = replace(stack, steps=stack.steps[:-steps])
    image = chain.replayed(left, shop, folders, original, [model] if model else [], progress)
    first = original or stack.original.path(folders)
    record = None if left.steps or first is None else chain.record_of(first)[0]
    if record is None:
        left = replace(left, result=place.digest(image))
        of_model = bool(stack.prompt) or any(step.model for step in left.steps)
        record = records.of_tool(of_model, image_sha256=stack.original.sha256, prompt=left.words(), verb="undo")
        record |= {"size": list(image.size), **({"edits": left.to_json()} if left.steps else {})}
    result = ImageResult(images=(image,), records=(record,), model="", engine="", size=image.size)
    return chain.stored_as(result, **output)


def stack_of(picture: Picture) -> tuple[Stack, tuple[Path, ...]]:
    """The edits that led to a picture, and where its neighbours lie. Raises PictureError where it has none."""
    record, folders = chain.record_of(picture)
    stack = Stack.of(record)
    if stack is None:
        raise PictureError("The picture holds no edits.", "Give one that imagewright edited.")
    return stack, folders


def hole_of(
    image: Image.Image,
    *,
    mask: Picture | None = None,
    region: str | None = None,
    select: str | None = None,
    invert: bool = False,
) -> tuple[Image.Image, list[Adjustment]]:
    """The mask by one of three ways. Raises RequestError for none or several, PictureError."""
    if sum(one is not None for one in (mask, region, select)) != 1:
        raise RequestError(
            "Where may the picture change?", "Give one of: a mask, a region (x,y,w,h), or what to select."
        )
    said: list[Adjustment] = []
    if region is not None:
        found = masks.region(region, image.size)
    elif select is not None:
        found = _selected(image, select)
    else:
        assert mask is not None
        found, said = masks.fitted(mask if isinstance(mask, Image.Image) else open_picture(mask), image.size)
    return (masks.inverted(found) if invert else found), said


def _selected(image: Image.Image, words: str) -> Image.Image:
    from imagewright.editing.select import select

    area = np.asarray(select(image, words).area) > 0
    return masks.mask_of(masks.grown(area, max(1, max(image.size) // GROWN)))


def feather_of(size: tuple[int, int]) -> int:
    """The feather of a fill, in pixels, unless told."""
    return max(size) // FEATHER


def able(catalog: Catalog, fields: dict[str, Any], *needs: str) -> str | None:
    """The model to use: the one that `fields` name, the default one, or the first of this machine that has all `needs`.

    None where there is none. A hosted service is used, and paid, only where it is named.
    """
    wanted, technique = fields.get("model"), fields.get("technique")
    if wanted is not None or technique is not None:
        engine, name = catalog.find(wanted, technique)
        info = engine.find(name)
        return (wanted or f"{info.engine}/{info.name}") if _can(info.capabilities, needs) else None
    for listing in catalog.listings():
        for info in listing.models:
            if not info.is_hosted and _can(info.capabilities, needs):
                return f"{listing.engine}/{info.name}"
    return None


def _can(capabilities: Any, needs: Collection[str]) -> bool:
    return all(need in capabilities.features or getattr(capabilities, need, False) for need in needs)


def _opened(picture: Picture, workshop: Workshop, original: Picture | None, fields: dict[str, Any]) -> Opened:
    return chain.opened(picture, workshop, original, [fields["model"]] if fields.get("model") else [])


def _words(before: Opened, prompt: str | None, otherwise: str | None = None) -> tuple[str, list[Adjustment]]:
    """The words of the whole picture: those given, those it was made with, or `otherwise`; else what it shows."""
    if prompt is not None:
        return prompt, []
    made_with = before.stack.words()
    if made_with:
        return made_with, [Adjustment("prompt", None, made_with, "from the picture's record")]
    if otherwise is not None:
        return otherwise, [Adjustment("prompt", None, otherwise, "no words were given")]
    from imagewright.refine.describe import describe

    seen = describe(before.image, 1)[0].text
    return seen, [Adjustment("prompt", None, seen, "what the picture seems to show")]


def _done(
    verb: str,
    before: Opened,
    asked: dict[str, Any],
    workshop: Workshop,
    progress: Progress | None,
    needs: Sequence[str],
    others: Sequence[Picture] = (),
    *,
    said: Sequence[Adjustment] = (),
    kind: str = "images",
    mask: Image.Image | None = None,
    margins: canvas.Margins | None = None,
) -> ImageResult:
    """The step made, with its stack in the records. The first model that has what is needed is taken."""
    model = able(workshop.catalog, asked, *needs)
    if model is None:
        has = " and ".join(need.replace("_", " ") for need in needs)
        raise UnsupportedError(f"No such model takes {has}.", "Choose one that does: imagewright models")
    further = [masks.upright(one if isinstance(one, Image.Image) else open_picture(one)) for one in others]
    names = ["" if isinstance(one, Image.Image) else Path(one).name for one in others]
    beside = tuple(Beside(name, place.digest(image)) for name, image in zip(names, further, strict=True))
    step = Step.of(verb, asked, mask=mask, margins=margins, pictures={kind: beside} if others else {})
    asked = {**asked, "model": model, **({kind: tuple(further)} if others else {})}
    result = chain.applied(step, before.image, asked, workshop, progress)
    result = chain.with_stack(result, step, before)
    return replace(result, adjustments=(*said, *result.adjustments))


shared = cache(Workshop)  # so that the second call finds the model loaded
