"""The cache folder of converted networks: each in a folder of its own, whole or not there. Imports no torch.

A folder holds what OpenVINO reads and `about.json`: the sizes of the files and what checks have found. It may be
deleted at any time (`imagewright models clear-cache`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock  # comes with the hub's client
from platformdirs import user_cache_path

_ABOUT = "about.json"


def folder() -> Path:
    """Where conversions are kept."""
    return user_cache_path("imagewright") / "openvino"


def clear() -> int:
    """Deletes all conversions; returns how many bytes were freed."""
    size = sum(file.stat().st_size for file in folder().rglob("*") if file.is_file()) if folder().is_dir() else 0
    shutil.rmtree(folder(), ignore_errors=True)
    return size


class Kept:
    """One conversion, named by a hash of `key`: all that it depends on."""

    def __init__(self, key: str) -> None:
        self.folder = folder() / hashlib.sha256(key.encode()).hexdigest()[:32]
        self.about: dict[str, Any] = {}

    @property
    def graph(self) -> Path:
        """The file that OpenVINO reads; its weights lie beside it."""
        return self.folder / "model.xml"

    @property
    def megabytes(self) -> float:
        """Its size on disk."""
        return float(sum(self.about["sizes"].values())) / 1e6

    def lock(self) -> FileLock:
        """Held while converting, so that two processes do not both convert. Raises OSError."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder.with_suffix(".lock"))

    def there(self) -> bool:
        """Whether a whole conversion is kept; reads what is known of it into `about`."""
        try:
            self.about = json.loads((self.folder / _ABOUT).read_text("utf-8"))
            return all((self.folder / name).stat().st_size == size for name, size in self.about["sizes"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def save(self, write: Callable[[Path], None]) -> None:
        """Has `write` make the graph in a folder beside, which then takes the place of the old. Raises OSError."""
        made = Path(tempfile.mkdtemp(prefix=".making-", dir=self.folder.parent))
        try:
            write(made / self.graph.name)
            self.about = {"sizes": {file.name: file.stat().st_size for file in made.iterdir()}, "checks": {}}
            (made / _ABOUT).write_text(json.dumps(self.about), "utf-8")
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(made, self.folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def checked(self, shapes: str, found: float) -> None:
        """Keeps how near (dB) the conversion came for inputs of these shapes. Raises OSError."""
        self.about["checks"][shapes] = found
        made = self.folder / f".{_ABOUT}.{os.getpid()}"
        made.write_text(json.dumps(self.about), "utf-8")
        os.replace(made, self.folder / _ABOUT)
