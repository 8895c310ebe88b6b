"""How large the step over the seam of a fill is: `python benchmarks/edit_seams.py STICKER_FOLDER [pictures]`.

Pictures of the sticker set are filled with their own captions in a random quarter, by the shipped model in 8 steps. The
step is the mean difference of neighbouring pixels of which one may change and one stays (premultiplied RGBA, 0-255):
before the edit, after it, and after it without the correction of editing/matching.py.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from imagewright.editing import masks, place
from imagewright.editing.matching import matched, premultiplied
from imagewright.request import ImageRequest
from imagewright.workshop import Workshop


def step(picture: Image.Image, hole: np.ndarray) -> float:
    """The mean step over the hole's edge."""
    values = premultiplied(np.asarray(picture.convert("RGBA")))
    found = []
    for axis in (0, 1):
        steps = np.abs(np.diff(values, axis=axis)).mean(axis=-1)
        found.append(steps[np.diff(hole, axis=axis)])
    return float(np.concatenate(found).mean())


def main(folder: Path, count: int = 14) -> None:
    """Prints the three means."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]
    random.Random(1).shuffle(rows)
    workshop, offsets = Workshop(), np.random.default_rng(0)
    steps: dict[str, list[float]] = {"before": [], "after": [], "without the correction": []}
    for row in rows[:count]:
        picture = Image.open(folder / row["file_name"]).convert("RGBA")
        width, height = picture.width // 2, picture.height // 2
        mask = masks.region(f"{offsets.integers(width)},{offsets.integers(height)},{width},{height}", picture.size)
        hole = masks.hole(mask)
        steps["before"].append(step(picture, hole))
        for name, how in (("after", matched), ("without the correction", lambda new, *_: new)):
            place.matched = how
            request = ImageRequest(prompt=row["text"], image=picture, mask=mask, seed=1, num_inference_steps=8)
            steps[name].append(step(workshop.make(request)[0], hole))
    print({name: round(float(np.mean(values)), 2) for name, values in steps.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(number) for number in sys.argv[2:]))
