"""How well a model follows instructions, on composed edits whose result is known: two things that training never
showed together, one change asked in words.

Three answer: the model, the truth (what a perfect model would score, so that a weak rule or judge shows), and the
picture handed back unchanged (what doing nothing scores). `done` asks whether the change is there, by a rule on the
pixels for colours, backgrounds and removals, by the match judge for things that came, by the encoder judge for styles;
`kept` whether what the instruction did not name looks as before.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.data.edits import compose
from imagewright.data.recolour import nearest_colour
from imagewright.data.scenes import Studio, credits_of, things
from imagewright.engines.catalog import Catalog
from imagewright.engines.lanes import all_of, at_once
from imagewright.errors import DataError, ModelError
from imagewright.evaluation.features import Tell
from imagewright.evaluation.metrics import Estimate, bootstrap, wilson
from imagewright.evaluation.sheet import sheet
from imagewright.pictures import open_picture
from imagewright.refine.judge import Attributes, Judges
from imagewright.request import ImageRequest

ROWS = 32  # instructions at a time
NAMED = 0.5  # of the pixels that should have a colour have it
GROUND = 0.8  # of the background is as asked
GONE = 0.08  # mean difference (of 1) to the truth where something was removed
KEPT = 0.08  # mean difference (of 1) to the picture before, in the box of what should stay
FITS = 0.5  # of the match judge
SAME = 0.02  # largest difference (of 1) of pixels that the truth leaves alone
GREY = 0.75  # below transparent pixels, for all comparisons
CLEAR = 0.1  # alpha of a background that is not there
BORDER = 2  # pixels around a box that may differ
Unit = NDArray[np.float32]


@dataclass(frozen=True)
class Triple:
    """An edit with a known result: two pictures of one size and their records (data/edits.py)."""

    before: Image.Image
    after: Image.Image
    asked: Mapping[str, Any]
    given: Mapping[str, Any]

    @property
    def instruction(self) -> str:
        return str(self.asked["edit"]["instruction"])

    @property
    def kind(self) -> str:
        return str(self.asked["edit"]["kind"])


def triples(data: Path, n: int, seed: int = 0) -> list[Triple]:
    """`n` edits of pairs that no training scene shows, composed from the sticker set in `data`."""
    lines = (data / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record.get("kind") == "sticker"]
    if not records:
        raise DataError(f"{data} is no sticker set.", "Make one: imagewright data stickers DIR")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / "images" / "edits").mkdir(parents=True)
        studio = Studio(data, out, 128, seed + 1_000_000, things(records), credits_of(records), unseen=True)
        made = [compose(studio, index) for index in range(n)]
        return [
            Triple(open_picture(out / given["file_name"]), open_picture(out / asked["file_name"]), asked, given)
            for given, asked in made
        ]


def edited(model: str | None, asked: Sequence[Triple], told: Tell | None = None, **options: Any) -> list[Image.Image]:
    """What a model makes of each picture and its instruction; `options` of the request."""
    engine, name = Catalog().find(model)
    if "instruction" not in engine.find(name).capabilities.features:
        raise ModelError("This model follows no instructions.", "Choose one that does: imagewright models")
    requests = [
        ImageRequest(prompt=one.instruction, model=name, image=one.before, instruction=True, seed=index, **options)
        for index, one in enumerate(asked)
    ]
    pictures: list[Image.Image] = []
    for start in range(0, len(requests), ROWS):
        calls = [partial(engine.generate, request) for request in requests[start : start + ROWS]]
        pictures += [result[0] for result in all_of(at_once(calls, engine.concurrency))]
        if told is not None:
            told("editing", len(pictures), len(requests))
    return pictures


def measured(pictures: Sequence[Image.Image], asked: Sequence[Triple], judges: Judges) -> dict[str, Estimate]:
    """All measures of the pictures that answer `asked`: shares with their intervals, and PSNR to the truth."""
    done = [is_done(picture, one, judges) for picture, one in zip(pictures, asked, strict=True)]
    found = {"done": wilson(sum(done), len(done))}
    for kind in sorted({one.kind for one in asked}):
        rights = [right for right, one in zip(done, asked, strict=True) if one.kind == kind]
        found[f"done: {kind}"] = wilson(sum(rights), len(rights))
    stays = [kept for picture, one in zip(pictures, asked, strict=True) for kept in what_stays(picture, one).values()]
    found["kept"] = wilson(sum(stays), len(stays))
    found["match: new words rather than old"] = _preferred(pictures, asked, judges)
    seen = judges.attributes(list(pictures))
    right = [_is_seen(one, two) for one, two in zip(seen, asked, strict=True) if two.kind in ("colour", "background")]
    found["attribute judge: new colour seen"] = wilson(sum(right), len(right))
    found["PSNR to the truth"] = bootstrap(
        np.array([_psnr(plain(p, one.after.size), plain(one.after)) for p, one in zip(pictures, asked, strict=True)])
    )
    return found


def is_done(picture: Image.Image, one: Triple, judges: Judges) -> bool:
    """Whether the change that was asked can be seen."""
    look, truth = rgba(picture, one.after.size), rgba(one.after)
    if one.kind == "style":
        style = judges.labels["styles"][int(judges.identify([picture])["style"][0].argmax())]
        return bool(style == one.asked["style"])
    if one.kind == "background":
        return _ground_is(look, truth, one.asked)
    if one.kind == "remove":
        area = _inside(_gone(one), one.after.size)
        return float(np.abs(over_grey(look) - over_grey(truth))[area].mean()) < GONE
    (which,) = one.asked["edit"]["changed"]
    thing = one.asked["objects"][which]
    if one.kind == "colour":
        area = _inside([thing["box"]], one.after.size)
        should = (nearest_colour(truth) == thing["colour"]) & (truth[..., 3] > 0.5) & area
        return bool(should.any()) and float((nearest_colour(look)[should] == thing["colour"]).mean()) >= NAMED
    words = f"{thing['colour'] or ''} {thing['label']}".strip()
    crop = picture.resize(one.after.size).crop(tuple(thing["box"]))
    return float(judges.match([crop], [words])[0]) >= FITS


def _is_seen(seen: Attributes, one: Triple) -> bool:
    """Whether the attribute judge sees the new background, or the new colour at one of the things."""
    if one.kind == "background":
        return bool(seen.background == one.asked["background"])
    (which,) = one.asked["edit"]["changed"]
    return one.asked["objects"][which]["colour"] in seen.colours


def what_stays(picture: Image.Image, one: Triple) -> dict[str, bool]:
    """For each thing that was not named, and for the background, whether it looks as before, where it should."""
    before, size = plain(one.before), one.before.size
    difference = np.abs(plain(picture, size) - before).mean(-1)  # (H, W)
    stays = np.abs(plain(one.after) - before).max(-1) < SAME
    areas = {o["label"]: _inside([o["box"]], size) for i, o in enumerate(one.asked["objects"]) if _stays(one, i)}
    if one.kind != "background":
        boxes = [o["box"] for record in (one.given, one.asked) for o in record["objects"]]
        areas["background"] = ~_inside(boxes, size)
    areas = {name: area & stays for name, area in areas.items()}
    return {name: bool(difference[area].mean() < KEPT) for name, area in areas.items() if area.any()}


def _stays(one: Triple, index: int) -> bool:
    return one.kind != "style" and index not in one.asked["edit"]["changed"]


def _gone(one: Triple) -> list[list[int]]:
    left = {o["label"] for o in one.asked["objects"]}
    return [o["box"] for o in one.given["objects"] if o["label"] not in left]


def _ground_is(look: Unit, truth: Unit, asked: Mapping[str, Any]) -> bool:
    ground = ~_inside([o["box"] for o in asked["objects"]], (look.shape[1], look.shape[0]))
    if asked["background"] is None:
        return float(look[..., 3][ground].mean()) < CLEAR
    right = (nearest_colour(look) == asked["background"]) & (look[..., 3] > 0.5)
    return float(right[ground].mean()) >= GROUND


def _preferred(pictures: Sequence[Image.Image], asked: Sequence[Triple], judges: Judges) -> Estimate:
    """How often the match judge finds the caption of the result more fitting than that of the picture before, where
    the two differ (a style does not show in a caption)."""
    some = [(p, one) for p, one in zip(pictures, asked, strict=True) if one.asked["text"] != one.given["text"]]
    looks = judges.look([p for p, _ in some])
    new, old = (judges.read([str(record["text"]) for record in side]) for side in _sides([one for _, one in some]))
    right = (looks * new).sum(1) > (looks * old).sum(1)
    return wilson(int(right.sum()), len(right))


def _sides(asked: Sequence[Triple]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    return [one.asked for one in asked], [one.given for one in asked]


def _inside(boxes: Sequence[Sequence[int]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W): inside any of the boxes (left, top, right, bottom), a border included."""
    area = np.zeros(size[::-1], bool)
    for left, top, right, bottom in boxes:
        area[max(0, top - BORDER) : bottom + BORDER, max(0, left - BORDER) : right + BORDER] = True
    return area


def rgba(picture: Image.Image, size: tuple[int, int] | None = None) -> Unit:
    """(H, W, 4) straight RGBA in [0, 1], brought to `size`."""
    wanted = size or picture.size
    image = picture.convert("RGBA")
    image = image if image.size == wanted else image.resize(wanted, Image.Resampling.LANCZOS)
    return (np.asarray(image, np.float32) / 255).astype(np.float32)


def over_grey(look: Unit) -> Unit:
    """Straight RGBA over plain grey: (H, W, 3)."""
    shown: Unit = look[..., :3] * look[..., 3:] + GREY * (1 - look[..., 3:])
    return shown


def plain(picture: Image.Image, size: tuple[int, int] | None = None) -> Unit:
    """A picture over plain grey, (H, W, 3) in [0, 1]."""
    return over_grey(rgba(picture, size))


def _psnr(a: Unit, b: Unit) -> float:
    return float(-10 * np.log10(max(1e-10, float(((a - b) ** 2).mean()))))


def evaluate_edits(
    model: str | None, data: Path, *, n: int = 200, judges: Judges | None = None, told: Tell | None = None
) -> tuple[dict[str, dict[str, Estimate]], list[Triple], list[Image.Image]]:
    """The measures of the `model`, the `truth` and the picture `unchanged`, the edits, and the model's pictures."""
    judges, asked = judges or Judges(), triples(data, n)
    pictures = edited(model, asked, told)
    sides = {
        "model": pictures,
        "truth": [one.after for one in asked],
        "unchanged": [one.before for one in asked],
    }
    return {name: measured(side, asked, judges) for name, side in sides.items()}, asked, pictures


def plain_values(sides: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    """The measures as JSON values."""
    return {
        "format": 1,
        "suite": "edits",
        "figures": {side: {name: asdict(value) for name, value in found.items()} for side, found in sides.items()},
    }


def shown(asked: Sequence[Triple], pictures: Sequence[Image.Image], count: int = 40) -> Image.Image:
    """The first edits: before, the model's, and the truth, under the instruction."""
    cells, captions = [], []
    for one, picture in list(zip(asked, pictures, strict=True))[:count]:
        cells += [one.before, picture, one.after]
        captions += ["before", one.instruction, "the truth"]
    return sheet(cells, captions, columns=12, cell=96)
