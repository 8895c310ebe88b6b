"""The judges that ship, run by ONNX Runtime without torch: what a picture shows, in which style, whether it fits words.

Pictures are PIL images of any size, or arrays (N, S, S, 4) uint8 of premultiplied RGBA at the judges' own side. They
are laid over one plain grey, because the judges learnt over random plain backgrounds. Training: models/judge.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from imagewright.errors import ModelCorruptError, ModelNotFoundError
from imagewright.text import Tokenizer
from imagewright.text_encoder import NumpyTextEncoder, shipped

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Pictures = Sequence[Image.Image] | Bytes

FORMAT = 1
DESCRIPTION = "judges.json"
GROUND = 191  # the grey below transparent pixels
ROWS = 64  # at a time
AXES = ("none", "horizontal", "vertical")
KEYS = {"format", "version", "size", "files", "labels", "attributes", "calibration", "real"}


@dataclass(frozen=True)
class Attributes:
    """What a judge sees in a scene: `things` and their `colours` (None: its own), the left or upper one first; how many
    things in all (`count`, 1 to 4), along which `axis` two lie, the colour of an opaque `background` (None: it is
    transparent), the `style`, and how sure each of these is (`certainty`, by name)."""

    things: tuple[str, ...]
    colours: tuple[str | None, ...]
    count: int
    axis: str
    background: str | None
    style: str
    certainty: Mapping[str, float] = field(default_factory=dict)

    @property
    def relation(self) -> str | None:
        """How the first thing stands to the second: left or above."""
        return {"horizontal": "left", "vertical": "above"}.get(self.axis)


class Judges:
    """The judges of a folder (default: those in the package). Raises ModelNotFoundError, ModelCorruptError.

    `version` names the weights; `labels` the names behind the logits; `real` how right each is on real pictures that
    it never saw.
    """

    def __init__(self, folder: Path | None = None, threads: int = 1) -> None:
        self.folder = folder or Path(str(files("imagewright") / "assets" / "judges"))
        self.threads = threads
        self.description = read_description(self.folder)
        self.version: str = self.description["version"]
        self.size: int = self.description["size"]
        self.labels: dict[str, list[Any]] = self.description["labels"]
        self.real: dict[str, Any] = self.description["real"]
        self._sessions: dict[str, Any] = {}

    def embed(self, pictures: Pictures) -> Floats:
        """Features (N, D) of length 1, in which pictures of one concept lie together."""
        return self.identify(pictures)["features"]

    def identify(self, pictures: Pictures) -> dict[str, Floats]:
        """`features` (N, D); probabilities (N, names) of `concept`, `style` and `group` in the order of `labels`."""
        found = self._all("encoder", pictures)
        return {name: array if name == "features" else softmax(array) for name, array in found.items()}

    def match(self, pictures: Pictures, prompts: Sequence[str]) -> Floats:
        """The probability (N,) that picture i fits prompt i rather than another, where half of the prompts fit."""
        looks = self.look(pictures)
        if len(looks) != len(prompts):
            raise ValueError(f"{len(looks)} pictures and {len(prompts)} prompts")
        return self.probability((looks * self.read(prompts)).sum(1))

    def look(self, pictures: Pictures) -> Floats:
        """Unit vectors (N, D) of pictures for matching; their products with `read` are logits but for the bias."""
        return self._all("match", pictures)["look"]

    def read(self, prompts: Sequence[str]) -> Floats:
        """Vectors (N, D) of prompts for matching."""
        rows = [self._read(list(prompts[i : i + ROWS])) for i in range(0, len(prompts), ROWS)]
        return np.concatenate(rows) if rows else np.zeros((0, 1), np.float32)

    def probability(self, products: Floats) -> Floats:
        """Products of `look` and `read` as calibrated probabilities (Platt, fitted on held-out pictures)."""
        told = self.description["calibration"]
        result: Floats = sigmoid(told["slope"] * products + told["offset"]).astype(np.float32)
        return result

    def attributes(self, pictures: Pictures) -> list[Attributes]:
        """What stands where in each picture, in which colour, how many."""
        rgba = self.prepared(pictures)
        found = {name: softmax(array) for name, array in self._all("attributes", rgba).items()}
        opaque = border_alpha(rgba) > 0.5
        return [
            self._attributes({name: array[i] for name, array in found.items()}, opaque[i]) for i in range(len(rgba))
        ]

    def _attributes(self, row: Mapping[str, Floats], opaque: bool) -> Attributes:
        best = {name: int(array.argmax()) for name, array in row.items()}
        axis = AXES[best["axis"]]
        slots = ("first", "second") if axis != "none" else ("first",)
        own_or = [None, *self.labels["colours"]]
        return Attributes(
            things=tuple(self.labels["things"][best[slot]][1] for slot in slots),
            colours=tuple(own_or[best[f"{slot}_colour"]] for slot in slots),
            count=best["count"] + 1,
            axis=axis,
            background=self.labels["colours"][best["ground"]] if opaque else None,
            style=self.labels["styles"][best["style"]],
            certainty={name: float(array.max()) for name, array in row.items()},
        )

    def prepared(self, pictures: Pictures) -> Bytes:
        """(N, S, S, 4) premultiplied RGBA at the judges' side; arrays pass through. Raises ValueError for others."""
        if not isinstance(pictures, np.ndarray):
            rows = [fitted(picture, self.size) for picture in pictures]
            return np.stack(rows) if rows else np.zeros((0, self.size, self.size, 4), np.uint8)
        if pictures.shape[1:] != (self.size, self.size, 4) or pictures.dtype != np.uint8:
            raise ValueError(
                f"{pictures.dtype} {pictures.shape}: the judges see (N, {self.size}, {self.size}, 4) uint8"
            )
        return pictures

    def _all(self, part: str, pictures: Pictures) -> dict[str, Floats]:
        """The outputs of a part for all pictures, by name."""
        session = self._session(part)
        names = [output.name for output in session.get_outputs()]
        batches = [session.run(None, {"rgb": rgb}) for rgb in self._batches(pictures)]
        return {name: np.concatenate([batch[i] for batch in batches]) for i, name in enumerate(names)}

    def _batches(self, pictures: Pictures) -> Iterator[Floats]:
        """RGB (n, 3, S, S) in [-1, 1], ROWS at a time; an empty batch if there are none."""
        for start in range(0, max(1, len(pictures)), ROWS):
            yield over_grey(self.prepared(pictures[start : start + ROWS]))

    def _read(self, prompts: list[str]) -> Floats:
        ids, grams, mask, _ = self._tokenizer.encode(prompts)
        result: Floats = self._session("words").run(None, {"pooled": self._text(ids, grams, mask)[1]})[0]
        return result

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer()

    @cached_property
    def _text(self) -> NumpyTextEncoder:
        return NumpyTextEncoder(shipped())

    def _session(self, part: str) -> Any:
        if part not in self._sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = self.threads
            data = self._verified(f"{part}.onnx")
            self._sessions[part] = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return self._sessions[part]

    def _verified(self, name: str) -> bytes:
        path = self.folder / name
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != self.description["files"].get(name, {}).get("sha256"):
            raise ModelCorruptError(f"{path} is missing or damaged.", "Install the judges again.")
        return data


def read_description(folder: Path) -> dict[str, Any]:
    """judges.json. Raises ModelNotFoundError where there is none, ModelCorruptError for another format."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ModelNotFoundError(
            f"There are no judges in {folder}.", "Install the whole package, or train them: scripts/judges.py"
        )
    try:
        description: dict[str, Any] = json.loads(path.read_text("utf-8"))
        complete = set(description) >= KEYS and description["format"] == FORMAT
    except (OSError, ValueError, TypeError) as error:
        raise ModelCorruptError(f"{path} cannot be read: {error}.", "Install the judges again.") from error
    if not complete:
        raise ModelCorruptError(f"{path} is of another format.", "Use the version of imagewright that made it.")
    return description


def fitted(picture: Image.Image, size: int) -> Bytes:
    """A picture in the middle of a square, (size, size, 4) premultiplied RGBA."""
    small = ImageOps.contain(picture.convert("RGBA").convert("RGBa"), (size, size), Image.Resampling.LANCZOS)
    square = Image.new("RGBa", (size, size))
    square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    pixels = np.array(square)
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])  # LANCZOS overshoots
    return pixels


def over_grey(rgba: Bytes) -> Floats:
    """Premultiplied RGBA (N, S, S, 4) over GROUND -> (N, 3, S, S) in [-1, 1]."""
    values = rgba.astype(np.float32)
    rgb = values[..., :3] + (1 - values[..., 3:] / 255) * GROUND
    moved: Floats = np.ascontiguousarray((rgb / 127.5 - 1).transpose(0, 3, 1, 2), np.float32)
    return moved


def border_alpha(rgba: Bytes) -> Floats:
    """Mean alpha (N,) in [0, 1] along the border of (N, S, S, 4)."""
    alpha = rgba[..., 3].astype(np.float32) / 255
    edges = [alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]]
    mean: Floats = np.concatenate(edges, axis=1).mean(1)
    return mean


def softmax(logits: Floats) -> Floats:
    """Probabilities over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    shares: Floats = powers / powers.sum(-1, keepdims=True)
    return shares


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    result: Floats = 0.5 * (1 + np.tanh(0.5 * x))
    return result
