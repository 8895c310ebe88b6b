"""Exported graphs with small weights: 8 or 4 bits instead of 32.

8 bits: one scale per output channel. The products of a graph's blocks may also run in 8 bits, their activations
quantised on the fly (ONNX Runtime's dynamic quantisation); other weights restore to float when the model is opened,
because they are few and sensitive.

4 bits: blocks of 32 weights along the inputs with a 16-bit scale each, chosen for the least squared error among
several; 4.5 bits a weight. The blocks' products run on them as they are (MatMulNBits, as for language models); others
restore to float when the model is opened.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OUTPUT_AXIS = {"Conv": 0, "MatMul": -1, "Gemm": 0, "Gather": 0}  # of the weights of these operations
BLOCK = 32  # 4-bit weights that share a scale
LEAST = 1024  # smaller arrays are not worth 4 bits
LARGE = 500_000  # vocabularies, the layers that choose from them, and a decoder's widest convolutions
SHRINKS = np.linspace(1.0, 0.85, 4, dtype=np.float32)  # of the largest value: what a block's scale may clip


def quantise(file: Path, bits: int, *, products: bool, precise: bool = False, shorten: bool = True) -> None:
    """Quantise the weights of an ONNX file in place, to 8 or 4 `bits`; with `products` its blocks also compute so, and
    of a `precise` one only the largest weights get 4. Without `shorten` all names stay: `weight.int8` is then what
    became of `weight`."""
    if bits == 4:
        model = onnx.load(str(file))
        if precise:  # the errors of many weights in one sum are lost in each other
            _stored_in_4_bits(model, LARGE, tuple(OUTPUT_AXIS))
        elif products:
            _products_in_4_bits(model)
            _stored_in_4_bits(model, LARGE, ("Gather", "MatMul"))  # the rest (modulation, patches) is sensitive: 8 bits
        else:
            _stored_in_4_bits(model, LEAST, tuple(OUTPUT_AXIS))
        onnx.save(model, str(file))
    elif products:
        _products_in_8_bits(file)
    model = onnx.load(str(file))
    _stored_in_8_bits(model)
    if shorten:
        shorten_names(model)
    onnx.save(model, str(file))


def shorten_names(model: Any) -> None:
    """Number all that is neither input nor output: nobody reads names any more, and small weights make them count."""
    graph = model.graph
    new = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": ""}

    def short(name: str) -> str:
        return str(new.setdefault(name, str(len(new))))

    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    for initializer in graph.initializer:
        initializer.name = short(initializer.name)
    del graph.value_info[:]


def _products_in_8_bits(file: Path) -> None:
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


def _stored_in_8_bits(model: Any) -> None:
    """Weights of convolutions, matrix products and tables stored in 8 bits and restored to float."""
    for name, (array, axis) in weights_of(model).items():
        others = tuple(i for i in range(array.ndim) if i != axis)
        scale = np.maximum(np.abs(array).max(axis=others, keepdims=True), 1e-12) / 127
        rows = np.clip(np.round(array / scale), -127, 127).astype(np.int8)
        _replace(model, name, {f"{name}.int8": rows, f"{name}.scale": scale.reshape(-1).astype(np.float32)})
        restored = helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=axis)
        model.graph.node.insert(0, restored)


def dequantised(arrays: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...], axis: int) -> NDArray[np.float32]:
    """The weight `name` of this `shape` and output `axis`, from what `quantise` made of it (`arrays`, by name).

    Raises KeyError where it is not among them."""
    if name in arrays:
        return arrays[name].astype(np.float32)
    along = [-1 if i == axis else 1 for i in range(len(shape))]
    if any(key.startswith(turned := f"{name}_Transposed") for key in arrays):  # ONNX Runtime makes a MatMul of a Gemm
        return dequantised(arrays, turned, shape[::-1], len(shape) - 1 - axis).T
    for stored, scale in ((f"{name}.int8", f"{name}.scale"), (f"{name}_quantized", f"{name}_scale")):  # ours, theirs
        if stored in arrays:
            return np.asarray(arrays[stored] * arrays[scale].reshape(along), np.float32)
    packed, scales = arrays[f"{name}.int4"], arrays[f"{name}.scale"].astype(np.float32).reshape(-1, 1)
    low, high = packed & 15, packed >> 4
    # of a product: pairs of neighbours, (N, blocks, BLOCK / 2)
    nibbles = np.concatenate([low, high]) if packed.ndim == 1 else np.stack([low, high], axis=-1)
    rows = (shape[axis], *np.delete(shape, axis))
    numbers = (nibbles.reshape(-1, BLOCK).astype(np.float32) - 8) * scales
    return np.moveaxis(numbers.reshape(rows), 0, axis)


def weights_of(
    model: Any, operations: tuple[str, ...] = tuple(OUTPUT_AXIS)
) -> dict[str, tuple[NDArray[np.float32], int]]:
    """Float weights of two or more dimensions that `operations` use, and their output axes."""
    floats = {w.name: w for w in model.graph.initializer if w.data_type == TensorProto.FLOAT and len(w.dims) >= 2}
    used = {
        name: OUTPUT_AXIS[node.op_type] % len(floats[name].dims)
        for node in model.graph.node
        if node.op_type in operations
        for name in node.input
        if name in floats
    }
    return {name: (numpy_helper.to_array(floats[name]), axis) for name, axis in used.items()}


def _stored_in_4_bits(model: Any, least: int, operations: tuple[str, ...]) -> None:
    """Weights of `least` numbers or more whose rows (all that goes into one output) divide into blocks, stored in 4
    bits and restored."""
    for name, (array, axis) in weights_of(model, operations).items():
        rows = np.moveaxis(array, axis, 0)
        if array.size < least or rows[0].size % BLOCK:
            continue
        nibbles, scales = blocks_of_4_bits(rows.reshape(len(rows), -1))
        half = nibbles.size // 2  # the first half in the low bits, so that one concatenation unpacks them
        flat = nibbles.reshape(-1)
        _replace(
            model,
            name,
            {
                f"{name}.int4": flat[:half] | flat[half:] << 4,
                f"{name}.scale": scales.reshape(-1, 1).astype(np.float16),
                f"{name}.shape": np.array(rows.shape, np.int64),
            },
        )
        back = [*range(1, axis + 1), 0, *range(axis + 1, array.ndim)]
        for node in reversed(_restoring(name, back)):
            model.graph.node.insert(0, node)
    known = {i.name for i in model.graph.initializer}
    constants = {"int4.sixteen": np.uint8(16), "int4.four": np.uint8(4), "int4.zero": np.float32(8)}
    constants["int4.blocks"] = np.array([-1, BLOCK], np.int64)  # type: ignore[assignment]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items() if key not in known
    )


def _restoring(name: str, back: list[int]) -> list[Any]:
    """Nodes that make the float weight `name` of its nibbles; ONNX Runtime folds them when it opens the model."""

    def node(operation: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(operation, [i if "." in i else f"{name}.{i}" for i in inputs], [output], **attributes)

    n = f"{name}."
    return [
        node("Mod", [f"{n}int4", "int4.sixteen"], f"{n}low"),
        node("BitShift", [f"{n}int4", "int4.four"], f"{n}high", direction="RIGHT"),
        node("Concat", [f"{n}low", f"{n}high"], f"{n}nibbles", axis=0),
        node("Cast", [f"{n}nibbles"], f"{n}floats", to=TensorProto.FLOAT),
        node("Sub", [f"{n}floats", "int4.zero"], f"{n}signed"),
        node("Reshape", [f"{n}signed", "int4.blocks"], f"{n}blocks"),
        node("Cast", [f"{n}scale"], f"{n}scale32", to=TensorProto.FLOAT),
        node("Mul", [f"{n}blocks", f"{n}scale32"], f"{n}scaled"),
        node("Reshape", [f"{n}scaled", f"{n}shape"], f"{n}rows"),
        node("Transpose", [f"{n}rows"], name, perm=back),
    ]


def _products_in_4_bits(model: Any) -> None:
    """The blocks' products on 4-bit weights, activations in 8 bits (MatMulNBits, accuracy level 4)."""
    weights = weights_of(model)
    for node in [n for n in model.graph.node if n.op_type == "MatMul" and "/blocks" in n.name]:
        name = node.input[1]
        if name not in weights or weights[name][0].shape[0] % BLOCK:
            continue
        K, N = weights[name][0].shape
        nibbles, scales = blocks_of_4_bits(weights[name][0].T)
        pairs = (nibbles[..., 0::2] | nibbles[..., 1::2] << 4).astype(np.uint8)  # (N, blocks, BLOCK / 2)
        _replace(model, name, {f"{name}.int4": pairs, f"{name}.scale": scales.reshape(-1).astype(np.float16)})
        widened = helper.make_node("Cast", [f"{name}.scale"], [f"{name}.scale32"], to=TensorProto.FLOAT)
        product = helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{name}.int4", f"{name}.scale32"],
            list(node.output),
            name=node.name,
            domain="com.microsoft",
            **{"K": K, "N": N, "bits": 4, "block_size": BLOCK, "accuracy_level": 4},
        )
        at = list(model.graph.node).index(node)
        model.graph.node.remove(node)
        model.graph.node.insert(at, product)
        model.graph.node.insert(0, widened)
    if all(found.domain != "com.microsoft" for found in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def blocks_of_4_bits(rows: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Rows (N, K) as numbers 0 to 15 (N, K / BLOCK, BLOCK) that stand for (number - 8) * scale, and the scales
    (N, K / BLOCK). The largest value of a block is -8 times its scale or a little more."""
    blocks = rows.reshape(len(rows), -1, BLOCK).astype(np.float32)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)  # (N, blocks, 1), signed
    best: NDArray[np.float32] = np.full(extreme.shape, np.inf, np.float32)
    scales, numbers = np.ones_like(extreme), np.full(blocks.shape, 8, np.uint8)
    for shrink in SHRINKS:
        scale = (extreme * shrink / -8).astype(np.float16).astype(np.float32)
        scale = np.where(scale == 0, np.float32(1e-4), scale)
        found = np.clip(np.round(blocks / scale) + 8, 0, 15)
        error = np.square((found - 8) * scale - blocks).sum(-1, keepdims=True)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale, scales)
        numbers = np.where(better, found.astype(np.uint8), numbers)
    return numbers, scales[..., 0]


def _replace(model: Any, name: str, arrays: dict[str, Any]) -> None:
    """Take the initializer `name` out of the graph and put others in."""
    old = next(i for i in model.graph.initializer if i.name == name)
    model.graph.initializer.remove(old)
    model.graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(a), key) for key, a in arrays.items())
