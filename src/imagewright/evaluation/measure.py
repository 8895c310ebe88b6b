"""What a model's pictures cost: time and memory, measured in a process of its own so that nothing else is in them.

The process is this module, started with a folder as its argument and a job as JSON on stdin; pictures and a report
come back in the folder.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from imagewright.errors import ImagewrightError, ModelError
from imagewright.pictures import encode, open_picture
from imagewright.request import ImageRequest
from imagewright.workshop import Workshop

WARM_DRAWS = 2  # of the first request again, where it is the only one


@dataclass(frozen=True)
class Cost:
    """`cold` seconds from the start of a new process to its first picture, `warm` seconds of the median later one, and
    the most memory that the process held, in bytes (None: this system does not tell)."""

    cold: float
    warm: float
    peak_bytes: int | None


def measure(requests: Sequence[Mapping[str, Any]]) -> tuple[list[Image.Image], list[dict[str, Any]], Cost]:
    """The pictures of `requests` (fields of ImageRequest), drawn one by one in a new process, their records and cost.

    Raises ModelError with what the process said.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = {"started": time.time(), "requests": list(requests)}
        command = [sys.executable, "-m", "imagewright.evaluation.measure", folder]
        done = subprocess.run(command, input=json.dumps(job), text=True, capture_output=True)
        report = Path(folder) / "report.json"
        if not report.exists():
            raise ModelError(
                f"Drawing ended with code {done.returncode}: {done.stderr.strip()[-300:]}", "Draw it alone."
            )
        told = json.loads(report.read_text("utf-8"))
        if "error" in told:
            raise ModelError(told["error"], told["fix"])
        pictures = [open_picture(Path(folder) / f"{index}.png").copy() for index in range(len(requests))]
    return pictures, told["records"], Cost(**told["cost"])


def main() -> None:
    """The process: draws what stdin asks for into the folder argv[1]."""
    folder, job = Path(sys.argv[1]), json.loads(sys.stdin.read())
    try:
        report = _draw(folder, job)
    except ImagewrightError as error:
        report = {"error": error.message, "fix": error.fix}
    (folder / "report.json").write_text(json.dumps(report), "utf-8")


def _draw(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    workshop, seconds, records = Workshop(), [], []
    requests = [ImageRequest(**fields) for fields in job["requests"]]
    again = requests[:1] * WARM_DRAWS if len(requests) == 1 else []
    for index, request in enumerate([*requests, *again]):
        start = time.perf_counter() if index else None
        result = workshop.make(request)
        seconds.append(time.time() - job["started"] if start is None else time.perf_counter() - start)
        if index < len(requests):
            (folder / f"{index}.png").write_bytes(encode(result[0], "png"))
            records.append(result.records[0])
    cost = {"cold": seconds[0], "warm": statistics.median(seconds[1:]), "peak_bytes": peak_bytes()}
    return {"records": records, "cost": cost}


def peak_bytes() -> int | None:
    """The most memory that this process held so far (None: unknown here)."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held before this program was loaded
        lines = (line.split() for line in status.read_text("utf-8").splitlines())
        return next((int(line[1]) * 1024 for line in lines if line[:1] == ["VmHWM:"]), None)
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
