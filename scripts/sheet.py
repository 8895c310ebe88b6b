"""Draws the sheet of 64 fixed prompts: python scripts/sheet.py [MODEL] [OUT.png] [SEED]."""

from __future__ import annotations

import sys

import imagewright
from imagewright.evaluation.sheet import sheet
from imagewright.evaluation.suites import SHEET_64


def main(model: str | None, out: str, seed: int) -> None:
    """One picture a prompt, all with the same seed: nothing is picked by hand."""
    made = [imagewright.generate(p.prompt, style=p.style, seed=seed, model=model)[0] for p in SHEET_64]
    labels = [p.prompt + (f" [{p.style}]" if p.style else "") for p in SHEET_64]
    sheet(made, labels).save(out)
    print(out)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(
        arguments[0] if arguments and arguments[0] != "-" else None,
        arguments[1] if len(arguments) > 1 else "docs/sheet.png",
        int(arguments[2]) if len(arguments) > 2 else 0,
    )
