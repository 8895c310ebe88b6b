"""Requests made up from a server's own description, by chance: how many, how fast, and what went wrong.

python benchmarks/fuzz.py [CASES [SEED]]     10,000 cases unless told
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "server"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "server" / "slow_engine"))
sys.path.append(str(Path(__file__).parents[1] / "tests" / "fake_engine"))

from fuzzing import CHECKS, Findings, fuzz
from served import served
from strangers import ADMIN

EACH = 40  # cases of an operation at a time


def main() -> None:
    """Rounds, each with a seed of its own, until there are enough cases."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**32)
    total = Findings()
    with tempfile.TemporaryDirectory() as folder, served(Path(folder), admin_key=ADMIN, queue=10_000) as client:
        client.headers["authorization"] = f"Bearer {ADMIN}"
        while total.cases < wanted:
            found = fuzz(client, EACH, seed)
            total.cases += found.cases
            total.seconds += found.seconds
            total.slowest = max(total.slowest, found.slowest)
            total.statuses += found.statuses
            total.wrong = {**found.wrong, **total.wrong}
            print(f"seed {seed}: {total.cases:,} cases, {len(total.wrong)} findings", flush=True)
            seed += 1
    by_status = Counter[int]()
    for (_, status), count in total.statuses.items():
        by_status[status] += count
    print(f"{total.cases:,} cases of {len({label for label, _ in total.statuses})} operations in {total.seconds:.0f} s")
    print(f"slowest {total.slowest:.1f} s; {len(CHECKS)} checks; by status {dict(sorted(by_status.items()))}")
    for what, example in sorted(total.wrong.items()):
        print(f"{what}\n    {example}")
    sys.exit(bool(total.wrong))


if __name__ == "__main__":
    main()
