"""Measures the models that ship and writes the figures into their cards and the docs, between markers:

python scripts/cards.py DATA [--n 5000] [--edits 200] [--models NAME ...] [--work build/cards] [--sheets]

DATA is the sticker set. Drawn pictures and reports are kept in the work folder: the same command goes on where it
stopped, and measures again only what changed (weights, judges, data, N). The table of all models in
docs/four-techniques.md is written where all are measured. `--sheets` also draws the sheets of the docs. Last, it
compares the data with the list of training pictures that ships (`imagewright data check`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

from imagewright.data import trained_on
from imagewright.engines.catalog import DEFAULT_ENGINE, Catalog
from imagewright.evaluation import cards
from imagewright.evaluation.features import Tell
from imagewright.refine.judge import Judges

ROOT = Path(__file__).parents[1]
SHEETS = (
    ["sheet.py"],
    ["sheet.py", "--suite", "first"],
    ["edit_sheet.py"],
    ["techniques_sheet.py"],
)
EVERY = 20  # seconds between two lines of progress


def progress(model: str) -> Tell:
    """Prints how far the drawing is, and an estimate of what is left."""
    began: dict[str, tuple[float, int]] = {}
    last = [0.0]

    def told(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        start, first = began.setdefault(phase, (now, done))
        if now - last[0] < EVERY and done < total:
            return
        last[0] = now
        left = (now - start) / max(1, done - first) * (total - done)
        print(f"{model}: {phase} {done} of {total}, {left / 60:.0f} min left", file=sys.stderr, flush=True)

    return told


def main() -> None:
    """See the module's docstring."""
    catalog = Catalog()
    names = [info.name for info in catalog.engine(DEFAULT_ENGINE).models()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--n", type=int, default=5000)
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=names, choices=names)
    parser.add_argument("--work", type=Path, default=Path("build/cards"))
    parser.add_argument("--sheets", action="store_true")
    arguments = parser.parse_args()
    places = cards.Places(
        ROOT / "recipes",
        Path(str(files("imagewright") / "assets")),
        ROOT / "docs" / "four-techniques.md" if set(arguments.models) == set(names) else None,
    )
    measuring = cards.Measuring(arguments.data, arguments.work, arguments.n, arguments.edits, Judges(), catalog)
    changed = cards.refresh(arguments.models, measuring, places, progress)
    for sheet in SHEETS if arguments.sheets else ():
        subprocess.run([sys.executable, str(ROOT / "scripts" / sheet[0]), *sheet[1:]], check=True)
    for path in changed:
        print(path)
    print(f"hold-outs of {trained_on.check(arguments.data).manifest}: no rule is broken")


if __name__ == "__main__":
    main()
