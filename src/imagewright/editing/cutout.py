"""Taking the background away: of flat art and of simple photographs, without a network.

The background is what looks like the picture's border and hangs together with it: a smooth surface of colour (quadratic
in x and y, in OKLab) is fitted to the border, the region of pixels near it is grown from the border, and the surface is
fitted again to that region. Along the region's edge each pixel is a mixture of the background and of the nearest
foreground, C = alpha F + (1 - alpha) B: solved for alpha, and F put in its place, so that no rim of the old background
stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.data.recolour import to_oklab
from imagewright.editing.regions import Floats, Labels, Mask, components, grown, spread
from imagewright.errors import RequestError

SIDE = 768  # pixels; larger pictures are searched at this side and cut at their own
NEAR = 0.015  # in OKLab: what is as near to the background's surface belongs to it
FAR = 0.14  # the most that a spread of the background may widen that
HOLE = 0.012  # in OKLab: what things enclose must be as near on average, for it may also be an eye on white
SPECK = 9  # pixels that a hole has at least, and a speck of noise at most
BAND = 2  # pixels at each side of the edge whose alpha is solved for
REACH = 3  # pixels in which the colours of both sides are looked for
CLEAR = 0.005  # share of pixels that must be clear for a picture to count as cut out already
PLAIN = 0.35  # share of the border that the background must cover


@dataclass(frozen=True)
class Cutout:
    """A picture without its background (RGBA, straight alpha). `already`: it came with one and is unchanged. `border`:
    how much of the border looked like the background, 0 to 1: the surer, the higher."""

    image: Image.Image
    already: bool
    border: float

    @property
    def step(self) -> dict[str, object]:
        """What was done, for the record."""
        done = "was transparent already" if self.already else f"taken away; {self.border:.0%} of the border is plain"
        return {"step": "remove background", "background": done}


def remove_background(image: Image.Image) -> Cutout:
    """The picture without its background. Raises RequestError where the border shows none, or where nothing is left."""
    rgba = image.convert("RGBA")
    alpha = np.asarray(rgba.getchannel("A"))
    if (alpha < 128).mean() >= CLEAR:
        return Cutout(rgba, True, 1.0)
    rgb = np.asarray(rgba)[..., :3]
    small = rgba.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small) / 255.0
    region, share = background_region(to_oklab(pixels))
    if share < PLAIN or region.all():
        what = "There is only background" if region.all() else f"Only {share:.0%} of the border looks alike"
        raise RequestError(f"{what}: no thing before a plain background was found.", "Give a mask, or another picture.")
    return Cutout(Image.fromarray(matted(rgb, pixels, region), "RGBA"), False, share)


def cut_out(image: Image.Image) -> tuple[Image.Image, dict[str, object] | None]:
    """A refine step: the picture without its background, and what was done; as it is, where nothing could be."""
    try:
        found = remove_background(image)
    except RequestError:  # the workshop says so: see refine.upscale.unmet
        return image, None
    return (image, None) if found.already else (found.image, found.step)


def background_region(lab: Floats) -> tuple[Mask, float]:
    """The region (H, W) that hangs together with the border and looks like it, and the share of the border in it."""
    border = np.zeros(lab.shape[:2], bool)
    rim = max(1, min(lab.shape[:2]) // 64)
    border[:rim] = border[-rim:] = border[:, :rim] = border[:, -rim:] = True
    region = near = border
    for _ in range(3):
        distance = np.linalg.norm(lab - surface(lab, region), axis=-1)
        usual = float(np.median(distance[region]))
        limit = min(NEAR + 2 * usual, FAR)
        near = distance < limit
        parts = components(near)
        region = np.isin(parts, np.unique(parts[border & near])) & near
        if not region.any():
            return region, 0.0
    enclosed = alike(parts, distance, max(HOLE, 2 * usual), least=SPECK)
    region = region | enclosed
    specks = alike(components(~region), distance, 2 * limit, most=SPECK)
    return region | specks, float(near[border].mean())


def alike(parts: Labels, distance: Floats, nearest: float, least: int = 1, most: float = np.inf) -> Mask:
    """The parts of `least` to `most` pixels whose mean distance from the background is below `nearest`: what things
    enclose of it (a handle, a wheel), or specks of its noise."""
    counts = np.bincount(parts.reshape(-1))
    means = np.bincount(parts.reshape(-1), distance.reshape(-1)) / np.maximum(counts, 1)
    kept = (means < nearest) & (counts >= least) & (counts <= most)
    kept[0] = False
    return np.asarray(kept[parts])


def surface(lab: Floats, known: Mask) -> Floats:
    """The background's colour (H, W, 3): quadratic in x and y, by least squares over the known pixels, in which those
    that lie far off count less and less (things that reach the border)."""
    height, width = lab.shape[:2]
    y, x = (
        np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j] if min(height, width) > 1 else np.zeros((2, height, width))
    )
    terms = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], -1)  # (H, W, 6)
    rows, values = terms[known], lab[known]
    if len(rows) > 20_000:
        rows, values = rows[:: len(rows) // 20_000], values[:: len(values) // 20_000]
    middle = values[np.argmin(np.abs(values - np.median(values, axis=0)).sum(1))]
    weights = 1 / (1 + (np.linalg.norm(values - middle, axis=1) / NEAR) ** 2)
    for _ in range(8):
        heavy = rows * weights[:, None]
        # a little ridge keeps the curved terms at rest where the pixels say nothing of them
        ridge = np.diag([0, *[1e-3 * weights.sum()] * 5])
        found = np.linalg.solve(heavy.T @ rows + ridge + 1e-9 * np.eye(6), heavy.T @ values)  # (6, 3)
        weights = 1 / (1 + (np.linalg.norm(values - rows @ found, axis=1) / NEAR) ** 2)
    return np.asarray(terms @ found)


def matted(rgb: NDArray[np.uint8], small: Floats, region: Mask) -> NDArray[np.uint8]:
    """RGBA (H, W, 4) of a picture, given the same in small and the small background region."""
    inside = ~region
    solid = ~grown(region, BAND)
    clear = ~grown(inside, BAND)
    fore, fore_known = spread(small, solid, BAND + REACH)
    back, back_known = spread(small, clear, BAND + REACH)
    band = ~solid & ~clear
    mixed = band & back_known
    peak = farthest(small, back, REACH)  # of thin things, which have no solid inside
    fore = np.where(fore_known[..., None], fore, peak)
    size = rgb.shape[1::-1]
    out = np.dstack([rgb, np.where(enlarged_mask(inside, size), 255, 0).astype(np.uint8)])
    mixed = enlarged_mask(mixed, size)
    colour, f, b = rgb[mixed] / 255.0, enlarged(fore, size, mixed), enlarged(back, size, mixed)  # (n, 3)
    apart = f - b
    alpha = np.clip(((colour - b) * apart).sum(-1) / np.maximum((apart**2).sum(-1), 1e-6), 0, 1)
    unmixed = np.clip((colour - (1 - alpha[:, None]) * b) / np.maximum(alpha[:, None], 0.1), 0, 1)
    pure = np.where(alpha[:, None] > 0.5, unmixed, f)
    out[mixed] = np.rint(np.concatenate([pure, alpha[:, None]], -1) * 255).astype(np.uint8)
    out[out[..., 3] == 0] = 0
    return out


def farthest(small: Floats, back: Floats, radius: int) -> Floats:
    """For each pixel (H, W, 3) the colour within `radius` that is farthest from the background there."""
    best = small.copy()
    most = np.linalg.norm(small - back, axis=-1)
    for axis in (0, 1):
        colours, lengths = best.copy(), most.copy()
        for shift in range(-radius, radius + 1):
            moved, far = np.roll(colours, shift, axis), np.roll(lengths, shift, axis)
            better = far > most
            best[better], most[better] = moved[better], far[better]
    return best


def enlarged(values: Floats, size: tuple[int, int], where: Mask) -> Floats:
    """Values (h, w, C) in [0, 1] enlarged to `size` (width, height), at the n pixels of a mask: (n, C), in 1/255."""
    planes = np.moveaxis(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8), -1, 0)
    pictures = (Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR) for plane in planes)
    return np.stack([np.asarray(picture)[where] for picture in pictures], -1) / 255.0


def enlarged_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """A mask (h, w) at `size` (width, height)."""
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
