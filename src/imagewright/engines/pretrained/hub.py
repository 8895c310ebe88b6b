"""Gets open weights from the hub, on demand only: what is needed and safe, whole, and verified by its hash.

Only safetensors, configurations and vocabularies are fetched, never pickles; of several variants of the same weights
the one in half precision. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from imagewright.engines.pretrained.sources import INDEX, PICKLES, WEIGHTS, is_hub_id
from imagewright.errors import IntegrityError, MissingExtraError, ModelError, ModelNotFoundError, OutputError

_SIDE = (".json", ".txt", ".model", ".md")  # configurations, vocabularies, and what the authors say
_NEVER = ("safety_checker/", "flax_", "openvino_", "onnx/", "non_ema")
_HALF = "fp16"


@dataclass(frozen=True)
class File:
    """One file of a repository: its path there, bytes, and hash (sha256 of large files, git's sha1 of the others)."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class Offer:
    """What would be fetched, and under which licence. `gated`: its owners let in only whom they know."""

    repository: str
    revision: str
    licence: str
    gated: bool
    page: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)


def offer(repository: str, only: Sequence[str] = ()) -> Offer:
    """What the hub has under ORG/NAME; `only` these files or patterns. Raises ModelNotFoundError, ModelError."""
    if not is_hub_id(repository):
        raise ModelNotFoundError(f"{repository!r} is no name of a repository.", "Write it as ORG/NAME.")
    hub = _hub()
    with _said(repository):
        found = hub.HfApi().model_info(repository, files_metadata=True)
        there = [File(s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else s.blob_id or "") for s in found.siblings]
        index: dict[str, Any] = {}
        if any(file.path == INDEX for file in there) and not only:
            index = json.loads(Path(hub.hf_hub_download(repository, INDEX, revision=found.sha)).read_text("utf-8"))
    card = found.card_data or {}
    licence = card.get("license_name") or card.get("license") or "not stated"
    return Offer(
        repository,
        found.sha,
        licence if isinstance(licence, str) else ", ".join(licence),
        bool(found.gated),
        f"{hub.constants.ENDPOINT}/{repository}",
        tuple(chosen(there, index, only)),
    )


def chosen(there: Sequence[File], index: dict[str, Any], only: Sequence[str] = ()) -> list[File]:
    """The files to fetch: those of the components that model_index.json names, or all where there is none.

    Raises ModelError where a component has pickles only, or nothing is left.
    """
    if only:
        found = [file for file in there if any(fnmatch(file.path, pattern) for pattern in only)]
        unsafe = [file.path for file in found if PurePosixPath(file.path).suffix in PICKLES]
        if unsafe or not found:
            what = f"{unsafe[0]} can run code when it is opened" if unsafe else f"No file there is called {only[0]}"
            raise ModelError(f"{what}.", "Name files that end in .safetensors or .json, as the repository has them.")
        return found
    parts = {name for name, value in index.items() if isinstance(value, list) and value[:1] != [None]}
    wanted = [file for file in there if _wanted(file.path, parts)]
    weights: dict[str, dict[str, list[File]]] = defaultdict(lambda: defaultdict(list))  # of each folder, by variant
    for file in wanted:
        if file.path.endswith(WEIGHTS):
            weights[str(PurePosixPath(file.path).parent)][_variant(file.path)].append(file)
    _check_safe(there, parts, set(weights))
    half = all(_HALF in variants for variants in weights.values()) or not parts
    picked = [file for file in wanted if not file.path.endswith(WEIGHTS)]
    for variants in weights.values():
        plain = variants.get("", [file for files in variants.values() for file in files])
        picked += variants[_HALF] if half and _HALF in variants else plain
    if not weights:
        raise ModelError("The repository has no safetensors files.", "Choose another: imagewright models --recommended")
    return picked


def _wanted(path: str, parts: set[str]) -> bool:
    name = PurePosixPath(path)
    if any(text in path for text in _NEVER) or name.suffix not in (*_SIDE, WEIGHTS):
        return False
    if parts and len(name.parts) > 1:
        return name.parts[0] in parts
    return not parts or name.suffix != WEIGHTS  # beside a pipeline's folders lie single files of the same weights


def _variant(path: str) -> str:
    """ "fp16" for model.fp16.safetensors and model.fp16-00001-of-00002.safetensors, "" for the plain one."""
    stem = re.sub(r"-\d{5}-of-\d{5}", "", PurePosixPath(path).name.removesuffix(WEIGHTS))
    return _HALF if stem.endswith(f".{_HALF}") else ""


def _check_safe(there: Sequence[File], parts: set[str], with_weights: set[str]) -> None:
    for file in there:
        name = PurePosixPath(file.path)
        folder = str(name.parent)
        if name.suffix in PICKLES and folder in parts - with_weights and folder != "safety_checker":
            raise ModelError(
                f"The component {folder} is there only as {name.name}, which can run code when it is opened.",
                "Choose another model: imagewright models --recommended",
            )


def cache_folder() -> Path:
    """The hub's own cache, where a download goes by default."""
    return Path(_hub().constants.HF_HUB_CACHE)


def fetch(found: Offer, to: Path | None = None, progress: bool = False) -> Path:
    """Downloads an offer into the hub's cache, or into the folder `to`; what is there already is not fetched again.

    Raises ModelError, OutputError where the disk is too small, and IntegrityError where a file is not what the hub
    says it is.
    """
    hub = _hub()
    _check_space(found, to or cache_folder())
    if not progress:
        hub.utils.disable_progress_bars()
    with _said(found.repository):
        folder = Path(
            hub.snapshot_download(
                found.repository,
                allow_patterns=[re.sub(r"([\[\]*?])", r"[\1]", file.path) for file in found.files],
                local_dir=to,
            )
        )
    for file in found.files:
        _verify(folder / file.path, file)
    return folder


def _check_space(found: Offer, folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if found.size > free:
        raise OutputError(
            f"{found.repository} has {found.size / 1e9:.1f} GB, and {free / 1e9:.1f} GB is free in {folder}.",
            "Make room, or download to another disk with --to FOLDER.",
        )


def _verify(path: Path, file: File) -> None:
    """Compares a file with its hash; one that differs is deleted, so that the next try fetches it again."""
    large = len(file.digest) == 64
    digest = hashlib.sha256() if large else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as data:
        while block := data.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != file.digest:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise IntegrityError(f"{file.path} is not what the hub says it is; it was deleted.", "Give the command again.")


def _hub() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError("Getting a model", "pretrained") from error
    return huggingface_hub


@contextmanager
def _said(repository: str) -> Iterator[None]:
    """The hub's errors as ours."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        page = f"{_hub().constants.ENDPOINT}/{repository}"
        raise ModelError(
            f"{repository} is gated: its owners let in only those who accepted their terms.",
            f"Open {page}, accept them, then run `hf auth login` (or set HF_TOKEN) and try again.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"The hub has no repository {repository} that is open to you.", "Check the name; for a private one log in."
        ) from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise _unreachable() from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"The download of {repository} failed: {str(error).strip().splitlines()[0]}",
            "Give the command again: it goes on where it stopped.",
        ) from error
    except Exception as error:
        if any(kind.__name__ == "TransportError" for kind in type(error).__mro__):  # of httpx, or what follows it
            raise _unreachable() from error
        raise


def _unreachable() -> ModelError:
    return ModelError(
        "The hub cannot be reached.",
        "Check the network (and that HF_HUB_OFFLINE is not set), and give the command again: it goes on where it "
        "stopped.",
    )
