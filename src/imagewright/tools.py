"""What one does with a picture without making one: remove its background, recolour a part, trace it, describe it.

The first three give an ImageResult with one picture, to be saved like any other; its record keeps the words that the
picture was made with, if it was, and says what was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from PIL import Image

from imagewright import chain, vector, verbs
from imagewright.chain import Opened, Picture
from imagewright.editing import cutout, place
from imagewright.editing import select as selecting
from imagewright.editing.recolour import recolor as recoloured
from imagewright.editing.stack import Step
from imagewright.provenance import record as records
from imagewright.refine.describe import Caption
from imagewright.refine.describe import describe as captions
from imagewright.request import Adjustment, ImageResult


def select(picture: Picture, words: str) -> selecting.Selection:
    """What `words` name in the picture: "the hat". Raises PictureError, RequestError if it is not there."""
    return selecting.select(_opened(picture).image, words)


def remove_background(picture: Picture) -> ImageResult:
    """The picture without its background; as it is, and said, where it has none. Raises PictureError, RequestError."""
    before = _opened(picture)
    found = cutout.remove_background(before.image)
    kept = Adjustment("background", "transparent", "as it is", "the picture is transparent already")
    return _made(before, found.image, found.step, [kept] if found.already else [], Step("remove_background", {}))


def set_background(picture: Picture, colour: str) -> ImageResult:
    """The picture on a colour, a name (red) or #rrggbb, in place of its background. Raises PictureError, RequestError
    where no background can be told from the rest."""
    before = _opened(picture)
    step = Step("set_background", {"colour": colour})
    done = {"step": "set background", "colour": colour}
    return _made(before, chain.grounded(before.image, colour), done, step=step)


def recolor(
    picture: Picture,
    colour: str,
    *,
    mask: Picture | None = None,
    region: str | None = None,
    select: str | None = None,
    invert: bool = False,
) -> ImageResult:
    """The picture, or a part of it, in a colour: a name (red) or #rrggbb. Elsewhere no pixel changes.

    The part is given as in verbs.fill. Raises PictureError, RequestError.
    """
    before = _opened(picture)
    hole, said, by_words = None, list[Adjustment](), select is not None and not (mask or region or invert)
    if not by_words and any(one is not None for one in (mask, region, select)):
        hole, said = verbs.hole_of(before.image, mask=mask, region=region, select=select, invert=invert)
    fields = {"colour": colour, **({"select": select} if by_words else {})}
    step = Step("recolor", fields, mask=hole)
    done = {"step": "recolour", "colour": colour, **({"select": select} if select else {})}
    return _made(before, recoloured(before.image, colour, chain.area_of(before.image, step)), done, said, step)


def vectorise(picture: Picture) -> ImageResult:
    """The picture as a drawing: save it as svg. Raises PictureError, RequestError, MissingExtraError."""
    before = _opened(picture)
    drawing = vector.trace(before.image)
    result = _made(before, before.image.copy(), drawing.step, output_format="svg")
    result[0].info["svg"] = drawing.svg
    return result


def describe(picture: Picture, n: int = 4) -> list[Caption]:
    """The `n` captions that fit the picture best. Raises PictureError, RequestError."""
    return captions(_opened(picture).image, n)


def _opened(picture: Picture) -> Opened:
    return chain.opened(picture, verbs.shared())


def _made(
    before: Opened,
    image: Image.Image,
    done: Mapping[str, Any],
    said: list[Adjustment] | None = None,
    step: Step | None = None,
    **facts: Any,
) -> ImageResult:
    """A result of a tool, with its `step` on the stack of edits; without one the stack ends here."""
    made = before.record or {}
    record = records.of_tool(
        before.of_model,
        prompt=str(made.get("prompt") or ""),
        image_sha256=place.digest(before.image),
        size=list(image.size),
        refine=[dict(done)],
        adjustments=records.plain((*before.adjustments, *(said or ()))),
        **facts,
    )
    image.info["imagewright"] = record
    own = tuple(said or ())
    result = ImageResult(images=(image,), records=(record,), model="", engine="", adjustments=own, size=image.size)
    if step is not None:
        return chain.with_stack(result, step, before)
    return replace(result, adjustments=(*before.adjustments, *own))
