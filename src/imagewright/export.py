"""A trained run becomes a folder that the embedded engine runs without torch.

    model.json      what it is: sizes, defaults, styles, training data, sha256 of the networks
    text.onnx       vectors, grams, text_mask -> text, pooled       (vectors: see imagewright.text.WordVectors)
    denoiser.onnx   x, t, text, pooled, text_mask, style, known, mask -> denoised (one row, or two if guided)
    decoder.onnx    x -> pixels (premultiplied RGBA in about [-1, 1])
    encoder.onnx    pixels -> x
    README.md       the model card, if one is given

With `int8` the weights of matrix products and convolutions are stored in 8 bits, one scale per output channel. The
products inside the denoiser's blocks also run in 8 bits (activations quantised on the fly); all others restore their
weights to float, because they are small and sensitive.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from imagewright import __version__
from imagewright.errors import ModelError, OutputError
from imagewright.models.diffusion import Diffusion
from imagewright.text import GRAMS_PER_PIECE, WordVectors
from imagewright.training.checkpoint import load_model, open_model

FORMAT = 1
OPSET = 17
DEFAULT_SIDE = 256  # a smaller picture is enlarged to this unless a size is asked for
OUTPUT_AXIS = {"Conv": 0, "MatMul": -1, "Gemm": 0, "Gather": 0}  # of the weights of these operations
DENOISER_INPUTS = ("x", "t", "text", "pooled", "text_mask", "style", "known", "mask")


def export(
    run_dir: Path,
    out_dir: Path,
    *,
    name: str,
    int8: bool = True,
    card: Path | None = None,
    steps: int | None = None,
    guidance: float | None = None,
) -> Path:
    """Write the averaged weights of `run_dir` as an ONNX folder `out_dir`, and return it.

    `card` is a Markdown file to go with it as its README; `steps` and `guidance` are its defaults (None: those of the
    run's configuration). Raises ModelNotFoundError, ModelCorruptError, ModelError
    for a technique that cannot be exported, and OutputError if `out_dir` holds anything but an exported model.
    """
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / "model.json").exists():
        raise OutputError(f"{out_dir} holds something else than an exported model.", "Name a new folder.")
    technique = load_model(run_dir, ema=True)
    if not isinstance(technique, Diffusion):
        raise ModelError(
            f"A {type(technique).__name__} alone makes no pictures from words.",
            "Export the diffusion run that uses it.",
        )
    vectors, table = WordVectors(), technique.text.table
    if not np.array_equal(vectors.rows, table.rows.numpy()) or not np.allclose(vectors.scale, table.scale.numpy()):
        raise ModelError(
            f"{run_dir} was trained with other word vectors.", "Train it with this version of imagewright."
        )
    path, run_config = open_model(run_dir)
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for part, (module, example, inputs, outputs) in _graphs(technique).items():
        file = partial / f"{part}.onnx"
        _to_onnx(module, example, inputs, outputs, file)
        if int8 and part == "denoiser":
            _dynamic_int8(file)
        if int8:
            _stored_int8(file)
    if card is not None:
        shutil.copy(card, partial / "README.md")
    description = _describe(technique, run_config, path, name, int8)
    wanted = {"steps": steps, "guidance": guidance}
    description["defaults"] |= {key: value for key, value in wanted.items() if value is not None}
    description["word_vectors"] = vectors.digest
    description["files"] = {f.name: _digest(f) for f in sorted(partial.glob("*.onnx"))}
    (partial / "model.json").write_text(json.dumps(description, indent=1) + "\n", "utf-8")
    shutil.rmtree(out_dir, ignore_errors=True)
    partial.rename(out_dir)
    return out_dir


class _Call(nn.Module):
    """A function of a module as a module of its own, so that the exporter finds the weights."""

    def __init__(self, owner: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.owner, self.call = owner, call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(*inputs)


_Graph = tuple[nn.Module, tuple[Tensor, ...], tuple[str, ...], tuple[str, ...]]


def _graphs(technique: Diffusion) -> dict[str, _Graph]:
    """Each part with example inputs for two rows, and the names of its inputs and outputs."""
    text, shape = technique.config.text, technique.encoder.shape
    rows = (2, text.max_tokens)
    grams, mask = torch.zeros(*rows, GRAMS_PER_PIECE, dtype=torch.long), torch.ones(rows, dtype=torch.bool)
    x, cells = torch.randn(2, *shape), torch.zeros(2, 1, *shape[1:])
    tokens, pooled = torch.randn(*rows, text.width), torch.randn(2, text.width)
    inputs = (x, torch.rand(2), tokens, pooled, mask, torch.zeros(2, dtype=torch.long), x, cells)
    with torch.no_grad():
        pixels = technique.encoder.decode(x)
    return {
        "text": (
            _Call(technique.text, technique.text.contextual),
            (torch.randn(*rows, text.table_dim), grams, mask),
            ("vectors", "grams", "text_mask"),
            ("text", "pooled"),
        ),
        "denoiser": (
            _Call(technique, lambda *a: technique._estimate(*a)[0]),
            inputs,
            DENOISER_INPUTS,
            ("denoised",),
        ),
        "decoder": (_Call(technique.encoder, technique.encoder.decode), (x,), ("x",), ("pixels",)),
        "encoder": (_Call(technique.encoder, technique.encoder.encode), (pixels,), ("pixels",), ("x",)),
    }


def _to_onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    file: Path,
) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter is deprecated but needs no further package, and 7 s where the new one takes minutes.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            example,
            str(file),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={n: {0: "batch"} for n in (*inputs, *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )


def _dynamic_int8(file: Path) -> None:
    """The blocks' products in 8 bits, weights per output channel and activations per call; not those behind a GELU,
    whose few large values would take the others' precision."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    products = [node.name for node in onnx.load(str(file)).graph.node if node.op_type == "MatMul"]
    blocks = [name for name in products if "/blocks" in name and "/down/" not in name]
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        quantize_dynamic(str(file), str(file), nodes_to_quantize=blocks, weight_type=QuantType.QInt8, per_channel=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, no hint that the graph might be pre-processed: it brought nothing here."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _stored_int8(file: Path) -> None:
    """Weights of convolutions, matrix products and tables stored in 8 bits and restored to float when used."""
    model = onnx.load(str(file))
    graph = model.graph
    weights = {w.name: w for w in graph.initializer if w.data_type == TensorProto.FLOAT}
    axes: dict[str, int] = {}  # weight -> the axis of its output channels
    for node in graph.node:
        for used in node.input if node.op_type in OUTPUT_AXIS else ():
            if used in weights and len(weights[used].dims) >= 2:
                axes[used] = OUTPUT_AXIS[node.op_type] % len(weights[used].dims)
    for name, axis in axes.items():
        array = numpy_helper.to_array(weights[name])
        others = tuple(i for i in range(array.ndim) if i != axis)
        scale = np.maximum(np.abs(array).max(axis=others, keepdims=True), 1e-12) / 127
        rows = np.clip(np.round(array / scale), -127, 127).astype(np.int8)
        graph.initializer.remove(weights[name])
        graph.initializer.extend(
            [
                numpy_helper.from_array(rows, f"{name}.int8"),
                numpy_helper.from_array(scale.reshape(-1).astype(np.float32), f"{name}.scale"),
            ]
        )
        graph.node.insert(0, helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=axis))
    onnx.save(model, str(file))


def _describe(technique: Diffusion, run: dict[str, Any], path: Path, name: str, int8: bool) -> dict[str, Any]:
    config, side = technique.config, technique.pixels
    return {
        "format": FORMAT,
        "name": name,
        "technique": "diffusion",
        "summary": f"Text to pictures with transparent background, {side}x{side} pixels.",
        "licence": "Apache-2.0",
        "size": [side, side],
        "default_size": [max(side, DEFAULT_SIDE)] * 2,
        "latent": list(technique.encoder.shape),
        "process": config.process,
        "styles": run.get("styles", {}),
        "max_tokens": config.text.max_tokens,
        "weights": "int8" if int8 else "float32",
        "parameters": sum(p.numel() for p in technique.parameters()),
        "defaults": {
            "steps": config.steps,
            "guidance": config.guidance,
            "interval": list(config.interval),
            "sampler": config.sampler,
        },
        "training": {
            "manifest": run.get("manifest_hash"),
            "steps": _step_of(path),
            "batch": run["train"]["batch"],
            "software": f"imagewright {__version__}, torch {torch.__version__}",
        },
    }


def _step_of(path: Path) -> int | None:
    _, _, step = path.name.partition("step-")
    return int(step) if step.isdigit() else None


def _digest(file: Path) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
