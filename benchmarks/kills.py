"""kill -9 of a serving process under load, at random moments; then whether what it had accepted is done, once, whole.

python benchmarks/kills.py [KILLS]     in turn with an engine that draws in no time, the GAN, and diffusion in 2 steps
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "server"))

from processes import SLOW, Process, states, until
from test_server_kill import Load, check, idle, whole_at_once

from imagewright.database import Database

MODELS = {SLOW: {}, "stickers-gan": {}, "stickers-diffusion": {"num_inference_steps": 2}}


def main(kills: int) -> None:
    """All models, a share of the kills each."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1] / "tests" / "server" / "slow_engine")
    for name, request in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            kill(Path(folder), name, request, -(-kills // len(MODELS)))


def kill(folder: Path, model: str, request: dict[str, object], kills: int) -> None:
    """`kills` of a server that draws with one model."""

    def serve() -> Process:
        return Process(folder / "log", "serve", "--port", "0", "--folder", str(folder), "-m", model)

    chance, load, begun = random.Random(model), Load(clients=4, **request), time.monotonic()
    for _ in range(kills):
        load.run(serve(), chance.uniform(0.05, 3))
        whole_at_once(folder)
    server = serve()
    until(lambda: idle(folder), 600)
    server.kill()
    again = check(folder, load)  # raises where anything is lost, there twice or torn
    database = Database(f"sqlite:///{folder}/imagewright.db")
    print(
        f"{model:20} {kills} kills in {time.monotonic() - begun:.0f} s: all checks passed; {len(load.jobs)} jobs"
        f" accepted, {len(load.pictures)} pictures answered, {len(states(database))} jobs done, {again} begun again"
    )
    database.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
