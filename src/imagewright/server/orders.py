"""A request as the queue keeps it: JSON, with its pictures in the store under their hashes.

What is kept is enough to do the work after a crash, on any machine that reaches the same database and store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from PIL import Image

from imagewright.pictures import encode, open_picture
from imagewright.request import Adapter, Adjustment, Control, ImageRequest

PICTURES = ("image", "mask")
MANY_PICTURES = ("images", "style_images", "subject_images")
Save = Callable[[bytes, tuple[int, int]], str]  # the file and (width, height) -> its hash
Load = Callable[[str], bytes]
Json = dict[str, Any]


def to_json(request: ImageRequest, save: Save) -> Json:
    """`request` without what it leaves at the default; `save` stores the bytes of a picture and gives their hash."""

    def kept(image: Image.Image) -> str:
        return save(encode(image, "png"), image.size)

    found: Json = {}
    for field in fields(ImageRequest):
        value = getattr(request, field.name)
        if field.default is not MISSING and value == field.default:
            continue
        if field.name in PICTURES:
            value = kept(value)
        elif field.name in MANY_PICTURES:
            value = [kept(image) for image in value]
        elif field.name == "controls":
            value = [{"model": one.model, "image": kept(one.image), "weight": one.weight} for one in value]
        elif field.name in ("adapters", "adjustments"):
            value = [asdict(one) for one in value]
        found[field.name] = value
    return found


def from_json(kept: Mapping[str, Any], load: Load) -> ImageRequest:
    """The request that `to_json` kept; `load` gives a picture's bytes back. Raises RequestError, PictureError."""

    def picture(digest: str) -> Image.Image:
        return open_picture(load(digest))

    values: Json = dict(kept)
    for name in PICTURES:
        if name in values:
            values[name] = picture(values[name])
    for name in MANY_PICTURES:
        values[name] = tuple(picture(digest) for digest in values.get(name, ()))
    values["controls"] = tuple(
        Control(one["model"], picture(one["image"]), one["weight"]) for one in values.get("controls", ())
    )
    values["adapters"] = tuple(Adapter(**one) for one in values.get("adapters", ()))
    values["embeddings"] = tuple(values.get("embeddings", ()))
    values["adjustments"] = tuple(Adjustment(**one) for one in values.get("adjustments", ()))
    for name in ("size", "aspect"):
        if values.get(name) is not None:
            values[name] = tuple(values[name])
    for name in ("emphasis", "prompt_choices"):
        values[name] = tuple(tuple(part) for part in values.get(name, ()))
    return ImageRequest(**values)


def digests(kept: Mapping[str, Any]) -> list[str]:
    """The hashes of the pictures that an order needs."""
    one = [kept[name] for name in PICTURES if name in kept]
    many = [digest for name in MANY_PICTURES for digest in kept.get(name, ())]
    return [*one, *many, *(control["image"] for control in kept.get("controls", ()))]
