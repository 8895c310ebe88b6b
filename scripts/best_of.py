"""Does choosing the best of four help? The share of prompts judged right without and with it.

python scripts/best_of.py MODEL DATA [PROMPTS=200] [OUT.json]

Four pictures are drawn for each prompt (held-out captions first, then seen ones). The match judge chooses one of the
four; the image encoder, another network with another seed that took no part in the choice, says whether the picture
shows the concept. Without choosing, the first of the four counts.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from imagewright.data.loader import CaptionedFolder
from imagewright.engines.catalog import Catalog
from imagewright.evaluation.drawing import drawn
from imagewright.evaluation.metrics import bootstrap, wilson
from imagewright.evaluation.prompts import HELD_OUT, SCENE, SEEN, items
from imagewright.refine.judge import Judges

TRIES = 4


def main() -> None:
    """See the module's docstring."""
    if not 3 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    model, data = sys.argv[1], Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    out = Path(sys.argv[4]) if len(sys.argv) > 4 else Path("best-of.json")
    judges, folder = Judges(), CaptionedFolder(data)
    engine, name = Catalog().find(model)
    info = engine.find(name)
    known = {concept: i for i, concept in enumerate(judges.labels["concepts"])}
    asked = [item for item in items("stickers", folder, 10 * count, info.capabilities.styles) if item.kind != SCENE]
    asked = [item for kind in (HELD_OUT, SEEN) for item in asked if item.kind == kind and item.base in known]
    asked = list({(item.prompt, item.style): item for item in asked}.values())[:count]
    tries = [dataclasses.replace(item, seed=TRIES * item.seed + k) for item in asked for k in range(TRIES)]
    pictures = judges.prepared(drawn(engine, info, tries, out.parent))
    match = judges.match(pictures, [item.prompt for item in tries]).reshape(-1, TRIES)
    concept = judges.identify(pictures)["concept"].argmax(1).reshape(-1, TRIES)
    right = concept == np.array([known[item.base] for item in asked])[:, None]  # (prompts, TRIES)
    chosen = right[np.arange(len(asked)), match.argmax(1)]
    found = {
        "first": wilson(int(right[:, 0].sum()), len(asked)),
        f"best of {TRIES}": wilson(int(chosen.sum()), len(asked)),
        "gain": bootstrap(chosen.astype(float) - right[:, 0]),
        f"any of {TRIES}": wilson(int(right.any(1).sum()), len(asked)),
    }
    report = {name: dataclasses.asdict(value) for name, value in found.items()}
    out.write_text(json.dumps({"model": info.name, "judges": judges.version, **report}, indent=1) + "\n", "utf-8")
    for name, value in found.items():
        print(f"{name:10}  {100 * value.value:5.1f} %  [{100 * value.low:.1f}, {100 * value.high:.1f}]  N = {value.n}")


if __name__ == "__main__":
    main()
