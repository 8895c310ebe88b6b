"""A run folder and its checkpoints: safetensors and JSON only; no crash can spoil the last good one.

    run/
      config.json model.safetensors ema.safetensors hashes.json   the newest: a run folder loads like a model
      checkpoints/latest checkpoints/best                         the names of the newest and of the best held-out loss
      checkpoints/step-00000100/                                  the same four files and
        state/optimizer.safetensors state/state.json              what only training needs

`config.json` holds `model` (`type` and the fields of the technique's config), `train`, `manifest_hash`,
`software` and `step`. A checkpoint is written under another name, synced, renamed; loading verifies the
sha256 of every file and falls back to the one before. `ema.safetensors` holds the trainable parameters only:
it is laid over the model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model
from safetensors.torch import load_model as load_weights
from torch import Tensor

from imagewright.errors import CheckpointError, ModelCorruptError, ModelNotFoundError
from imagewright.models.technique import Technique

CONFIG, MODEL, EMA, HASHES = "config.json", "model.safetensors", "ema.safetensors", "hashes.json"
OPTIMIZER, STATE = "state/optimizer.safetensors", "state/state.json"
HASHED = (CONFIG, MODEL, EMA, OPTIMIZER, STATE)
EXPORTED = "exported"  # in the config of a run that was restored from an exported model: its name
PARTIAL, CORRUPT, BEST = ".partial", ".corrupt", "best"


@dataclass(frozen=True)
class Snapshot:
    """Everything that a run needs to go on. `state` is JSON; `optimizer` and `ema` are tensors by name."""

    step: int
    config: Mapping[str, Any]
    technique: Technique
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]


class CheckpointStore:
    """The checkpoints of the run folder `out`, of which the newest `keep`, the best and the `spared` ones stay."""

    def __init__(self, out: Path, keep: int = 3) -> None:
        self.out, self.folder, self.keep = out, out / "checkpoints", keep
        self.spared: set[str] = set()

    def steps(self) -> list[Path]:
        """The checkpoint folders, newest first, unverified."""
        found = [p for p in self.folder.glob("step-*") if p.is_dir() and not p.suffix]
        return sorted(found, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest intact checkpoint (None: there is none at all) and what is wrong with each newer one.

        Raises CheckpointError if none of several is intact.
        """
        faults: list[str] = []
        for path in self.steps():
            fault = fault_in(path)
            if fault is None:
                return path, faults
            faults.append(f"{path.name}: {fault}")
        if faults:
            raise CheckpointError(f"No checkpoint in {self.out} is intact ({'; '.join(faults)}).", "Start a new run.")
        return None, []

    def best(self) -> Path | None:
        """The checkpoint with the best held-out loss, if one was marked."""
        marker = self.folder / BEST
        path = self.folder / marker.read_text("utf-8").strip() if marker.is_file() else None
        return path if path is not None and path.is_dir() else None

    def mark_best(self, path: Path) -> None:
        """Remember checkpoint `path` as the best; it stays until another is."""
        _replace_text(self.folder / BEST, path.name)

    def tidy(self, newest: Path | None) -> None:
        """Before going on from `newest`: set the damaged newer ones aside, remove what is half written."""
        for path in self.folder.glob(f"*{PARTIAL}"):
            _remove(path)
        if newest is not None:
            for path in self.steps()[: self.steps().index(newest)]:
                _remove(path.with_suffix(CORRUPT))
                path.rename(path.with_suffix(CORRUPT))
            self.publish(newest)

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is or would be."""
        return self.folder / f"step-{step:08d}"

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint and make it the newest. Raises CheckpointError if the disk refuses."""
        final = self.path(snapshot.step)
        partial = final.with_suffix(PARTIAL)
        try:
            _remove(partial)
            (partial / "state").mkdir(parents=True)
            _write_files(partial, snapshot)
            _remove(final)
            partial.rename(final)
            _sync(self.folder)
            _replace_text(self.folder / "latest", final.name)
            self.publish(final)
            self._prune()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"Cannot write the checkpoint {final}: {error}.",
                "Free some disk space, then give the command again.",
            ) from error
        return final

    def publish(self, path: Path) -> None:
        """Make the run folder's top level hold the files of checkpoint `path`."""
        for name in (MODEL, EMA, CONFIG, HASHES):
            waiting = self.out / f"{name}{PARTIAL}"
            waiting.unlink(missing_ok=True)
            _link_or_copy(path / name, waiting)
            waiting.replace(self.out / name)
            waiting.unlink(missing_ok=True)  # renaming onto another link of the same file does nothing

    def _prune(self) -> None:
        best = self.best()
        for path in self.steps()[self.keep :]:
            if path == best or path.name in self.spared:
                continue
            doomed = path.with_suffix(PARTIAL)
            path.rename(doomed)
            _remove(doomed)


def load_model(
    folder: Path | str,
    *,
    ema: bool = True,
    build: Callable[[dict[str, Any]], Technique] | None = None,
) -> Technique:
    """The technique saved in a run folder (`RUN@best`: its best checkpoint), a checkpoint or a copied model folder, on
    the CPU, in eval mode.

    `ema` lays the averaged weights over the trained ones. `build` makes a technique from the `model` part of
    the config (default: models.registry.build). Raises ModelNotFoundError and ModelCorruptError.
    """
    if build is None:
        from imagewright.models import registry

        build = registry.build
    path, config = open_model(folder)
    technique = build(config["model"])
    try:
        load_weights(technique, path / MODEL)
        if ema:
            own = dict(technique.named_parameters())
            with torch.no_grad():
                for name, tensor in load_file(path / EMA).items():
                    own[name].copy_(tensor)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise ModelCorruptError(
            f"The weights in {path} do not fit: {error}.", "Copy or train the model again."
        ) from error
    return technique.eval()


def open_model(folder: Path | str) -> tuple[Path, dict[str, Any]]:
    """The folder that holds the weights and its config, verified. In a run `RUN` that is its newest intact checkpoint,
    for `RUN@best` the one with the best held-out loss.

    Raises ModelNotFoundError and ModelCorruptError.
    """
    path = Path(folder)
    if path.name.endswith("@best") and not path.exists():
        path = path.with_name(path.name.removesuffix("@best"))
        best = CheckpointStore(path).best()
        if best is None:
            raise ModelNotFoundError(f"No checkpoint of {path} is marked as the best.", f"Give {path} for the newest.")
        path = best
    elif (path / "checkpoints").is_dir():
        try:
            path = CheckpointStore(path).newest()[0] or path
        except CheckpointError as error:
            raise ModelCorruptError(error.message, error.fix) from error
    if not (path / CONFIG).is_file():
        raise ModelNotFoundError(f"There is no model in {path}.", f"A model folder holds {CONFIG} and {MODEL}.")
    fault = fault_in(path, needed=(CONFIG, MODEL, EMA)) if (path / HASHES).exists() else None
    if fault is not None:
        raise ModelCorruptError(f"The model in {path} is damaged: {fault}.", "Copy or train it again.")
    return path, read_config(path)


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint. Raises ModelCorruptError."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
        return config
    except (OSError, ValueError) as error:
        raise ModelCorruptError(f"Cannot read {folder / CONFIG}: {error}.", "Copy or train the model again.") from error


def write_model(technique: Technique, config: Mapping[str, Any], folder: Path) -> None:
    """Write a run folder that holds weights and config alone: a model to load, or to begin another run from."""
    folder.mkdir(parents=True, exist_ok=True)
    trainable = {name: p for name, p in technique.named_parameters() if p.requires_grad}
    _write_json(folder / CONFIG, config)
    save_model(technique, str(folder / MODEL))
    save_file(_portable(trainable), folder / EMA)
    _write_json(folder / HASHES, {name: _sha256(folder / name) for name in (CONFIG, MODEL, EMA)})


def load_snapshot(path: Path, technique: Technique) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Load the weights of checkpoint `path` into `technique`; return its EMA, optimiser tensors and state."""
    try:
        load_weights(technique, path / MODEL)
        state = json.loads((path / STATE).read_text("utf-8"))
        return load_file(path / EMA), load_file(path / OPTIMIZER), state
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"Cannot load {path}: {error}.", "Start a new run in another folder.") from error


def fault_in(path: Path, needed: tuple[str, ...] = HASHED) -> str | None:
    """What is wrong with checkpoint `path` (None: each of `needed` is there and has its hash)."""
    try:
        hashes = json.loads((path / HASHES).read_text("utf-8"))
        for name in needed:
            if _sha256(path / name) != hashes[name]:
                return f"{name} has changed"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _write_files(folder: Path, snapshot: Snapshot) -> None:
    _write_json(folder / CONFIG, {**snapshot.config, "step": snapshot.step})
    save_model(snapshot.technique, str(folder / MODEL))
    save_file(_portable(snapshot.ema), folder / EMA)
    save_file(_portable(snapshot.optimizer), folder / OPTIMIZER)
    _write_json(folder / STATE, {**snapshot.state, "step": snapshot.step})
    _write_json(folder / HASHES, {name: _sha256(folder / name) for name in HASHED})
    for name in (*HASHED, HASHES, "state", "."):
        _sync(folder / name)


def _portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_suffix(PARTIAL)
    partial.write_text(text + "\n", "utf-8")
    _sync(partial)
    partial.replace(path)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(size):
            yield block


def _link_or_copy(source: Path, target: Path) -> None:
    if source.suffix == ".json":
        shutil.copyfile(source, target)  # someone may edit it in place
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
