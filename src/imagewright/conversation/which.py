"""Which of several things in a picture is meant: the left one, the cat on the right."""

from __future__ import annotations

import numpy as np
from PIL import Image

from imagewright.conversation.words import head
from imagewright.editing import masks
from imagewright.editing import select as selecting
from imagewright.editing.regions import Mask, components, grown
from imagewright.errors import RequestError
from imagewright.refine.judge import Judges

_NEAR = 3.0  # logits below the best that a thing may fit the words worse by, and be meant
_GROWN = 64  # a mask is grown by one pixel for so many of the picture's side, as verbs.fill grows a selection


def mask_of(image: Image.Image, thing: str, where: str, judges: Judges | None = None) -> Image.Image:
    """The mask (transparent where the thing is) of the one that stands furthest `where`: left, right, top or bottom.

    Raises RequestError where the picture shows fewer than two things apart.
    """
    pixels = selecting.before_background(image)  # (h, w, 4)
    seen = pixels[..., 3] > 25
    labels = components(grown(seen, 1))
    found = [(labels == i) & seen for i in range(1, int(labels.max()) + 1)]
    found = [mask for mask in found if mask.sum() > selecting.SMALLEST * mask.size]
    if len(found) < 2:
        raise RequestError("No two things stand apart in this picture.", "Name the thing instead.")
    name = head(thing)
    if name not in ("", "one", where):
        found = _fitting(pixels, found, name, judges or selecting.shipped())
    axis, sign = {"left": (1, 1), "right": (1, -1), "top": (0, 1), "bottom": (0, -1)}[where]
    best = min(found, key=lambda mask: sign * float(np.argwhere(mask)[:, axis].mean()))
    area = np.asarray(selecting.refined(image, best)) > 0
    return masks.mask_of(masks.grown(area, max(1, max(image.size) // _GROWN)))


def _fitting(
    pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], found: list[Mask], name: str, judges: Judges
) -> list[Mask]:
    """Those that may be what `name` says."""
    shown = [selecting.alone(pixels, mask) for mask in found]
    fits = judges.look(shown) @ judges.read([selecting.phrase(f"the {name}")])[0]  # (things,)
    return [mask for mask, fit in zip(found, fits, strict=True) if fit >= max(fits) - _NEAR]
