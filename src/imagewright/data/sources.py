"""Where the stickers come from: npm packages pinned by version and sha512, read in memory, never unpacked."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagewright.errors import DataError, IntegrityError

MEMBER_LIMIT = 256 * 2**20  # bytes; the largest member that is read today has 104 MB
TARBALL_LIMIT = 64 * 2**20
FETCH_SECONDS = 600


@dataclass(frozen=True)
class Source:
    """A pinned npm package: `style` of drawing (empty: names only), `integrity` as npm writes it."""

    style: str
    package: str
    version: str
    integrity: str
    licence: str  # SPDX
    author: str
    url: str

    @property
    def spec(self) -> str:
        return f"{self.package}@{self.version}"

    @property
    def file_name(self) -> str:
        """The name that `npm pack` gives the tarball."""
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


NAMES = Source(
    "",
    "emojibase-data",
    "17.0.0",
    "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
    "Miles Johnson",
    "https://github.com/milesj/emojibase",
)
PICTURES = (
    Source(
        "noto",
        "@iconify-json/noto",
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        "Google Inc",
        "https://github.com/googlefonts/noto-emoji",
    ),
    Source(
        "fluent",
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "MIT",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    Source(
        "flat",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
        "Microsoft Corporation",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    Source(
        "twemoji",
        "@iconify-json/twemoji",
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        "Twitter, Inc and other contributors (jdecked/twemoji)",
        "https://github.com/jdecked/twemoji",
    ),
    Source(
        "openmoji",
        "@iconify-json/openmoji",
        "1.2.29",
        "sha512-vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "CC-BY-SA-4.0",
        "OpenMoji project, HfG Schwaebisch Gmuend",
        "https://github.com/hfg-gmuend/openmoji",
    ),
)


def fetch(source: Source, folder: Path) -> Path:
    """Download the tarball of `source` into `folder` with npm, unless it is there, and check it."""
    path = folder / source.file_name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        npm_pack(source, folder)
    return check_integrity(path, source)


def npm_pack(source: Source, folder: Path) -> None:
    """Run `npm pack NAME@VERSION` in `folder`."""
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"npm is not installed, and {source.file_name} is not in {folder}.",
            "Install Node.js, or put the tarballs into a folder and name it with --from.",
        )
    try:
        done = subprocess.run(
            [npm, "pack", "--ignore-scripts", source.spec],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"npm pack {source.spec} took longer than {FETCH_SECONDS} s.", "Try again.") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(f"npm pack {source.spec} failed: {reason}", "Check the network, or use --from FOLDER.")


def check_integrity(path: Path, source: Source) -> Path:
    """Return `path` if its sha512 is the pinned one."""
    if not path.is_file():
        raise DataError(f"There is no {path.name} in {path.parent}.", f"Fetch it: npm pack {source.spec}")
    if path.stat().st_size > TARBALL_LIMIT:
        raise IntegrityError(f"{path} is larger than {TARBALL_LIMIT} bytes.", "Delete it and fetch it again.")
    got = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if got != source.integrity:
        raise IntegrityError(
            f"{path} does not match its pinned hash: expected {source.integrity}, got {got}.",
            "Delete it and fetch it again.",
        )
    return path


def read_json(path: Path, member: str) -> Any:
    """The JSON of one member of a tarball, read in memory."""
    with tarfile.open(path, "r:gz") as tar:
        try:
            info = tar.getmember(member)
        except KeyError:
            raise DataError(f"{path} has no {member}.", "Delete it and fetch it again.") from None
        stream = tar.extractfile(info)
        if stream is None or info.size > MEMBER_LIMIT:
            raise DataError(f"{member} in {path} is not a plain file below {MEMBER_LIMIT} bytes.")
        return json.loads(stream.read())
