"""Finding what words name in a picture: which pixels are "the hat".

The picture is cut into what may be a thing: parts that hang together before the background, segments of like colour,
and what one gets by joining neighbours step by step (the hierarchy of selective search, Uijlings et al. 2013, with one
measure of likeness). Each of these is shown alone to the judge of words (refine/judge.py); the best is taken, where a
larger one and one whose outline is not cut out of its surroundings are preferred. Its edge is then solved for at the
picture's own resolution, as a cutout's is.

The attention of the shipped diffusion model to the words was measured as well: its maps have 4 x 4 cells, and choose
the right one of two things in 61 % of scenes, where the judge does in 98 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.data.captions import with_article
from imagewright.data.recolour import to_oklab
from imagewright.editing import masks
from imagewright.editing.cutout import enlarged, enlarged_mask, remove_background
from imagewright.editing.regions import Floats, Labels, Mask, components, grown, segments, spread
from imagewright.errors import PromptError, RequestError
from imagewright.refine.judge import Judges

SIDE = 128  # pixels, at which things are looked for
SCALE = 0.3  # of segments, see regions.segments
SMALLEST = 0.008  # share of the picture that a thing has at least
MOST = 70  # segments; a picture that has more is cut more coarsely
LARGE, CUT = 2.0, 4.0  # logits that a candidate gains by its size and loses by being cut out of something
MARGIN = 0.08  # around a candidate when the judge sees it
FOUND = 0.3  # probability below which nothing was found
ALIKE = 1e-3  # squared distance of two colours between which no mixture can be told
BAND, REACH = 2, 3  # pixels around the edge whose share is solved for, and in which both sides' colours are looked for


@dataclass(frozen=True)
class Selection:
    """What was found: `area` (mode L, 255 where the thing is), its `box` (left, top, right, bottom in pixels) and the
    `score`, the judge's probability that it is what the words say."""

    area: Image.Image
    box: tuple[int, int, int, int]
    score: float

    @property
    def mask(self) -> Image.Image:
        """As a request takes it: transparent where the picture may change, which is where the thing is."""
        return masks.mask_of(np.asarray(self.area) >= 128)


def select(image: Image.Image, words: str, judges: Judges | None = None) -> Selection:
    """The thing in the picture that `words` name. Raises PromptError without words, RequestError if it is not found."""
    if not words.strip():
        raise PromptError("No words to look for.", 'Say what to select, for example: "the hat"')
    pixels = before_background(image)  # (h, w, 4)
    found = candidates(pixels)
    if not found:
        raise RequestError("There is nothing in this picture.", "Give a picture that shows something.")
    judges = judges or shipped()
    fits = judges.look([alone(pixels, mask) for mask in found]) @ judges.read([phrase(words)])[0]  # (candidates,)
    seen = pixels[..., 3] > 0
    sizes = np.array([mask.sum() for mask in found]) / seen.sum()
    cuts = np.array([cut_share(mask, seen) for mask in found])
    best = int(np.argmax(fits + LARGE * np.sqrt(sizes) - CUT * cuts))
    score = float(judges.probability(fits[best]))
    if score < FOUND:
        raise RequestError(
            f"{words!r} was not found: the best candidate fits with {score:.2f}, and {FOUND:g} is needed.",
            "Use other words, or give a mask or a region.",
        )
    area = refined(image, found[best])
    inside = np.asarray(area) >= 128
    return Selection(area, masks.bounds(inside if inside.any() else np.asarray(area) >= 0), score)


@cache
def shipped() -> Judges:
    """The judges that come with the package."""
    return Judges()


def phrase(words: str) -> str:
    """ "the hat" -> "a hat": captions, which the judge knows, have no "the"."""
    text = " ".join(words.split())
    head, _, rest = text.partition(" ")
    return with_article(rest) if head.lower() == "the" and rest else text


def before_background(image: Image.Image) -> NDArray[np.uint8]:
    """The picture in small (h, w, 4), without its background where it has a plain one."""
    small = image.convert("RGBA")
    if max(small.size) > SIDE:
        small = small.convert("RGBa")
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        small = small.convert("RGBA")
    with suppress(RequestError):  # of a photograph without a plain background all may be things
        small = remove_background(small).image
    return np.asarray(small)


def candidates(pixels: NDArray[np.uint8]) -> list[Mask]:
    """Masks (h, w) of what may be a thing, each once."""
    alpha = pixels[..., 3] / 255.0
    seen = alpha > 0.1
    parts = components(grown(seen, 1))
    found = [(parts == i) & seen for i in range(1, parts.max() + 1)]
    lab = to_oklab(pixels[..., :3] / 255.0) * alpha[..., None]
    labels, scale = segments(np.dstack([lab, alpha]), SCALE, 12), SCALE
    while labels.max() >= MOST:
        scale *= 2
        labels = segments(np.dstack([lab, alpha]), scale, 12)
    found += [np.isin(labels, names) & seen for names in families(labels, lab, seen)]
    found.append(seen)
    large = (mask for mask in found if mask.sum() > SMALLEST * mask.size)
    return list({mask.tobytes(): mask for mask in large}.values())


def families(labels: Labels, lab: Floats, seen: Mask) -> Iterator[list[int]]:
    """The visible segments, then the sets that arise by joining the two likeliest neighbours again and again."""
    flat, count = labels.reshape(-1), int(labels.max()) + 1
    sizes = np.bincount(flat).astype(np.float64)
    means = np.stack([np.bincount(flat, plane.reshape(-1)) for plane in np.moveaxis(lab, -1, 0)], 1) / sizes[:, None]
    shares = np.bincount(flat, seen.reshape(-1)) / sizes
    size = {i: float(sizes[i]) for i in range(count) if shares[i] > 0.5}
    colour = {i: means[i] for i in size}
    members = {i: [i] for i in size}
    yield from members.values()
    borders = {pair: length for pair, length in neighbours(labels).items() if pair[0] in size and pair[1] in size}
    whole = sum(size.values())

    def unlike(pair: tuple[int, int]) -> float:
        """Far colours, large parts and a short common border keep two apart."""
        smaller = min(size[pair[0]], size[pair[1]])
        apart = np.linalg.norm(colour[pair[0]] - colour[pair[1]]) * (sqrt(smaller / whole) + 0.02)
        return float(apart / (0.3 + borders[pair] / sqrt(smaller)))

    while borders:
        a, b = min(borders, key=unlike)
        colour[count] = (size[a] * colour[a] + size[b] * colour[b]) / (size[a] + size[b])
        size[count], members[count] = size[a] + size[b], members[a] + members[b]
        yield members[count]
        renamed: Counter[tuple[int, int]] = Counter()
        for (c, d), length in borders.items():
            c, d = (count if x in (a, b) else x for x in (c, d))
            if c != d:
                renamed[min(c, d), max(c, d)] += length
        borders, count = dict(renamed), count + 1


def neighbours(labels: Labels) -> Counter[tuple[int, int]]:
    """How many pixel edges each pair of segments shares, the lower number first."""
    shared: Counter[tuple[int, int]] = Counter()
    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differ = one != other
        low, high = np.minimum(one, other)[differ], np.maximum(one, other)[differ]
        shared.update(zip(low.tolist(), high.tolist(), strict=True))
    return shared


def alone(pixels: NDArray[np.uint8], mask: Mask) -> Image.Image:
    """The pixels of the mask in the middle of a square, with a margin; all else is transparent."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    part = Image.fromarray(np.where(mask[box][..., None], pixels[box], 0).astype(np.uint8), "RGBA")
    side = round(max(part.size) * (1 + 2 * MARGIN))
    square = Image.new("RGBA", (side, side))
    square.paste(part, ((side - part.width) // 2, (side - part.height) // 2))
    return square


def cut_share(mask: Mask, seen: Mask) -> float:
    """How much of the mask's outline borders on something visible instead of on the background, 0 to 1."""
    ring = grown(mask, 1) & ~mask
    return float((ring & seen).sum() / max(1, ring.sum()))


def refined(image: Image.Image, mask: Mask) -> Image.Image:
    """A small mask (h, w) at the picture's size, its edge laid along the picture's: near it, a pixel belongs to the
    thing by how much its colour is a mixture of the colours inside and outside nearby."""
    pixels = image.convert("RGBA").convert("RGBa")
    small = np.asarray(pixels.resize(mask.shape[::-1], Image.Resampling.BOX)) / 255.0
    band = grown(mask, BAND) & grown(~mask, BAND)
    inner, has_inner = spread(small, mask & ~band, BAND + REACH)
    outer, has_outer = spread(small, ~mask & ~band, BAND + REACH)
    solved = enlarged_mask(band & has_inner & has_outer, image.size)
    inner, outer = (enlarged(side, image.size, solved) for side in (inner, outer))  # (n, 4)
    area = np.where(enlarged_mask(mask, image.size), 255, 0).astype(np.uint8)
    apart = inner - outer
    length = (apart**2).sum(-1)
    mixture = ((np.asarray(pixels)[solved] / 255.0 - outer) * apart).sum(-1) / np.maximum(length, 1e-6)
    area[solved] = np.where(length > ALIKE, np.rint(np.clip(mixture, 0, 1) * 255), area[solved])
    return Image.fromarray(area)
