"""The guarantee: a model draws a cut of the picture at its own size, and only the hole is set back into the original.

`cut` takes the part of the picture around the hole, with some of what surrounds it, to the size at which the model
draws. `Cut.restored` takes what the model drew back to that part, and copies it into the original where the mask lets
it change. The seam is softened inwards only. All else stays byte for byte, as 8-bit pixels (see masks.eight_bit),
whatever the engine did; the bytes are compared before the picture is handed out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.editing import changed, masks
from imagewright.editing.fields import depth, shrunk, surroundings, thickness
from imagewright.editing.masks import Hole
from imagewright.editing.matching import matched, premultiplied
from imagewright.editing.shapes import shaped
from imagewright.errors import ModelError
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.resampling import resize

CONTEXT = 1.5  # the part that the model sees is so many times as long and wide as the hole, where there is room
LEAST_CONTEXT = 1.25  # and so many times at least, even where that leads over the picture's edge
OPAQUE = 250  # of 255: less alpha is seen
SOFT = 1 / 96  # of the longer side: the feather of what an instruction changed
BAND = 2**20  # pixels mixed at a time

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the picture; may lead over its edges
Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Cut:
    """What a model is to draw, and how it goes back.

    `request` is at the model's size. `picture` is the original, RGB or RGBA; `hole` (H, W) bool, None where all of it
    may change. `box` is the part that the model sees. `size` is what comes back where there is no hole.
    """

    request: ImageRequest
    picture: Image.Image
    hole: Hole | None
    box: Box
    size: Size

    def restored(self, drawn: Image.Image) -> tuple[Image.Image, dict[str, Any]]:
        """The whole picture with `drawn` (of any size: the model's view of the box) in its place, and what the record
        says of it: the strength, the mask, and that nothing else changed.

        Raises ModelError, instead of giving it out, should a byte outside the hole have changed.
        """
        drawn = masks.eight_bit(drawn)
        told: dict[str, Any] = {"strength": self.request.strength}
        if self.request.instruction:
            told["instruction"] = True
        if self.hole is not None:
            return self._filled(drawn), told | facts(self.hole, self.request.feather)
        if self.request.instruction and self.size == self.picture.size:
            return self._changed(drawn, told)
        return resize(_inner(drawn, self.box, self.picture.size), self.size), told

    @property
    def _width(self) -> int:
        """Of what the model sees; it may draw larger."""
        assert self.request.size is not None
        return self.request.size[0]

    def _changed(self, drawn: Image.Image, told: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
        """The picture where an instruction left it alone, and `drawn` where it changed it."""
        assert self.request.image is not None
        seen, now = (_inner(image, self.box, self.picture.size) for image in (self.request.image, drawn))
        hole = changed.where(seen, now, self.picture.size)
        told = told | {"changed": round(float(hole.mean()), 4)}
        if not hole.any():
            return self.picture, told
        if hole.all():
            return resize(now, self.size), told
        glass = drawn.mode == "RGBA" and int(np.asarray(drawn)[..., 3].min()) < OPAQUE
        picture = self.picture.convert("RGBA") if glass else self.picture
        feather = min(thickness(hole), max(self.request.feather, round(SOFT * max(self.size))))
        found = replace(self, picture=picture, hole=hole, request=replace(self.request, feather=feather))
        return found._filled(drawn), told | facts(hole, feather)

    def _filled(self, drawn: Image.Image) -> Image.Image:
        """The picture with the hole taken from `drawn`."""
        assert self.hole is not None
        new, at = _on_box(drawn, self.box, self.picture.size)
        result = np.asarray(self.picture).copy()  # (H, W, 3 or 4)
        left, top, right, bottom = at
        part, hole = result[top:bottom, left:right], self.hole[top:bottom, left:right]
        pixels = np.asarray(new.convert("RGBA"))
        if not self.request.instruction:  # whose colours may differ from those around it on purpose
            pixels = matched(pixels, part, hole, (self.box[2] - self.box[0]) / self._width)
        result[top:bottom, left:right] = _laid(part, pixels, _weights(hole, self.request.feather))
        restored = Image.fromarray(result, self.picture.mode)
        check(self.picture, restored, self.hole)
        return restored


def cut(request: ImageRequest, can: Capabilities) -> tuple[Cut | None, list[Adjustment]]:
    """What the model draws for an adapted request with an image, else None. Raises RequestError on an empty mask."""
    if request.image is None:
        return None, []
    picture = masks.eight_bit(request.image)
    said: list[Adjustment] = []
    if request.mask is None:
        hole, box, size = None, *_whole(picture.size, can)
    else:
        hole = masks.hole(request.mask)
        box, size = frame(hole, can)
        if request.feather > (most := thickness(hole)):
            said = [Adjustment("feather", request.feather, most, "the hole is only so thick")]
            request = replace(request, feather=most)
    for_model = replace(
        request,
        image=_seen(picture, box, size),
        mask=None if hole is None else _seen_hole(hole, box, size),
        size=size,
        controls=tuple(replace(one, image=_seen(_resized(one.image, picture), box, size)) for one in request.controls),
    )
    return Cut(for_model, picture, hole, box, fitting(picture.size, request.size or picture.size)), said


def fitting(inner: Size, outer: Size) -> Size:
    """The largest size of the aspect of `inner` that fits into `outer`."""
    scale = min(outer[0] / inner[0], outer[1] / inner[1])
    return max(1, round(inner[0] * scale)), max(1, round(inner[1] * scale))


def inside(picture: Image.Image, size: Size) -> Image.Image:
    """The whole picture, RGBA, in the middle of a transparent one of `size`."""
    whole, small = Image.new("RGBA", size), fitting(picture.size, size)
    small_picture = resize(masks.eight_bit(picture).convert("RGBA"), small)
    whole.paste(small_picture, ((size[0] - small[0]) // 2, (size[1] - small[1]) // 2))
    return whole


def frame(hole: Hole, can: Capabilities) -> tuple[Box, Size]:
    """The part of a picture that a model sees to fill `hole`, and the size at which it draws that part.

    At least as large as the model's native size, so that nothing is enlarged without need; with what surrounds the
    hole; inside the picture as far as the model's aspect allows.
    """
    height, width = hole.shape
    left, top, right, bottom = masks.bounds(hole)
    span = (right - left, bottom - top)
    can = shaped((min(width, ceil(CONTEXT * span[0])), min(height, ceil(CONTEXT * span[1]))), can)
    want = tuple(max(native, CONTEXT * side) for native, side in zip(can.size, span, strict=True))
    if can.sides is not None:
        w, h = min(width, ceil(want[0])), min(height, ceil(want[1]))
        size = free_size((w, h), can)
    else:
        need = tuple(min(LEAST_CONTEXT * side, whole) for side, whole in zip(span, (width, height), strict=True))
        aim, least = (max(a / b for a, b in zip(sides, can.size, strict=True)) for sides in (want, need))
        inside = min(width / can.size[0], height / can.size[1])
        scale = aim if aim <= inside else max(inside, min(aim, least))
        w, h = (max(1, round(scale * side)) for side in can.size)
        w, h = max(w, span[0]), max(h, span[1])
        size = can.size
    x = _placed((left + right) / 2, w, width)
    y = _placed((top + bottom) / 2, h, height)
    return (x, y, x + w, y + h), size


def free_size(part: Size, can: Capabilities) -> Size:
    """The size at which a model that draws any (`Capabilities.sides`) draws a part: its native area, that aspect."""
    assert can.sides is not None
    least, most, step = can.sides
    scale = sqrt(can.size[0] * can.size[1] / (part[0] * part[1]))
    width, height = (min(max(step * round(scale * side / step), least), most) for side in part)
    return width, height


def _placed(middle: float, side: int, whole: int) -> int:
    """Where a stretch of `side` around `middle` starts, moved into 0..whole, or around that where it is longer."""
    if side >= whole:
        return -((side - whole) // 2)
    return min(max(0, round(middle - side / 2)), whole - side)


def _whole(picture: Size, can: Capabilities) -> tuple[Box, Size]:
    """All of a picture, padded to the model's aspect, and the size at which it is drawn."""
    can = shaped(picture, can)
    if can.sides is not None:
        return (0, 0, *picture), free_size(picture, can)
    scale = max(whole / native for whole, native in zip(picture, can.size, strict=True))
    w, h = (max(whole, round(scale * native)) for whole, native in zip(picture, can.size, strict=True))
    x, y = _placed(0, w, picture[0]), _placed(0, h, picture[1])
    return (x, y, x + w, y + h), can.size


def _resized(image: Image.Image, picture: Image.Image) -> Image.Image:
    return resize(masks.eight_bit(image), picture.size)


def _seen(picture: Image.Image, box: Box, size: Size) -> Image.Image:
    """The part of the picture in `box` at `size`; over the edges it goes on with their colours."""
    part = Image.fromarray(_cropped(np.asarray(picture), box), picture.mode)
    return resize(part, size)


def _seen_hole(hole: Hole, box: Box, size: Size) -> Image.Image:
    """The mask of the part in `box` at `size`: what covers any of a pixel may change it."""
    part = _cropped(hole, box).astype(np.float32)
    small = shrunk(shrunk(part, size[1]).T, size[0]).T  # (size[1], size[0])
    return masks.mask_of(small > 0).convert("RGBA")


def _cropped(values: NDArray[Any], box: Box) -> NDArray[Any]:
    """`values` (H, W, ...) in `box`; over the edges they are repeated."""
    height, width = values.shape[:2]
    rows = np.clip(np.arange(box[1], box[3]), 0, height - 1)
    columns = np.clip(np.arange(box[0], box[2]), 0, width - 1)
    return values[rows][:, columns]


def _on_box(drawn: Image.Image, box: Box, picture: Size) -> tuple[Image.Image, Box]:
    """What was drawn, resampled to the box and cut to the picture, and where that lies in the picture."""
    left, top, right, bottom = box
    at = (max(0, left), max(0, top), min(picture[0], right), min(picture[1], bottom))
    scaled = resize(drawn, (right - left, bottom - top))
    return scaled.crop((at[0] - left, at[1] - top, at[2] - left, at[3] - top)), at


def _inner(drawn: Image.Image, box: Box, picture: Size) -> Image.Image:
    """The part of a drawn whole picture without the padding, in the drawn picture's own pixels."""
    w, h = box[2] - box[0], box[3] - box[1]
    share = (-box[0] / w, -box[1] / h, (picture[0] - box[0]) / w, (picture[1] - box[1]) / h)
    edges = [round(one * side) for one, side in zip(share, (*drawn.size, *drawn.size), strict=True)]
    left, top = min(edges[0], drawn.width - 1), min(edges[1], drawn.height - 1)
    return drawn.crop((left, top, max(left + 1, edges[2]), max(top + 1, edges[3])))


def _laid(old: Pixels, new: Pixels, weights: Floats) -> Pixels:
    """`new` (h, w, 4) over `old` (h, w, 3 or 4) by `weights` (h, w); `old` itself where they are 0.

    Where `old` has no alpha and `new` is transparent, the colours around the hole show through.
    """
    inside = weights > 0
    clear = new[..., 3] < 255 if old.shape[-1] == 3 else np.zeros_like(inside)
    mixed = inside & (clear | (weights < 1))
    result = np.where((inside & ~mixed)[..., None], new[..., : old.shape[-1]], old)
    ground = surroundings(old, inside) if (clear & inside).any() else None
    flat, before, after = result.reshape(-1, old.shape[-1]), old.reshape(-1, old.shape[-1]), new.reshape(-1, 4)
    places = np.flatnonzero(mixed)
    for start in range(0, len(places), BAND):
        at = places[start : start + BAND]
        behind = None if ground is None else ground.reshape(-1, 3)[at]
        flat[at] = _mixed(before[at], after[at], weights.reshape(-1)[at, None], behind)
    return result


def _mixed(old: Pixels, new: Pixels, share: Floats, ground: Floats | None) -> Pixels:
    """(N, 3 or 4) bytes: `share` (N, 1) of `new` (N, 4), laid on `ground` (N, 3) if any, the rest of `old`."""
    before, after = premultiplied(old), premultiplied(new)
    if ground is not None:
        after = np.concatenate([after[:, :3] + ground * (1 - after[:, 3:] / 255), np.full_like(share, 255)], axis=1)
    mixed = before + share * (after - before)  # (N, 4)
    alpha = mixed[:, 3:]
    colour = np.where(alpha > 0, mixed[:, :3] * 255 / np.maximum(alpha, 1 / 255), 0)
    straight = np.concatenate([colour, alpha], axis=1)[:, : old.shape[-1]]
    bytes_: Pixels = np.clip(straight, 0, 255).round().astype(np.uint8)
    return bytes_


def _weights(hole: Hole, feather: int) -> Floats:
    """How much of what was drawn shows, (H, W): 0 outside the hole; inside it rises to 1 over `feather` pixels."""
    if feather == 0:
        return hole.astype(np.float32)
    return np.minimum(1, depth(hole, feather + 1) / (feather + 1)).astype(np.float32)


def check(original: Image.Image, result: Image.Image, hole: Hole) -> None:
    """Raises ModelError where a pixel outside the hole differs: such a picture is not given out."""
    differs = (np.asarray(original) != np.asarray(result)).any(axis=-1)
    if changed := int((differs & ~hole).sum()):
        raise ModelError(
            f"The edit changed {changed} pixels outside the mask; it was thrown away.",
            "This should never happen: please report it.",
        )


def facts(hole: Hole, feather: int) -> dict[str, Any]:
    """What a record says of the mask of a picture that passed `check`."""
    digest = sha256(np.packbits(hole).tobytes()).hexdigest()
    return {"mask_sha256": digest, "mask": masks.told(hole), "feather": feather, "changed_outside_mask": 0}


def sources(request: ImageRequest) -> dict[str, Any]:
    """For the record: the digests of the pictures that a request brings along."""
    found: dict[str, Any] = {} if request.image is None else {"image_sha256": digest(request.image)}
    others = {name: getattr(request, name) for name in ("images", "style_images", "subject_images")}
    others["controls"] = tuple(control.image for control in request.controls)
    return found | {f"{name}_sha256": [digest(one) for one in many] for name, many in others.items() if many}


def digest(image: Image.Image) -> str:
    """The sha256 of a picture's size and 8-bit pixels, whatever file it came from."""
    image = masks.eight_bit(image)
    return sha256(f"{image.mode} {image.width}x{image.height}\n".encode() + image.tobytes()).hexdigest()
