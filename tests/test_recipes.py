"""The recipes run from end to end, at toy size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

RECIPES = Path(__file__).parents[1] / "recipes"
COLOURS = {"red": "#dd2211", "blue": "#2244dd", "green": "#22aa33", "yellow": "#ffcc22"}
SHAPES = ("disc", "square", "ring")


def draw_folder(folder: Path, copies: int = 4) -> Path:
    """Captioned pictures of plain shapes, 48 of them."""
    folder.mkdir()
    for colour, fill in COLOURS.items():
        for shape in SHAPES:
            for i in range(copies):
                picture = Image.new("RGBA", (48, 48))
                pen, box = ImageDraw.Draw(picture), (6 + i, 6, 40, 40 - i)
                if shape == "square":
                    pen.rectangle(box, fill=fill)
                else:
                    pen.ellipse(box, fill=fill if shape == "disc" else None, outline=fill, width=8)
                picture.save(folder / f"{colour}_{shape}_{i}.png")
                (folder / f"{colour}_{shape}_{i}.txt").write_text(f"a {colour} {shape}")
    return folder


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_four_techniques_train_resume_draw_export_and_are_compared(tmp_path: Path) -> None:
    data, out = draw_folder(tmp_path / "data"), tmp_path / "out"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    toy = ["--set", "steps=8", "--set", "batch=8", "--set", "sample_every=0", "--set", "heldout_every=0"]
    done = subprocess.run(
        ["bash", str(RECIPES / "four-techniques.sh"), str(data), str(out), "4", *toy],
        env={**os.environ, "PATH": path, "N": "20", "PROMPT": "a red disc", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("8 steps, stopped by steps") == 12  # six models, each given again after it was done
    for technique in ("diffusion", "gan", "autoregressive", "vae"):
        assert size_of(out / f"{technique}.png") == (32, 32)
        report = json.loads((out / "evaluations" / technique / "report.json").read_text())
        assert technique in json.dumps(report)
    page = (out / "report" / "index.html").read_text()
    assert all(name in page for name in ("diffusion", "gan", "autoregressive", "vae"))
    assert "http://" not in page and "https://" not in page  # it opens offline
    assert size_of(out / "report" / "report.png")[0] > 500


def test_the_recipes_are_well_formed() -> None:
    for recipe in sorted(RECIPES.glob("*.sh")):
        assert subprocess.run(["bash", "-n", str(recipe)]).returncode == 0, recipe
        assert os.access(recipe, os.X_OK), recipe
