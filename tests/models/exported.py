"""A technique's exported parts as the embedded engine's runners see them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from imagewright.models.technique import Prompted, Words


class Exported:
    """The graphs of `technique`, run by ONNX Runtime."""

    def __init__(self, technique: Prompted, folder: Path) -> None:
        self.runtime = technique.runtime()
        self.parts: dict[str, onnxruntime.InferenceSession] = {}
        for name, graph in technique.graphs().items():
            axes = {n: {0: "batch", **(graph.dynamic or {}).get(n, {})} for n in (*graph.inputs, *graph.outputs)}
            file = folder / f"{name}.onnx"
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    graph.module, graph.example, str(file), input_names=list(graph.inputs), dynamo=False,
                    output_names=list(graph.outputs), dynamic_axes=axes, opset_version=17,
                )  # fmt: skip
            self.parts[name] = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def run(
        self, part: str, outputs: list[str] | None = None, **inputs: np.ndarray[Any, Any]
    ) -> list[np.ndarray[Any, Any]]:
        return self.parts[part].run(outputs, inputs)


def arrays(words: Words) -> dict[str, np.ndarray[Any, Any]]:
    """Words as a runner gets them."""
    return dict(zip(("text", "pooled", "text_mask", "style"), (x.detach().numpy() for x in words.flat()), strict=True))
