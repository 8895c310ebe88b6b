"""An exported model becomes a model to train on: the inverse of export.py, so that what ships can be fine-tuned.

The graphs of an untrained model of the same configuration are exported in the same way. Their weights are random
numbers, so it is plain which parameter each of the graph's constants was made of (as it is, turned, or times a
number), and the constants that the exported model uses in the same places are put back there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load
from torch import Tensor

from imagewright.engines.embedded import TEXT, default_folders, read_description, read_verified
from imagewright.errors import ModelCorruptError, ModelError
from imagewright.export import WEIGHTS, to_onnx
from imagewright.models import registry
from imagewright.models.technique import Graph, Prompted, Technique
from imagewright.quantise import dequantised, quantise, weights_of
from imagewright.text_encoder import shipped, unpack
from imagewright.training.checkpoint import EXPORTED, HASHES, write_model

BITS = {name: bits for bits, name in WEIGHTS.items()}
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Origin:
    """Where a constant of a graph comes from: `tensor`, its axes turned by `turn`, times `factor`."""

    tensor: str
    turn: tuple[int, ...]
    factor: float


def located(model: Path | str) -> Path:
    """The folder of a run or an exported model: itself, or that of the installed model of this name."""
    if Path(model).exists():
        return Path(model)
    named = (folder / model for folder in default_folders())
    return next((folder for folder in named if is_exported(folder)), Path(model))


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model rather than a run."""
    return (folder / "model.json").is_file()


def as_run(model: Path | str, scratch: Path) -> Path:
    """The run folder `model`; if that is an exported model's folder or name, what `restore` makes of it, written to a
    folder of the same name in `scratch` once.

    Raises what `restore` raises."""
    folder = located(model)
    if not is_exported(folder):
        return folder
    out = scratch / folder.name
    if not (out / HASHES).exists():  # written last
        restore_run(folder, out)
    return out


def restore(folder: Path) -> Technique:
    """The exported model in `folder` as a technique, on the CPU, in eval mode; weights of few bits stay as rounded as
    they are.

    Raises ModelNotFoundError, ModelCorruptError, and ModelError where the model does not say how it was built or parts
    of it were left out.
    """
    description = read_description(folder)
    if "model" not in description:
        raise ModelError(f"{folder} does not say how its network was built.", "Export the run again.")
    technique = registry.build(description["model"]).eval()
    bits, missing = BITS[description["weights"]], dict(_tensors(technique))
    _randomise(missing)
    for part, graph in technique.graphs().items():
        if f"{part}.onnx" not in description["files"]:
            continue
        data = read_verified(folder, f"{part}.onnx", description["files"])
        for name, values in _read(graph, onnx.load_from_string(data), bits, missing, part).items():
            found = missing.pop(name, None)
            if found is not None:
                with torch.no_grad():
                    found.copy_(torch.from_numpy(values.copy()).view(found.shape))
    _read_text(technique, folder, description)
    missing = {name: tensor for name, tensor in missing.items() if not _from_runtime(name, tensor, description)}
    if missing:
        raise ModelError(
            f"{folder} was exported without {', '.join(sorted(missing)[:3])}{' ...' if len(missing) > 3 else ''}.",
            "Train from the run that it was made of.",
        )
    return technique


def restore_run(folder: Path, out: Path) -> Path:
    """Write the exported model in `folder` as the run folder `out`, and return it. Raises what `restore` does."""
    description = read_description(folder)
    training = description["training"]
    config = {
        "model": description.get("model"),
        "train": {"batch": training["batch"]},
        "manifest_hash": training["manifest"],
        EXPORTED: description["name"],
        "styles": description["styles"],
        "software": training["software"],
    }
    write_model(restore(folder), config, out)
    return out


def _tensors(technique: Technique) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers of floats by name, but those of the text encoder."""
    for name, tensor in technique.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and not name.startswith("text."):
            yield name, tensor


def _randomise(tensors: dict[str, Tensor]) -> None:
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))


def _read(graph: Graph, exported: Any, bits: int, tensors: dict[str, Tensor], part: str) -> dict[str, Floats]:
    """The tensors that the graph of an exported model holds, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "part.onnx"
        to_onnx(graph, file)
        plain = onnx.load(str(file))
        if bits < 32:
            quantise(file, bits, products=graph.fast_int8, precise=graph.precise, shorten=False)
        packed = onnx.load(str(file)).graph
    arrays = _aligned(packed, exported.graph)
    if arrays is None:
        raise ModelCorruptError(
            f"The graph of {part} is not as this version makes it.",
            "Use the version of imagewright, torch and onnx that exported it.",
        )
    axes, found = {name: axis for name, (_, axis) in weights_of(plain).items()}, {}
    for constant in plain.graph.initializer:
        if constant.data_type != onnx.TensorProto.FLOAT:
            continue
        random = numpy_helper.to_array(constant)
        origin = _origin(random, tensors)
        if origin is not None:
            values = dequantised(arrays, constant.name, random.shape, axes.get(constant.name, 0))
            found[origin.tensor] = _put_back(values, origin, tuple(tensors[origin.tensor].shape))
    return found


def _aligned(ours: Any, theirs: Any) -> dict[str, NDArray[Any]] | None:
    """The constants of `theirs` under the names that they have in `ours`, a graph of the same operations; None if it is
    none. The exporter makes one of constants that are equal, so they are met where they are used."""
    their_nodes, their_constants = _uses(theirs)
    our_nodes, our_constants = _uses(ours)
    found: dict[str, NDArray[Any]] = {}
    if [operation for operation, _ in our_nodes] != [operation for operation, _ in their_nodes]:
        return None
    for (_, mine), (_, others) in zip(our_nodes, their_nodes, strict=True):
        pairs = [(a, b) for a, b in zip(mine, others, strict=False) if a in our_constants]
        for name, other in pairs:
            if other not in their_constants or our_constants[name].dims != their_constants[other].dims:
                return None
            found[name] = numpy_helper.to_array(their_constants[other])
    return found


def _uses(graph: Any) -> tuple[list[tuple[str, list[str]]], dict[str, Any]]:
    """The nodes as operations and inputs, and the constants by name; without such nodes as only rename a constant."""
    constants = {constant.name: constant for constant in graph.initializer}
    same: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        inputs = [same.get(name, name) for name in node.input]
        if node.op_type == "Identity" and inputs[0] in constants:
            same[node.output[0]] = inputs[0]
        else:
            nodes.append((node.op_type, inputs))
    return nodes, constants


def _origin(random: Floats, tensors: dict[str, Tensor]) -> Origin | None:
    """The tensor that a constant was made of, if it was made of one."""
    for name, tensor in tensors.items():
        if tensor.numel() != random.size:
            continue
        values = tensor.detach().numpy()
        factor = float(random.flat[0] / values.flat[0])
        if random.size == 1 and factor != 1:
            continue
        for turn in permutations(range(values.ndim)):
            turned = [values.shape[axis] for axis in turn]
            if [n for n in turned if n > 1] != [n for n in random.shape if n > 1]:
                continue
            if np.allclose(values.transpose(turn).reshape(random.shape) * factor, random, rtol=1e-4, atol=0):
                return Origin(name, turn, factor)
    return None


def _put_back(values: Floats, origin: Origin, shape: tuple[int, ...]) -> Floats:
    turned = values.reshape([shape[axis] for axis in origin.turn])
    return np.asarray(turned.transpose(np.argsort(origin.turn)) / origin.factor, np.float32)


def _read_text(technique: Technique, folder: Path, description: dict[str, Any]) -> None:
    """The text encoder that ships, with the weights of the model's own in place of it where it has any."""
    if isinstance(technique, Prompted):
        own = load(read_verified(folder, TEXT, description["files"])) if TEXT in description["files"] else {}
        state = unpack({**shipped(), **own})
        technique.text.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


def _from_runtime(name: str, tensor: Tensor, description: dict[str, Any]) -> bool:
    """Fill a buffer that the runner gets as a number list. Returns whether there was one."""
    values = description["runtime"].get(name)
    if values is None:
        return False
    with torch.no_grad():
        tensor.copy_(torch.tensor(values).view(tensor.shape))
    return True
