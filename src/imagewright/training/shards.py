"""The averaged weights of finished runs in a few small files, and run folders from such files.

    runs.json                   of each run its config.json, and which of the stored tensors is which of its weights
    weights-DIGEST.safetensors  tensors in half precision, named by the sha256 of what they hold

Half the size of the model, and enough to draw, to export, to evaluate and to train on from
(`--from`), on another machine. A tensor that several runs share (an autoencoder inside the models on its latents, the
word vectors that ship) is written once or not at all. Numbers that half precision cannot hold stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imagewright.errors import ModelCorruptError, ModelNotFoundError, OptionError
from imagewright.models import registry
from imagewright.models.text import load_pretrained
from imagewright.training.checkpoint import load_model, open_model, write_model

INDEX = "runs.json"
MEBIBYTE = 2**20
HEADER = 64 * 1024  # bytes that a file's own list of tensors may take


def write_shards(
    runs: Mapping[str, Path],
    out: Path,
    *,
    largest: int = 15 * MEBIBYTE,
    at_most: int | None = None,
    known: Collection[str] = (),
) -> list[str]:
    """Write the averaged weights of `runs` (name to run folder) below `out`, in files of at most `largest` bytes.

    `at_most` files of weights: of the runs, in their order, those that fit are written. `known`: digests of tensors
    that whoever reads has. Returns the names of the runs written. Raises OptionError if not even the first fits.
    """
    entries: dict[str, Any] = {}
    shards: list[dict[str, Tensor]] = []
    have = {*known, *_shipped()}
    for name, folder in runs.items():
        _, config = open_model(folder)
        tensors = {key: _halved(tensor) for key, tensor in load_model(folder).state_dict().items()}
        digests = {key: digest(tensor) for key, tensor in tensors.items()}
        new = {digests[key]: tensor for key, tensor in tensors.items() if digests[key] not in have}
        packed = _packed(new, shards, largest)
        if at_most is not None and len(packed) > at_most:
            if not entries:
                raise OptionError(f"{name} does not fit in {at_most} files of {largest} bytes.", "Allow more.")
            break
        shards, have = packed, have | new.keys()
        entries[name] = {"config": config, "tensors": digests}
    out.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        save_file(shard, str(out / f"weights-{_name(shard)}.safetensors"))
    files = [f"weights-{_name(shard)}.safetensors" for shard in shards]
    (out / INDEX).write_text(json.dumps({"files": files, "runs": entries}) + "\n", "utf-8")
    return list(entries)


def read_shards(folders: Iterable[Path], out: Path) -> list[str]:
    """Make a run folder below `out` of each run whose weights the folders hold, and return their names.

    A later folder may leave out what an earlier one holds. Raises ModelNotFoundError and ModelCorruptError.
    """
    stored: dict[str, Tensor] = _shipped()
    entries: dict[str, Any] = {}
    for folder in folders:
        index = _index(folder)
        for file in index["files"]:
            stored |= _checked(folder / file)
        entries |= index["runs"]
    for name, entry in entries.items():
        if lost := [key for key, found in entry["tensors"].items() if found not in stored]:
            raise ModelCorruptError(f"Of {name} {lost[0]} is missing.", "Read all folders of shards at once.")
        technique = registry.build(entry["config"]["model"])
        weights = {key: stored[found] for key, found in entry["tensors"].items()}
        try:
            technique.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelCorruptError(f"The weights of {name} do not fit: {error}.", "Write them again.") from error
        write_model(technique, entry["config"], out / name)
    return list(entries)


def digest(tensor: Tensor) -> str:
    """sha256 over a tensor's type, shape and bytes."""
    told = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(told + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def digests_in(folders: Iterable[Path]) -> set[str]:
    """The digests of all tensors in the runs that folders of shards describe."""
    return {found for f in folders for entry in _index(f)["runs"].values() for found in entry["tensors"].values()}


def _halved(tensor: Tensor) -> Tensor:
    half = tensor.half() if tensor.dtype == torch.float32 else tensor
    return (half if not half.is_floating_point() or bool(half.isfinite().all()) else tensor).contiguous()


def _shipped() -> dict[str, Tensor]:
    """The tensors that every installation has, by digest: those of the text encoder."""
    return {digest(_halved(tensor)): _halved(tensor) for tensor in load_pretrained().state_dict().values()}


def _packed(new: Mapping[str, Tensor], shards: Sequence[dict[str, Tensor]], largest: int) -> list[dict[str, Tensor]]:
    """`shards` with the tensors `new` added, the largest first, each in the first shard that has room."""
    packed = [dict(shard) for shard in shards]
    for found, tensor in sorted(new.items(), key=lambda item: -item[1].nbytes):
        room = largest - HEADER - tensor.nbytes
        if room < 0:
            raise OptionError(f"A tensor of {tensor.nbytes} bytes fits in no file of {largest}.", "Allow larger files.")
        place = next((shard for shard in packed if sum(t.nbytes for t in shard.values()) <= room), None)
        if place is None:
            packed.append(place := {})
        place[found] = tensor
    return packed


def _name(shard: Mapping[str, Tensor]) -> str:
    return hashlib.sha256("".join(sorted(shard)).encode()).hexdigest()[:16]


def _index(folder: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"There are no weights in {folder}: {error}.", f"Name one with {INDEX}.") from error
    return index


def _checked(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, each of which must be what its name says."""
    try:
        tensors: dict[str, Tensor] = load_file(str(file))
    except (OSError, SafetensorError) as error:
        raise ModelCorruptError(f"{file} cannot be read: {error}.", "Copy it again.") from error
    if wrong := [name for name, tensor in tensors.items() if digest(tensor) != name]:
        raise ModelCorruptError(f"{file} is damaged in {wrong[0][:16]}.", "Copy it again.")
    return tensors
