"""The text encoder without torch: the same sums as `models.text.TextEncoder`, in numpy, from a file of 8-bit
matrices and 4-bit word vectors.

The encoder that ships is shared by every model whose training left it alone; a model that trained it further has a
file of its own, without the word table, which never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Floats = NDArray[np.float32]
HEADS = 4
TABLE = ("table.rows", "table.scale")
NIBBLES, FACTORS, BLOCK = "table.rows.nibbles", "table.rows.factors", 32
_SCALE = ".scale"


def pack(state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Weights for a file: matrices as int8 rows with a float16 `.scale` each, all others as float16."""
    packed: dict[str, NDArray[Any]] = {}
    for name, array in state.items():
        if array.dtype == np.int8 or not name.endswith("weight") or array.ndim < 2:
            packed[name] = array if array.dtype == np.int8 else array.astype(np.float16)
            continue
        scale = np.maximum(np.abs(array).max(axis=1, keepdims=True) / 127, 1e-7).astype(np.float16)
        packed[name] = np.clip(np.round(array / scale.astype(np.float32)), -127, 127).astype(np.int8)
        packed[name + _SCALE] = scale
    return packed


def unpack(packed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inverse of `pack`, in float32; the table's rows stay int8."""
    state: dict[str, NDArray[Any]] = {}
    for name, array in packed.items():
        if name.endswith(f"weight{_SCALE}"):
            continue
        scale = packed.get(name + _SCALE)
        if scale is not None:
            state[name] = array.astype(np.float32) * scale.astype(np.float32)
        else:
            state[name] = array if array.dtype == np.int8 else array.astype(np.float32)
    return state


def write_packed(packed: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Packed weights to a safetensors file, the table's rows in 4 bits (`read_packed` gives what they became)."""
    rest = {name: array for name, array in packed.items() if name != TABLE[0]}
    save_file({**rest, **_in_nibbles(packed[TABLE[0]])} if TABLE[0] in packed else rest, str(path))


def read_packed(path: Path) -> dict[str, NDArray[Any]]:
    """The packed weights in a safetensors file."""
    packed: dict[str, NDArray[Any]] = load_file(str(path))
    if NIBBLES in packed:
        packed[TABLE[0]] = _from_nibbles(packed.pop(NIBBLES), packed.pop(FACTORS))
    return packed


def _in_nibbles(rows: NDArray[np.int8]) -> dict[str, NDArray[np.uint8]]:
    """int8 rows (V, D) as signed 4-bit numbers, two a byte, times a whole factor for every BLOCK of them."""
    blocks = rows.reshape(len(rows), -1, BLOCK).astype(np.int16)
    factors = np.clip(-(-np.abs(blocks).max(-1, keepdims=True) // 7), 1, 18)  # 18 * 7 is the last below 128
    nibbles = np.clip(np.round(blocks / factors), -7, 7).astype(np.int8).reshape(len(rows), -1) + 8
    pairs = (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).astype(np.uint8)
    return {NIBBLES: pairs, FACTORS: factors[..., 0].astype(np.uint8)}


def _from_nibbles(pairs: NDArray[np.uint8], factors: NDArray[np.uint8]) -> NDArray[np.int8]:
    nibbles = np.stack([pairs & 15, pairs >> 4], axis=-1).astype(np.int8).reshape(len(pairs), -1, BLOCK) - 8
    rows: NDArray[np.int8] = (nibbles * factors[..., None].astype(np.int8)).reshape(len(pairs), -1).astype(np.int8)
    return rows


def shipped() -> dict[str, NDArray[Any]]:
    """The packed weights of the encoder that ships."""
    with as_file(files("imagewright") / "assets" / "text" / "text.safetensors") as path:
        return read_packed(path)


def digest(packed: Mapping[str, NDArray[Any]]) -> str:
    """sha256 over the names and bytes of packed weights."""
    found = hashlib.sha256()
    for name in sorted(packed):
        found.update(name.encode() + np.ascontiguousarray(packed[name]).tobytes())
    return found.hexdigest()


class NumpyTextEncoder:
    """`TextEncoder.forward` of torch, for packed weights."""

    def __init__(self, packed: Mapping[str, NDArray[Any]], heads: int = HEADS) -> None:
        self.weights, self.heads = unpack(packed), heads
        self.depth = 1 + max(int(name.split(".")[1]) for name in packed if name.startswith("layers."))

    def __call__(self, ids: NDArray[np.int64], grams: NDArray[np.int64], mask: NDArray[np.bool_]) -> tuple[Floats, ...]:
        """ids (B, L), grams (B, L, G), mask (B, L) -> tokens (B, L, width), pooled (B, width)."""
        w, length = self.weights, ids.shape[1]
        longest = int(mask.sum(1).max())  # padding behind all texts changes nothing
        ids, grams, mask = ids[:, :longest], grams[:, :longest], mask[:, :longest]
        count = np.maximum((grams > 0).sum(-1, keepdims=True), 1)
        spelling = w["grams.weight"][grams].sum(2) / count  # (B, L, dim)
        vectors = w["table.rows"][ids].astype(np.float32) * w["table.scale"][ids]
        x = (vectors + spelling).astype(np.float32) @ w["embed.weight"].T + w["positions"][: ids.shape[1]]
        for layer in range(self.depth):
            x = self._layer(x, mask, f"layers.{layer}.")
        tokens = _rms_norm(x) * w["norm.weight"]
        padded = np.pad(tokens, ((0, 0), (0, length - longest), (0, 0)))
        return padded.astype(np.float32), self.pooled(tokens, mask)

    def pooled(self, tokens: Floats, mask: NDArray[np.bool_]) -> Floats:
        """(B, width) of tokens (B, L, width) with their mask (B, L)."""
        mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        vector: Floats = (mean @ self.weights["pool.weight"].T).astype(np.float32)
        return vector

    def _layer(self, x: Floats, mask: NDArray[np.bool_], name: str) -> Floats:
        w, (B, L, D) = self.weights, x.shape
        h = _rms_norm(x) * w[f"{name}norm1.weight"]
        qkv = (h @ w[f"{name}qkv.weight"].T).reshape(B, L, 3, self.heads, D // self.heads).transpose(2, 0, 3, 1, 4)
        q = _rms_norm(qkv[0]) * w[f"{name}q_norm.weight"]
        k = _rms_norm(qkv[1]) * w[f"{name}k_norm.weight"]
        logits = q @ k.swapaxes(-1, -2) * (D // self.heads) ** -0.5  # (B, heads, L, L)
        logits = np.where(mask[:, None, None], logits, -1e4)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        y = (weights / weights.sum(-1, keepdims=True)) @ qkv[2]
        x = x + y.swapaxes(1, 2).reshape(B, L, D) @ w[f"{name}out.weight"].T
        h = _rms_norm(x) * w[f"{name}norm2.weight"]
        h = h @ w[f"{name}up.weight"].T + w[f"{name}up.bias"]
        moved: Floats = x + (h * 0.5 * (1 + _erf(h * 0.5**0.5))) @ w[f"{name}down.weight"].T
        return moved


def _rms_norm(x: Floats) -> Floats:
    root = np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(1e-6))
    normal: Floats = x / root
    return normal


def _erf(x: Floats) -> Floats:
    """Abramowitz & Stegun 7.1.26, to 1.5e-7."""
    t: Any = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    result: Floats = np.sign(x) * (1 - series * np.exp(-np.square(x)))
    return result
