"""The articles' example: handwritten digits, drawn by the four techniques after a minute of training each.

    python recipes/digits.py --out runs/digits --minutes 1
    python recipes/digits.py --out runs/digits --source FOLDER_WITH_MNIST

Without `--source` the digits are the 1,797 that scikit-learn ships: pip install 'imagewright[train,digits]'. Each cell
below (`# %%`) also runs alone in an editor that knows cells. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # a plain checkout, nothing installed

# %% What to train: the technique, its preset, and the name of the run
RUNS = (
    ("vae", "article", "vae"),
    ("gan", "article", "gan"),
    ("gan", "article-small", "gan-small"),
    ("diffusion", "ddpm", "ddpm"),
    ("autoregressive", "tiny", "autoregressive"),
)
COLUMNS = 10  # one digit each
ROWS = 4  # seeds


# %% The digits as a captioned folder
def digits(out: Path, source: Path | None) -> Path:
    """The folder of digits, made once."""
    from imagewright.data.digits import build

    return build(out / "data", source)


# %% Train one model
def trained(technique: str, preset: str, data: Path, run: Path, minutes: float):
    """The averaged model of the run folder `run`."""
    from imagewright.training.checkpoint import load_model
    from imagewright.training.command import run as train

    report = train(technique, data, preset, run, {}, minutes=minutes)
    print(f"{run.name}: {report.reason} at step {report.step}", flush=True)
    if report.reason == "interrupted":
        sys.exit(130)
    return load_model(run, ema=True).eval()


# %% Sample each digit a few times
def drawn(model):
    """ROWS x COLUMNS pictures (B, 4, H, W): a column a digit, a row a seed."""
    from imagewright.data.digits import NAMES
    from imagewright.models.technique import Cond

    prompts = [f"the digit {name}" for name in NAMES] * ROWS
    seeds = [row for row in range(ROWS) for _ in range(COLUMNS)]
    return model.sample(Cond(prompts, [0] * len(prompts)), seeds)


# %% One sheet: a strip a model, under its name
def sheet(strips: dict[str, object], side: int = 28):
    """All strips below each other, as one PIL picture."""
    import torch
    from PIL import Image, ImageDraw

    title, height = 14, ROWS * side
    page = Image.new("RGB", (COLUMNS * side, len(strips) * (title + height)), "white")
    for i, (name, pictures) in enumerate(strips.items()):
        small = torch.nn.functional.interpolate(pictures[:, :3].float().cpu().clamp(-1, 1), (side, side), mode="area")
        rows = small.unflatten(0, (ROWS, COLUMNS)).permute(0, 3, 1, 4, 2).reshape(height, COLUMNS * side, 3)
        top = i * (title + height)
        page.paste(Image.fromarray(((rows + 1) * 127.5).round().byte().numpy()), (0, top + title))
        ImageDraw.Draw(page).text((2, top + 1), name, fill="black")
    return page.resize((page.width * 2, page.height * 2), Image.Resampling.NEAREST)


# %% All of it
def main() -> None:
    """Train, sample, and write OUT/sheet.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--minutes", type=float, default=1.0, help="of training, for each model")
    parser.add_argument("--source", type=Path, help="a folder with MNIST's idx files")
    told = parser.parse_args()
    data = digits(told.out, told.source)
    strips = {}
    for technique, preset, name in RUNS:
        strips[name] = drawn(trained(technique, preset, data, told.out / name, told.minutes))
        sheet(strips).save(told.out / "sheet.png")
    print(f"{told.out / 'sheet.png'}")


if __name__ == "__main__":
    main()
