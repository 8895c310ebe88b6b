"""Train the three judges of pictures, or export trained ones with what they are worth.

python scripts/judges.py train DATA RUNS              makes RUNS/{encoder,match,attributes}; goes on where it stopped
python scripts/judges.py export DATA RUNS OUT         writes OUT/*.onnx and OUT/judges.json
python scripts/judges.py realism DATA GAN OUT         ranks real pictures with the critic of the exported GAN beside OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from imagewright.data.loader import CaptionedFolder
from imagewright.evaluation.judging import JUDGES, export_judges
from imagewright.refine.realism import write_reference
from imagewright.training.judges import run


def main() -> None:
    """See the module's docstring."""
    match sys.argv[1:]:
        case ["train", data, runs]:
            for judge in JUDGES:
                if run(judge, Path(data), Path(runs) / judge).reason == "interrupted":
                    sys.exit(130)
        case ["export", data, runs, out]:
            made = export_judges({judge: Path(runs) / judge for judge in JUDGES}, Path(data), Path(out))
            print(json.dumps({name: made[name] for name in ("version", "files", "calibration", "real")}, indent=1))
        case ["realism", data, gan, out]:
            realism(Path(data), Path(gan), Path(out))
        case _:
            sys.exit(__doc__)


def realism(data: Path, gan: Path, out: Path) -> None:
    """Write OUT/realism.json from the held-out pictures of DATA."""
    folder = CaptionedFolder(data)
    rows = folder.heldout(500)
    pixels = (folder.packed(128)[rows] if len(rows) else np.zeros((0, 8, 8, 4), np.uint8)).astype(np.uint8)
    pictures = [Image.frombuffer("RGBa", p.shape[1::-1], p.tobytes()).convert("RGBA") for p in pixels]
    write_reference(gan, pictures, [folder.records[row]["text"] for row in rows], out)


if __name__ == "__main__":
    main()
