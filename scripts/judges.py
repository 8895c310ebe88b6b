"""Train the three judges of pictures, or export trained ones with what they are worth.

python scripts/judges.py train DATA RUNS              makes RUNS/{encoder,match,attributes}; goes on where it stopped
python scripts/judges.py export DATA RUNS OUT         writes OUT/*.onnx and OUT/judges.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from imagewright.evaluation.judging import JUDGES, export_judges
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
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
