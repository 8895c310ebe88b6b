"""Chains of edits that do not wear a picture out: opened with its stack, edited, re-applied from the original.

Where a file has exactly the pixels that its stack leads to (PNG, lossless WebP), these are where the next edit starts.
Where they were stored with losses, the whole stack is re-applied from the original, so that no edit is compressed
twice. Where neither can be, the picture is edited as it is, its stack starts anew, and an Adjustment says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagewright.editing import cutout, expand, masks, place
from imagewright.editing.complete import completed
from imagewright.editing.expand import Margins
from imagewright.editing.recolour import parse_colour, recolor
from imagewright.editing.stack import Beside, Stack, Step
from imagewright.engines.catalog import DEFAULT_ENGINE
from imagewright.errors import ImagewrightError, PictureError, RequestError
from imagewright.pictures import encode, open_picture
from imagewright.provenance import metadata
from imagewright.provenance import record as records
from imagewright.refine import upscale
from imagewright.request import MAX_SEED, MAX_SIDE, Adjustment, ImageRequest, ImageResult, joined
from imagewright.watch import Progress
from imagewright.workshop import Workshop

Picture = Image.Image | Path | str


@dataclass(frozen=True)
class Opened:
    """A picture to edit: 8-bit pixels, upright, with the stack that leads to them and where its neighbours lie.

    `record` is the file's own, if any. `of_model`: a trained model had a part in it, as far as the file says.
    `profile`: what its colours mean (ICC). `adjustments` say where the stack had to start anew.
    """

    image: Image.Image
    stack: Stack
    record: dict[str, Any] | None = None
    folders: tuple[Path, ...] = ()
    of_model: bool = False
    profile: bytes | None = None
    adjustments: tuple[Adjustment, ...] = ()


def opened(
    picture: Picture, workshop: Workshop, original: Picture | None = None, trusted: Collection[str] = ()
) -> Opened:
    """A picture, from memory or a file, without the losses of its storage where its stack can be re-applied.

    `original` is the picture that the stack starts from, if it is not beside the file. `trusted` names models
    (ENGINE/NAME), besides the embedded engine's, that the record may choose. Raises PictureError.
    """
    found = picture if isinstance(picture, Image.Image) else open_picture(picture)
    name = "" if isinstance(picture, Image.Image) else Path(picture).name
    image, (record, folders) = masks.upright(found), record_of(picture, found)
    prompt = str((record or {}).get("prompt") or "")
    kind = metadata.read(found).digital_source_type or (records.source_type(record) if record else "")
    stack = Stack(Beside(name, place.digest(image)), prompt=prompt)
    anew = Opened(image, stack, record, folders, "trained" in kind.lower(), _profile(found))
    try:
        found_stack = Stack.of(record)
        if found_stack is None or record is None:
            return anew
        if found_stack.result == place.digest(image):
            return replace(anew, stack=found_stack)
        again = replayed(found_stack, workshop, folders, original, trusted)
        if place.digest(stored(again, record)) != place.digest(image):
            raise PictureError("The picture was changed since, outside this program.", "")
        return replace(anew, image=again, stack=found_stack)
    except ImagewrightError as error:
        said = Adjustment("edits", "the whole stack", "the picture as it is", error.message)
        return replace(anew, adjustments=(said,))


def record_of(picture: Picture, image: Image.Image | None = None) -> tuple[dict[str, Any] | None, tuple[Path, ...]]:
    """The record of a picture (its file may be opened already, as `image`), and its folder. Raises PictureError."""
    if isinstance(picture, Image.Image):
        record = picture.info.get("imagewright")
        return (record if isinstance(record, dict) else None), ()
    found = metadata.read(image or open_picture(picture)).record
    return found, (Path(picture).absolute().parent,)


def _profile(image: Image.Image) -> bytes | None:
    """What the colours of an RGB picture mean; others are converted, and theirs does not fit the result."""
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and image.mode in ("RGB", "RGBA") else None


def stored(image: Image.Image, record: dict[str, Any]) -> Image.Image:
    """What a file written from `image` as `record` says would show."""
    output_format = str(record["output_format"])
    laid, _ = upscale.lay_on(image, str(record["background"]), output_format)
    return masks.eight_bit(open_picture(encode(laid, output_format, int(record["output_compression"]))))


def original_of(stack: Stack, folders: Sequence[Path], original: Picture | None = None) -> Image.Image:
    """The picture that a stack starts from: `original`, or the neighbour of that name with those pixels.

    Raises PictureError where it is not there, or `original` is another picture.
    """
    if original is None:
        original = stack.original.path(folders)
        if original is None:
            name = f"{stack.original.file!r} " if stack.original.file else ""
            raise PictureError(
                f"The original {name}is not beside the picture, or was changed.", "Give it with --original FILE."
            )
    image = masks.upright(original if isinstance(original, Image.Image) else open_picture(original))
    if place.digest(image) != stack.original.sha256:
        raise PictureError(
            f"The original given is not the picture that was edited: {stack.original.file!r}.", "Give that one."
        )
    return image


def replayed(
    stack: Stack,
    workshop: Workshop,
    folders: Sequence[Path],
    original: Picture | None = None,
    trusted: Collection[str] = (),
    progress: Progress | None = None,
) -> Image.Image:
    """All steps of a stack applied to its original, in memory. Raises PictureError, ModelError, RequestError."""
    image = original_of(stack, folders, original)
    known = {f"{DEFAULT_ENGINE}/{info.name}" for info in workshop.catalog.engine(DEFAULT_ENGINE).models()}
    for index, step in enumerate(stack.steps):
        model = f"{step.engine}/{step.model}"
        if step.engine is not None and model not in known | set(trusted):
            raise PictureError(
                f"The step {step.told()!r} was made by the model {model!r}.", f"If you trust it: --model {model}"
            )
        asked = {**step.again(folders), "model": model}
        image = applied(step, image, asked, workshop, _part(progress, index, len(stack.steps)))[0]
    return image


def applied(
    step: Step, image: Image.Image, asked: Mapping[str, Any], workshop: Workshop, progress: Progress | None = None
) -> ImageResult:
    """What one step makes of `image`. `asked` are the request's fields, without the image and the mask.

    A step without a model needs none. Raises RequestError, ModelError.
    """
    if step.verb == "upscale":
        return enlarged(image, step.factor or 1)
    if step.verb == "remove_background":
        return _unsigned(cutout.remove_background(image).image)
    if step.verb == "set_background":
        return _unsigned(grounded(image, str(step.fields.get("colour"))))
    if step.verb == "recolor":
        return _unsigned(recolor(image, str(step.fields.get("colour")), area_of(image, step)))
    if step.plain and step.mask is not None:
        return continued(image, step.mask)
    if step.plain and step.margins is not None:
        return grown(image, step.margins)
    if step.margins is None:
        return workshop.make(ImageRequest(**asked, image=image, mask=step.mask), progress)
    count, seed = asked.get("n", 1), asked.get("seed")
    results = []
    for index in range(count):
        one = {**asked, "n": 1, "seed": None if seed is None else (seed + index) % MAX_SEED}
        results.append(_expanded(image, step.margins, one, workshop, _part(progress, index, count)))
    return joined(results)


def _expanded(
    image: Image.Image, margins: Margins, asked: Mapping[str, Any], workshop: Workshop, progress: Progress | None
) -> ImageResult:
    """One expanded picture: every strip sees those before it."""
    strips = expand.steps(image.size, margins)
    results = []
    for index, strip in enumerate(strips):
        last = index == len(strips) - 1
        larger, mask = expand.canvas(image, strip)
        request = ImageRequest(**asked, image=larger, mask=mask)
        request = request if last else replace(request, output_format="png")
        results.append(workshop.make(request, _part(progress, index, len(strips))))
        image, asked = results[-1][0], {**asked, "seed": results[-1].records[0]["seed"]}
    cut = expand.cropped(image, margins)
    record = {**results[-1].records[0], "size": list(cut.size), "strips": len(strips)}
    whole = joined(results)
    return replace(whole, images=(cut,), records=(record,), size=cut.size)


def enlarged(image: Image.Image, factor: int, of_model: bool = True) -> ImageResult:
    """The picture `factor` times as wide and high, without a model; `of_model`: one made the picture before.

    Raises RequestError where it becomes too large.
    """
    size = (image.width * factor, image.height * factor)
    if max(size) > MAX_SIDE:
        raise RequestError(
            f"{factor} times {image.width}x{image.height} is more than {MAX_SIDE} pixels a side.", "Use a smaller one."
        )
    larger, step = upscale.resample(image, size)
    record = records.of_tool(of_model, image_sha256=place.digest(image), size=list(size), refine=[step])
    return ImageResult(images=(larger,), records=(record,), model="", engine="", size=size)


def continued(image: Image.Image, mask: Image.Image, of_model: bool = True) -> ImageResult:
    """The picture whose hole was filled from around it, without a model; `of_model`: one made the picture before."""
    hole = masks.hole(mask)
    filled = completed(image, hole)
    place.check(image, filled, hole)
    facts = {"size": list(image.size), "image_sha256": place.digest(image), **place.facts(hole, feather=0)}
    record = records.of_tool(of_model, **facts, refine=[{"step": "complete"}])
    return ImageResult(images=(filled,), records=(record,), model="", engine="", size=image.size)


def grown(image: Image.Image, margins: Margins, of_model: bool = True) -> ImageResult:
    """The picture on a larger canvas, on which it goes on without a model: evenly, where most of its edge is even, else
    by patches. `of_model` as in `continued`."""
    source, ground = image, expand.even_edge(image)
    for strip in expand.steps(image.size, margins):
        larger, mask = expand.canvas(image, strip)
        hole = masks.hole(mask)
        image = completed(larger, hole) if ground is None else _painted(larger, hole, ground)
        place.check(larger, image, hole)
    cut = expand.cropped(image, margins)
    facts = {"size": list(cut.size), "image_sha256": place.digest(source), "changed_outside_mask": 0}
    step = {"step": "complete", "by": "patches" if ground is None else "an even ground"}
    record = records.of_tool(of_model, **facts, refine=[step])
    return ImageResult(images=(cut,), records=(record,), model="", engine="", size=cut.size)


def grounded(image: Image.Image, colour: str) -> Image.Image:
    """The picture on a colour, a name or #rrggbb, in place of its background. Raises RequestError."""
    found = cutout.remove_background(image).image
    ground = Image.new("RGBA", found.size, (*parse_colour(colour), 255))
    ground.alpha_composite(found)
    return ground.convert("RGB")


def area_of(image: Image.Image, step: Step) -> Image.Image | None:
    """What a `recolor` changes, as editing.recolour takes it (mode L); None: all. Raises RequestError."""
    if step.mask is not None:
        return Image.fromarray(masks.hole(step.mask).astype(np.uint8) * 255)
    if "select" not in step.fields:
        return None
    from imagewright.editing.select import select

    return select(image, str(step.fields["select"])).area


def _unsigned(image: Image.Image) -> ImageResult:
    """A step on the way to a picture that is made again, of which only the pixels count."""
    return ImageResult(images=(image,), records=({},), model="", engine="", size=image.size)


def _painted(image: Image.Image, hole: masks.Hole, colour: tuple[int, ...]) -> Image.Image:
    pixels = np.asarray(image).copy()
    pixels[hole] = colour
    return Image.fromarray(pixels, image.mode)


def with_stack(result: ImageResult, step: Step, before: Opened) -> ImageResult:
    """The result with the verb and the grown stack in each record, also in `info["imagewright"]`."""
    records = []
    for image, record in zip(result.images, result.records, strict=True):
        stack = before.stack.then(step.made(record), image)
        records.append({**record, "verb": step.verb, "edits": stack.to_json()})
        image.info["imagewright"] = records[-1]
        if before.profile:
            image.info["icc_profile"] = before.profile
    return replace(result, records=tuple(records), adjustments=(*before.adjustments, *result.adjustments))


def stored_as(result: ImageResult, output_format: str = "png", output_compression: int = 100) -> ImageResult:
    """A result of no model in the asked format: on white where that has no transparency."""
    images = tuple(upscale.lay_on(image, "auto", output_format)[0] for image in result.images)
    format_ = {"output_format": output_format, "output_compression": output_compression}
    records_ = tuple({**record, **format_} for record in result.records)
    for image, record in zip(images, records_, strict=True):
        image.info["imagewright"] = record
    return replace(result, images=images, records=records_)


def _part(progress: Progress | None, index: int, count: int) -> Progress | None:
    """Progress of the `index`th of `count` parts of the whole."""
    if progress is None:
        return None
    return lambda done, total: progress(index * total + done, count * total)
