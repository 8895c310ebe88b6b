"""Draws fixed prompts side by side, one seed, nothing picked: python scripts/sheet.py [--suite first]"""

from __future__ import annotations

import argparse
from pathlib import Path

import imagewright
from imagewright.evaluation.sheet import sheet
from imagewright.evaluation.suites import FIRST_8, SHEET_64

SUITES = {"sheet": SHEET_64, "first": FIRST_8}
FILES = {"sheet": "sheet.webp", "first": "first.png"}


def main() -> None:
    """Draw a suite with one model and write it into docs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=SUITES, default="sheet")
    parser.add_argument("--model", help="a model's name or folder; default: the one that ships")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: docs/sheet.webp or docs/first.png")
    arguments = parser.parse_args()
    prompts, labels, made = SUITES[arguments.suite], [], []
    for p in prompts:
        made.append(imagewright.generate(p.prompt, style=p.style, seed=arguments.seed, model=arguments.model)[0])
        labels.append(p.prompt + (f" [{p.style}]" if p.style else ""))
    out = arguments.out or Path(__file__).parents[1] / "docs" / FILES[arguments.suite]
    sheet(made, labels).save(out, optimize=True, quality=90, method=6)
    print(out)


if __name__ == "__main__":
    main()
