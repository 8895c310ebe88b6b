"""A small sticker set of drawn shapes, with scenes and held-out pictures, and judges trained on it for seconds."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from imagewright.data.ledger import manifest_hash
from imagewright.data.recolour import COLOURS
from imagewright.evaluation.judging import JUDGES, export_judges
from imagewright.training.judges import run

SHAPES = ("disc", "square", "bar", "ring", "cross", "wedge", "post", "frame")
SUBGROUPS = ("food-fruit", "tool")
SIDE = 64
PAINTS = ("red", "green", "blue", "yellow")


def draw(shape: str, colour: str, outlined: bool, box: tuple[float, float, float, float]) -> Image.Image:
    """One shape on a transparent square."""
    picture = Image.new("RGBA", (SIDE, SIDE))
    pen = ImageDraw.Draw(picture)
    a, b, c, d = (SIDE * value for value in box)
    fill, line = COLOURS[colour], (20, 20, 20) if outlined else None
    half, third, two = (a + c) / 2, a + (c - a) / 3, a + 2 * (c - a) / 3
    if shape in ("disc", "ring"):
        pen.ellipse((a, b, c, d), fill if shape == "disc" else None, line if shape == "disc" else fill, 4)
    elif shape in ("square", "frame"):
        pen.rectangle((a, b, c, d), fill if shape == "square" else None, line if shape == "square" else fill, 4)
    elif shape == "bar":
        pen.rectangle((a, b + (d - b) / 3, c, d - (d - b) / 3), fill, line, 3)
    elif shape == "post":
        pen.rectangle((third, b, two, d), fill, line, 3)
    elif shape == "cross":
        pen.line((a, b, c, d), fill, 9)
        pen.line((a, d, c, b), fill, 9)
    else:
        pen.polygon(((half, b), (c, d), (a, d)), fill, line)
    return picture


def write(folder: Path, name: str, picture: Image.Image, **facts: Any) -> dict[str, Any]:
    """Save a picture and return its record."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    told = {"source": "test", "author": "test", "licence": "MIT", "consent": "drawn by this test"}
    return {"file_name": f"images/{name}", "tags": [], "sha256": digest, **told, **facts}


def shapes_folder(folder: Path, each: int = 2) -> Path:
    """8 shapes in 4 colours, two styles, `each` training pictures of a kind and one held out; 40 scenes."""
    rng = np.random.default_rng(0)
    records = []
    for number, shape in enumerate(SHAPES):
        for colour in PAINTS:
            for style in ("noto", "flat"):
                for index in range(each + 1):
                    box = (*rng.uniform(0.02, 0.25, 2), *rng.uniform(0.75, 0.98, 2))
                    picture = draw(shape, colour, style == "noto", box)
                    split = "train" if index < each else "style_holdout"
                    base, text = f"{number}{colour}", f"{colour} {shape}"
                    facts = {"text": text, "style": style, "base": base, "hexcode": base, "tone": 0, "split": split}
                    group = {"group": "shapes", "subgroup": SUBGROUPS[number % 2], "kind": "sticker"}
                    records.append(write(folder, f"{style}/{base}-{index}.png", picture, **facts, **group))
    records += [scene(folder, index, rng) for index in range(40)]
    lines = [json.dumps(record) for record in records]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "manifest.json").write_text(json.dumps({"sha256": manifest_hash(lines)}), "utf-8")
    return folder


def scene(folder: Path, index: int, rng: np.random.Generator) -> dict[str, Any]:
    """Two shapes beside or above each other, with the truth."""
    relation = ("left", "above")[index % 2]
    one, other = rng.choice(len(SHAPES), 2, replace=False)
    boxes = ((0, 0.25, 0.45, 0.7), (0.55, 0.25, 1, 0.7))
    if relation == "above":
        boxes = tuple((b, a, d, c) for a, b, c, d in boxes)
    canvas, objects = Image.new("RGBA", (SIDE, SIDE)), []
    for shape, box in zip((SHAPES[one], SHAPES[other]), boxes, strict=True):
        colour = PAINTS[int(rng.integers(len(PAINTS)))]
        canvas.alpha_composite(draw(shape, colour, False, box))
        thing = {"base": f"{SHAPES.index(shape)}{colour}", "label": f"{colour} {shape}"}
        objects.append({**thing, "style": "flat", "colour": None, "count": 1})
    words = "to the left of" if relation == "left" else "above"
    text = f"a {objects[0]['label']} {words} a {objects[1]['label']}"
    base = "+".join(sorted(o["base"] for o in objects))
    facts = {"text": text, "style": "flat", "base": base, "split": "train", "kind": "scene"}
    return write(folder, f"scenes/{index}.png", canvas, **facts, objects=objects, relation=relation, background=None)


STEPS = {"encoder": 160, "match": 60, "attributes": 30}


def tiny_judges(data: Path, out: Path) -> Path:
    """Judges trained for STEPS, exported to `out`/judges."""
    changes = {"heldout_every": "0", "checkpoint_minutes": "9", "precision": "fp32"}
    for judge in JUDGES:
        run(f"tiny-{judge}", data, out / judge, {**changes, "steps": str(STEPS[judge])})
    export_judges({judge: out / judge for judge in JUDGES}, data, out / "judges")
    return out / "judges"
