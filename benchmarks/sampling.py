"""Guidance, its interval, samplers and steps of a model of the package: python benchmarks/sampling.py DATA OUT

Seen captions are drawn by the exported model, picture i from seed i in every variant, and judged by the match judge
that ships: the mean probability to match, its gain over the first variant picture by picture, and R@1 of 100.
Milliseconds are CPU time. OUT/sampling.jsonl gets a line as each variant ends, and what is there is not done again.
DDIM is not among the samplers: with the flow process its steps are Euler's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablations import JUDGED, Judged, Results, as_row, judged_cells

from imagewright.data.batch import STYLES
from imagewright.data.loader import CaptionedFolder
from imagewright.engines.embedded import EmbeddedEngine, ExportedModel
from imagewright.engines.runners.diffusion import draw
from imagewright.request import ImageRequest
from imagewright.source import to_picture
from imagewright.watch import Watch


def _sampling(**changes: Any) -> dict[str, Any]:
    return {"steps": 8, "guidance": 3.0, "interval": (0.0, 1.0), "sampler": "dpmpp_2m", **changes}


VARIANTS: dict[str, dict[str, Any]] = {
    "8 steps, guidance 3": _sampling(),
    **{f"guidance {g:g}": _sampling(guidance=g) for g in (1.0, 2.0, 4.0, 6.0)},
    **{f"steps {n}": _sampling(steps=n) for n in (2, 3, 4, 6, 16)},
    "guidance 3 for t < .9": _sampling(interval=(0.0, 0.9)),
    "guidance 3 for t > .2": _sampling(interval=(0.2, 1.0)),
    "guidance 3 for .2 < t < .9": _sampling(interval=(0.2, 0.9)),
    "guidance 6 for .2 < t < .9": _sampling(interval=(0.2, 0.9), guidance=6.0),
    "euler, 8 steps": _sampling(sampler="euler"),
    "heun, 4 steps": _sampling(sampler="heun", steps=4),
    "ancestral, 8 steps": _sampling(sampler="ancestral"),
    **{f"ancestral, 8 steps, guidance {g:g}": _sampling(sampler="ancestral", guidance=g) for g in (1.5, 2.0, 4.0)},
    **{f"ancestral, {n} steps": _sampling(sampler="ancestral", steps=n) for n in (4, 6, 12)},
}


def variant_row(judged: Judged, model: ExportedModel, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured of a variant of sampling; picture i has seed i."""
    began, pictures = time.process_time(), []
    for i, (prompt, style) in enumerate(zip(judged.prompts, judged.styles, strict=True)):
        words = model.words(ImageRequest(prompt=prompt, style=STYLES[style] if style else None))[0]
        pictures.append(to_picture(draw(model, words, options, i, Watch())))
    spent = (time.process_time() - began) / len(pictures)
    return {"arm": name, "milliseconds": 1000 * spent} | judged(pictures)


def line(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """A variant as a row of the table."""
    return as_row([row["arm"], f"{row['milliseconds']:.0f}", *judged_cells(row, first)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="stickers-diffusion")
    parser.add_argument("--drawings", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="names of variants")
    options = parser.parse_args()
    results, engine = Results(options.out / "sampling.jsonl", ["arm"]), EmbeddedEngine(lanes=1)
    model, judged = engine.load(engine.find(options.model)), Judged(CaptionedFolder(options.data), options.drawings)
    print(as_row(["variant", "ms a picture", *JUDGED]), as_row(["---"] * (2 + len(JUDGED))), sep="\n")
    for name, sampling in VARIANTS.items():
        if options.only and name not in options.only:
            continue
        if not results.has(arm=name):
            results.add(variant_row(judged, model, name, sampling))
        print(line(next(row for row in results.rows if row["arm"] == name), results.rows[0]), flush=True)


if __name__ == "__main__":
    main()
