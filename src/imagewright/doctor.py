"""What this installation has and what it lacks."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from imagewright.engines.catalog import DEFAULT_ENGINE, Catalog
from imagewright.engines.engine import ModelInfo
from imagewright.errors import ImagewrightError

_CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
)
_NOT_FOR_USERS = ("test", "dev")


@dataclass(frozen=True)
class Check:
    """One finding: `bad` is needed and broken, `absent` is optional and not here."""

    name: str
    state: Literal["ok", "absent", "bad"]
    detail: str
    fix: str = ""


def examine() -> list[Check]:
    """All findings, cheap ones first. Imports neither torch nor ONNX Runtime by itself."""
    return [_python(), *_packages(), _cpu(), _memory(), *_models(), _identity()]


def _python() -> Check:
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Check(
        "python",
        "ok" if good else "bad",
        platform.python_version(),
        "" if good else "Use Python 3.11 to 3.13.",
    )


def _packages() -> list[Check]:
    """The base packages as one check, and one check for each extra, as the installed metadata names them."""
    try:
        wanted = requires("imagewright") or []
    except PackageNotFoundError:
        return [Check("imagewright", "bad", "runs from source, not installed", "Run: pip install -e .")]
    groups: dict[str, list[str]] = {"": []}
    for line in wanted:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name and name[0] != "imagewright":
            groups.setdefault(extra[1] if extra else "", []).append(name[0])
    return [_group(extra, names) for extra, names in groups.items() if extra not in _NOT_FOR_USERS]


def _group(extra: str, names: list[str]) -> Check:
    present = {name: found for name in names if (found := _version(name))}
    missing = [name for name in names if name not in present]
    title = f"extra [{extra}]" if extra else "base packages"
    if missing:
        package = f"'imagewright[{extra}]'" if extra else "imagewright"
        return Check(
            title,
            "absent" if extra else "bad",
            f"missing {', '.join(missing)}",
            f"Run: pip install {package}",
        )
    return Check(title, "ok", ", ".join(f"{name} {found}" for name, found in present.items()))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> Check:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return Check("cpu", "ok", f"{platform.machine()}, {os.cpu_count()} threads")
    flags = set(re.sub(r"^\w+.*?:", "", "".join(re.findall(r"^(?:flags|Features)\s*:.*$", text, re.M)[:1])).split())
    fast = [flag for flag in _CPU_FLAGS if flag in flags]
    return Check("cpu", "ok", f"{platform.machine()}, {os.cpu_count()} threads, {' '.join(fast) or 'no fast vectors'}")


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Check("memory", "ok", "unknown")
    return Check("memory", "ok", f"{total / 2**30:.1f} GiB")


def _models() -> list[Check]:
    checks: list[Check] = []
    for listing in Catalog().listings():
        needed = listing.engine == DEFAULT_ENGINE
        if listing.problem or (needed and not listing.models):
            problem = listing.problem or "It has no models."
            fix = listing.fix or "Reinstall imagewright."
            checks.append(Check(f"engine {listing.engine}", "bad" if needed else "absent", problem, fix))
        checks += [_model(model) for model in listing.models]
    return checks


def _model(model: ModelInfo) -> Check:
    name, digest = (
        f"model {model.engine}/{model.name}",
        f"sha256 {model.digest[:12]}" if model.digest else "no digest",
    )
    if model.engine != DEFAULT_ENGINE:
        return Check(name, "ok", digest)
    from imagewright.engines.embedded import verify

    try:
        verify(Path(model.extra["path"]))
    except ImagewrightError as error:
        return Check(name, "bad", error.message, error.fix)
    return Check(name, "ok", f"{digest}, files verified")


def _identity() -> Check:
    """Signs a picture of one pixel and reads it back: the whole way, not only the files."""
    from PIL import Image

    from imagewright.pictures import encode
    from imagewright.provenance import credentials, identity

    try:
        where = identity.folder()
        signed = credentials.sign(encode(Image.new("RGB", (1, 1)), "png"), "png", {}, where)
        state = credentials.read(signed, "png", where).state
        expires = identity.load_or_create(where).expires
    except (ImagewrightError, ImportError) as error:
        return Check("credentials", "bad", str(error), getattr(error, "fix", "Reinstall imagewright."))
    return Check(
        "credentials",
        "ok" if state == "trusted" else "bad",
        f"{state}, self-made (proves this installation, not a person), until {expires:%Y-%m-%d}",
    )
