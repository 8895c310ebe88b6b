"""What can be learnt of a model itself: operations for one picture, and how well it gives back a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from imagewright.engines.embedded import EmbeddedEngine, ExportedModel
from imagewright.engines.engine import Engine, ModelInfo, adapt
from imagewright.engines.trained import TrainedEngine
from imagewright.models.encoders import Pixels
from imagewright.models.technique import Prompted, Technique
from imagewright.request import ImageRequest

Floats = NDArray[np.float32]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # (input, its shape)
Restore = Callable[[Floats, list[str]], Floats]  # pixels (B, 4, H, W) in [-1, 1] and captions -> pixels


def operations(engine: Engine, info: ModelInfo, prompt: str) -> int | None:
    """Floating-point operations of one picture with the model's defaults: a multiplication and an addition count as
    two. None for an engine whose networks cannot be looked into."""
    request = ImageRequest(
        prompt=prompt, model=info.extra.get("path") or info.name, seed=0, size=info.capabilities.size
    )
    if isinstance(engine, TrainedEngine):
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            engine.generate(request)
        return int(counter.get_total_flops())
    if isinstance(engine, EmbeddedEngine):
        return _exported_operations(_Counting(engine.load(info).folder), adapt(request, info.capabilities)[0])
    return None


class _Counting(ExportedModel):
    """Remembers which part was called with which shapes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.calls: list[tuple[str, Shapes]] = []

    def run(self, part: str, outputs: Sequence[str] | None = None, **inputs: NDArray[Any]) -> list[Floats]:
        self.calls.append((part, tuple((name, np.shape(array)) for name, array in inputs.items())))
        return super().run(part, outputs, **inputs)


def _exported_operations(model: _Counting, request: ImageRequest) -> int | None:
    """Operations of the convolutions and matrix products in the graphs, by the shapes that each call brings."""
    if find_spec("onnx") is None:
        return None
    model.generate(request)
    counts = {
        (part, shapes): graph_operations(folded(_file(model, part)), dict(shapes)) for part, shapes in set(model.calls)
    }
    return sum(counts[call] for call in model.calls)


def _file(model: ExportedModel, part: str) -> Path:
    """Where a part lies: here, or with a neighbour that holds the same one."""
    listed = model.description["files"][f"{part}.onnx"]
    return Path(model.folder.parent / listed.get("in", model.folder.name) / f"{part}.onnx")


def folded(file: Path) -> Any:
    """The ONNX model in `file` with its constants computed, as ONNX Runtime does when it opens it: weights stored in 4
    bits have shapes only then."""
    import onnx
    import onnxruntime

    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def graph_operations(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Operations of the convolutions and matrix products of an ONNX model for inputs of these shapes."""
    import onnx

    for value in model.graph.input:
        for axis, size in enumerate(shapes.get(value.name, ())):
            value.type.tensor_type.shape.dim[axis].dim_value = size
    known = {w.name: tuple(w.dims) for w in model.graph.initializer}
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        known[value.name] = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
    total = 0
    for node in graph.node:
        made = prod(known.get(node.output[0], (0,)))
        if node.op_type in ("Conv", "ConvInteger"):
            total += 2 * made * prod(known[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            total += 2 * prod(known.get(node.input[0], (0,))) * prod(known[node.input[1]][1:])
        elif node.op_type in ("MatMul", "MatMulInteger"):
            total += 2 * made * (known.get(node.input[0]) or (0,))[-1]
        elif node.op_type == "MatMulNBits":
            total += 2 * made * next(a.i for a in node.attribute if a.name == "K")
        elif node.op_type == "Gemm":
            turned = any(a.name == "transA" and a.i for a in node.attribute)
            total += 2 * made * known.get(node.input[0], (0, 0))[0 if turned else 1]
    return total


def restorer(engine: Engine, info: ModelInfo) -> Restore | None:
    """What gives a model's reconstruction of pictures of its own size; None where it has no encoder."""
    if isinstance(engine, EmbeddedEngine):
        return _exported_restorer(engine.load(info))
    if not isinstance(engine, TrainedEngine):
        return None
    technique = engine.technique(info)
    encoder = getattr(technique, "encoder", None)
    if isinstance(encoder, Pixels):
        return None
    if encoder is not None and hasattr(encoder, "decode"):
        return lambda pixels, captions: _numpy(encoder.decode(encoder.encode(_tensor(pixels, technique))))
    return _inverting(technique) if technique.family == "vae" and isinstance(technique, Prompted) else None


def _exported_restorer(model: ExportedModel) -> Restore | None:
    if not {"encoder.onnx", "decoder.onnx"} <= set(model.description["files"]):
        return None
    from onnx import load

    needs_made = "made" in {value.name for value in load(str(_file(model, "decoder"))).graph.input}

    def restore(pixels: Floats, captions: list[str]) -> Floats:
        x = model.run("encoder", pixels=pixels)[0]
        made: dict[str, Any] = {"made": np.ones(x.shape, np.float32)} if needs_made else {}
        return model.run("decoder", x=x, **made)[0]

    return restore


def _inverting(technique: Prompted) -> Restore:
    def restore(pixels: Floats, captions: list[str]) -> Floats:
        words = technique.prompted(captions, [0] * len(captions))
        return _numpy(technique.render(technique.invert(_tensor(pixels, technique), words), words))

    return torch.no_grad()(restore)


def _tensor(pixels: Floats, technique: Technique) -> torch.Tensor:
    return torch.from_numpy(pixels).to(next(technique.parameters()).device)


def _numpy(pixels: torch.Tensor) -> Floats:
    found: Floats = pixels.detach().float().cpu().numpy()
    return found
