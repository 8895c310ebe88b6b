"""Makes the environments of the clients that the acceptance tests run: python scripts/clients.py [NAME ...]

Each client of tests/clients/clients.json, in the versions there, gets an environment of its own in .clients/ (or where
IMAGEWRIGHT_CLIENTS says). One that is there already, in those versions, is left alone. Without names: all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PINNED: dict[str, Any] = json.loads((ROOT / "tests/clients/clients.json").read_text("utf-8"))
FOLDER = Path(os.environ.get("IMAGEWRIGHT_CLIENTS", ROOT / ".clients"))
MADE = "made.json"  # in an environment that is whole: what it was made from


def environment(name: str) -> str:
    """The name of the environment that a client runs in; some share one."""
    return str(PINNED[name].get("in", name))


def is_made(name: str) -> bool:
    """Whether a client's environment is there in the versions wanted."""
    made = FOLDER / environment(name) / MADE
    return made.exists() and json.loads(made.read_text("utf-8")) == PINNED[environment(name)]


def make(name: str) -> None:
    """A new environment. Raises CalledProcessError where its packages cannot be had."""
    wanted, folder = PINNED[name], FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    if "npm" in wanted:
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": wanted["npm"]}), "utf-8")
        npm = shutil.which("npm") or "npm"
        subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        pip = [sys.executable, "-m", "pip", "--python", python(folder), "install", "--quiet"]
        subprocess.run([*pip, "--disable-pip-version-check", *wanted["pip"]], check=True)
    (folder / MADE).write_text(json.dumps(wanted), "utf-8")


def python(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main(names: list[str]) -> None:
    """Make those that are not there."""
    for name in names or PINNED:
        if name not in PINNED:
            raise SystemExit(f"error: there is no client {name!r}; there are: {', '.join(PINNED)}")
        if not is_made(name):
            print(f"making {environment(name)} in {FOLDER / environment(name)}")
            make(environment(name))


if __name__ == "__main__":
    main(sys.argv[1:])
