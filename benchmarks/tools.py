"""What the picture tools are worth, on pictures that no model was trained on.

python benchmarks/tools.py select DATA [N]       the right one of two things, apart and overlapping
python benchmarks/tools.py cutout DATA [N]       backgrounds taken away: error of alpha
python benchmarks/tools.py describe DATA [N]     the concept's name among all names
python benchmarks/tools.py seam DATA [N]         the true continuation against a patch of another picture
python benchmarks/tools.py svg DATA [N]          drawings against their pictures

DATA is a sticker set; its size in pixels is that of the scenes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tool_scenes import Floats, Truth, held_out, made

from imagewright.editing import select as selecting
from imagewright.editing.cutout import remove_background
from imagewright.editing.masks import mask_of
from imagewright.errors import RequestError
from imagewright.evaluation.metrics import wilson
from imagewright.evaluation.seam import seam
from imagewright.pictures import open_picture
from imagewright.refine.describe import describe, shipped, vocabulary
from imagewright.vector import trace

OVERLAP = 0.2  # of the smaller box's side


def select(data: Path, count: int) -> None:
    """IoU with the truth, against taking one of the two at random."""
    side = size_of(data)
    scenes = list(made(data, count, "pair", side))
    for name, truths in (("apart", scenes), ("overlapping", [overlapping(t) for t in scenes if not t.background])):
        ious, floors, errors, scores, seconds = [], [], [], [], []
        for index, truth in enumerate(truths):
            for which in (0, 1):
                start = time.perf_counter()
                found = selected(truth, truth.words[which])
                seconds.append(time.perf_counter() - start)
                area = np.asarray(found.area) / 255.0
                ious.append(iou(area, truth.alphas[which]))
                errors.append(np.abs(area - truth.alphas[which]).mean())
                floors.append(iou(truth.alphas[(index + which) % 2], truth.alphas[which]))
                scores.append(found.score)
        right = np.array(ious) > 0.5
        print(f"{name}: IoU {np.mean(ious):.3f}, over .5: {told(right)}; at random {np.mean(floors):.3f}")
        print(f"  mean error of the mask {np.mean(errors):.4f}, {np.mean(seconds):.2f} s a picture")
        print(f"  said to be found: {np.mean(np.array(scores) >= FOUND):.3f}")
    absent = [
        selected(truth, other.words[0]).score
        for truth, other in zip(scenes, scenes[7:] + scenes[:7], strict=True)
        if not set(truth.names) & set(other.names)
    ]
    print(f"things that are not there, said to be found: {told(np.array(absent) >= FOUND)}")


FOUND = selecting.FOUND


def selected(truth: Truth, words: str) -> selecting.Selection:
    """The selection, however low its score."""
    selecting.FOUND = -1.0
    return selecting.select(truth.picture, words)


def iou(one: Floats, other: Floats) -> float:
    """Of two alphas, cut at one half."""
    a, b = one > 0.5, other > 0.5
    return float((a & b).sum() / max(1, (a | b).sum()))


def overlapping(truth: Truth) -> Truth:
    """The second thing pushed over the first, by OVERLAP of the smaller one."""
    first, second = (Image.fromarray(np.uint8(alpha * 255)) for alpha in truth.alphas)
    a, b = first.point(lambda v: 255 * (v > 127)).getbbox(), second.point(lambda v: 255 * (v > 127)).getbbox()
    assert a is not None and b is not None
    pixels = np.asarray(truth.picture)
    layers = [np.dstack([pixels[..., :3], np.uint8(alpha * 255)]) for alpha in truth.alphas]
    gaps = [max(b[i] - a[i + 2], a[i] - b[i + 2]) for i in (0, 1)]  # across, down
    axis = int(gaps[1] > gaps[0])
    step = gaps[axis] + int(OVERLAP * min(a[axis + 2] - a[axis], b[axis + 2] - b[axis]))
    shift = -step if b[axis] > a[axis] else step
    moved, over = (np.roll(x, shift, 1 - axis) for x in (layers[1], truth.alphas[1]))
    picture = Image.alpha_composite(Image.fromarray(layers[0], "RGBA"), Image.fromarray(moved, "RGBA"))
    return replace(truth, picture=picture, alphas=(truth.alphas[0] * (1 - over), over))


def cutout(data: Path, count: int) -> None:
    """Mean absolute error of alpha over coloured, white, black, and graded and noisy backgrounds."""
    side = size_of(data)
    rng = np.random.default_rng(0)
    for name in ("coloured", "white", "black", "graded, noisy"):
        errors, seconds, refused = [], [], 0
        for truth, picture in on_grounds(data, count, side, name, rng):
            start = time.perf_counter()
            try:
                alpha = np.asarray(remove_background(picture).image)[..., 3] / 255.0
            except RequestError:
                alpha, refused = np.ones((side, side)), refused + 1
            seconds.append(time.perf_counter() - start)
            errors.append(np.abs(alpha - sum(truth.alphas)).mean())
        small = np.array(errors) < 0.05
        print(f"{name} {side} px: MAE {np.mean(errors):.4f}, median {np.median(errors):.4f}, below .05: {told(small)}")
        print(f"  refused {refused}, {np.mean(seconds):.2f} s a picture")


def on_grounds(
    data: Path, count: int, side: int, name: str, rng: np.random.Generator
) -> Iterator[tuple[Truth, Image.Image]]:
    """Scenes of one thing, opaque."""
    if name == "coloured":
        yield from ((truth, truth.picture.convert("RGB")) for truth in made(data, count, "object", side, ground=True))
        return
    for truth in made(data, count, "count", side, ground=False):
        alpha = sum(truth.alphas)[..., None]
        ground = {"white": 255.0, "black": 0.0}.get(name)
        canvas = graded(side, rng) if ground is None else np.full((side, side, 3), ground)
        mixed = np.asarray(truth.picture)[..., :3] * alpha + canvas * (1 - alpha)
        mixed += rng.normal(0, 4, mixed.shape) if ground is None else 0
        yield truth, Image.fromarray(np.clip(mixed, 0, 255).round().astype(np.uint8))


def graded(side: int, rng: np.random.Generator) -> Floats:
    """A ground between four colours, one at each corner."""
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j][..., None]
    a, b, c, d = rng.uniform(70, 215, 3) + rng.uniform(-40, 40, (4, 3))
    return (a * (1 - x) + b * x) * (1 - y) + (c * (1 - x) + d * x) * y


def naming(data: Path, count: int) -> None:
    """The rank of the right name among all."""
    records = [r for r in held_out(data) if r["hexcode"] == r["base"]]
    chosen = [records[i] for i in np.random.default_rng(0).permutation(len(records))[:count]]
    ranks = []
    for record in chosen:
        names = [caption.name for caption in describe(open_picture(data / record["file_name"]), 5)]
        right = vocabulary(shipped())[record["base"]]
        ranks.append(names.index(right) if right in names else 5)
    for best in (1, 4, 5):
        print(f"the right name among the first {best}: {told(np.array(ranks) < best)}")


def seams(data: Path, count: int) -> None:
    """The right half of a picture as it is, and pasted from another one."""
    side = size_of(data)
    rng = np.random.default_rng(0)
    pictures = [picture for _, picture in on_grounds(data, count, side, "graded, noisy", rng)]
    hole = np.zeros((side, side), bool)
    hole[:, side // 2 :] = True
    mask = mask_of(hole)
    for name, others in (("as it is", pictures), ("pasted", pictures[1:] + pictures[:1])):
        ratios = [seam(one, mask, other).ratio for one, other in zip(pictures, others, strict=True)]
        low, middle, high = np.percentile(ratios, (5, 50, 95))
        print(f"seam {name}: median {middle:.2f}, 90 % in {low:.2f} to {high:.2f}, N = {len(ratios)}")


def drawings(data: Path, count: int) -> None:
    """PSNR and bytes by style."""
    records = held_out(data)
    for style in sorted({record["style"] for record in records}):
        files = [record["file_name"] for record in records if record["style"] == style][:count]
        made_ = [trace(open_picture(data / file)) for file in files]
        psnr, off = (np.array([d.step[name] for d in made_]) for name in ("psnr", "mean_difference"))
        size = np.mean([len(d.svg) for d in made_]) / 1000
        print(f"{style}: PSNR {psnr.mean():.1f} dB (least {psnr.min():.1f}), off by {off.mean():.1f} of 255")
        print(f"  {size:.0f} kB, N = {len(files)}")


def size_of(data: Path) -> int:
    """The side of the set's pictures."""
    return open_picture(data / held_out(data)[0]["file_name"]).width


def told(rights: np.ndarray) -> str:
    """A share with its 95 % interval."""
    share = wilson(int(rights.sum()), len(rights))
    return f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f}, N = {len(rights)})"


if __name__ == "__main__":
    tools = {"select": select, "cutout": cutout, "describe": naming, "seam": seams, "svg": drawings}
    if len(sys.argv) < 3 or sys.argv[1] not in tools:
        sys.exit(__doc__)
    tools[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 100)
