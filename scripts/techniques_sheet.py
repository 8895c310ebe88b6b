"""Draws twelve fixed prompts with each technique that ships, a row each, one seed, nothing picked:
python scripts/techniques_sheet.py

Writes docs/techniques/techniques.webp.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import imagewright
from imagewright.engines.catalog import DEFAULT_ENGINE, Catalog
from imagewright.evaluation.sheet import matrix
from imagewright.evaluation.suites import COMPARE_24

TECHNIQUES = ("vae", "gan", "autoregressive", "diffusion")
PROMPTS = COMPARE_24[::2]  # two of each kind
CELL = 96


def main() -> None:
    """Make the sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/techniques/techniques.webp")
    arguments = parser.parse_args()
    names = {info.technique: info.name for info in reversed(Catalog().engine(DEFAULT_ENGINE).models())}
    shown = [technique for technique in TECHNIQUES if technique in names]
    rows = [
        [imagewright.generate(p.prompt, style=p.style, seed=arguments.seed, model=names[technique])[0] for p in PROMPTS]
        for technique in shown
    ]
    heads = ["\n".join(textwrap.wrap(p.prompt + (f" [{p.style}]" if p.style else ""), 15)) for p in PROMPTS]
    matrix(rows, shown, heads, cell=CELL).save(arguments.out, quality=88, method=6)
    print(arguments.out)


if __name__ == "__main__":
    main()
