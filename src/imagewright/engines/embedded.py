"""The engine that needs no torch: ONNX Runtime for the networks, numpy around them.

Models are folders made by `imagewright export`; some ship in the package. Each picture is computed alone (guidance
makes it two rows), so its pixels depend on its seed and never on how many were asked for, or by how many at once:
several are drawn side by side (lanes.py), from any threads. Small ones are drawn on one core each, and do not depend on
how many the machine has either: sums that threads share out are rounded in another way.
"""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from importlib.resources import files
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.engines.engine import (
    WORDING,
    Engine,
    ModelInfo,
    capabilities,
    options_of,
    seed_of,
    source_of,
    steering_of,
)
from imagewright.engines.lanes import Seats, all_of, at_once, cores
from imagewright.engines.runners import runner
from imagewright.errors import ModelCorruptError, ModelNotFoundError
from imagewright.models.steering import Steering
from imagewright.request import Adjustment, ImageRequest
from imagewright.source import to_picture
from imagewright.text import Tokenizer
from imagewright.text_encoder import NumpyTextEncoder, digest, read_packed, shipped
from imagewright.watch import Watch, shared

FORMAT = 2
TEXT = "text.safetensors"
SMALL = 64 * 64  # pixels; a step of such a model took 8.5 ms on one core, and on two 7.2 ms and 10.9 ms of their time
KEYS = {
    *(
        "name",
        "technique",
        "summary",
        "licence",
        "size",
        "default_size",
        "styles",
        "max_tokens",
        "text_encoder",
        "text_heads",
    ),
    *("sampling", "runtime", "training", "files"),
}
Floats = NDArray[np.float32]


class EmbeddedEngine(Engine):
    """Runs exported models: those in the package and those in the folders of IMAGEWRIGHT_MODELS."""

    name = "embedded"

    def __init__(self, folders: Sequence[Path] | None = None, lanes: int | None = None) -> None:
        """`lanes`: pictures drawn at once, by default one a core."""
        self._folders = list(folders) if folders is not None else default_folders()
        self._lanes = Seats(lanes or cores())
        self.concurrency = self._lanes.count + 1  # so that the next one's words are read meanwhile
        self._lock, self._loaded = Lock(), dict[Path, ExportedModel]()

    def models(self) -> Sequence[ModelInfo]:
        """The models in the engine's folders, the default first."""
        return [_info(path) for folder in self._folders for path in _in_order(folder)]

    def find(self, name: str | None) -> ModelInfo:
        """As Engine.find; `name` may also be the path of an exported model, if no model has that name."""
        if name is not None and Path(name).is_dir() and name not in {model.name for model in self.models()}:
            return _info(Path(name) / "model.json")
        return super().find(name)

    def load(self, model: ModelInfo) -> ExportedModel:
        """The model's networks, kept for the next call."""
        folder = Path(model.extra["path"])
        with self._lock:
            if folder not in self._loaded:
                self._loaded[folder] = ExportedModel(folder, self._lanes)
            return self._loaded[folder]

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        return self.load(model).generate(request, watch)


class ExportedModel:
    """An exported model, its files verified, ready to run, also from several threads."""

    def __init__(self, folder: Path, lanes: Seats | None = None, threads: int | None = None) -> None:
        """`threads`: of each picture."""
        self.folder = folder
        self.description = read_description(folder)
        self.runtime: Mapping[str, Any] = self.description["runtime"]
        self.tokenizer = Tokenizer()
        self._runner = runner(self.description["technique"])
        self._lanes = lanes or Seats(cores())
        self._threads = threads or (1 if prod(self.description["size"]) <= SMALL else cores())
        self._lock, self._sessions = Lock(), dict[str, Any]()

    @property
    def encode_text(self) -> NumpyTextEncoder:
        """The text encoder that the model was trained with. Raises ModelCorruptError if the shipped one is another."""
        with self._lock:
            return self._text_encoder

    @cached_property
    def _text_encoder(self) -> NumpyTextEncoder:
        packed = shipped()
        if TEXT in self.description["files"]:
            read_verified(self.folder, TEXT, self.description["files"])
            packed |= read_packed(self.folder / TEXT)
        if digest(packed) != self.description["text_encoder"]:
            raise ModelCorruptError(
                f"{self.folder} was made for another text encoder.", "Use the version of imagewright that made it."
            )
        return NumpyTextEncoder(packed, self.description["text_heads"])

    def run(self, part: str, outputs: Sequence[str] | None = None, **inputs: NDArray[Any]) -> list[Floats]:
        """The outputs of a part; only those named in `outputs` are computed, if any are."""
        result: list[Floats] = self._session(part).run(outputs, inputs)
        return result

    def _session(self, part: str) -> Any:
        with self._lock:
            if part not in self._sessions:
                self._sessions[part] = self._open(part)
            return self._sessions[part]

    def _open(self, part: str) -> Any:
        import onnxruntime

        data = read_verified(self.folder, f"{part}.onnx", self.description["files"])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        # Threads that spin between runs take the cores from numpy's: 120 ms became 48 for a picture in four steps.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def generate(self, request: ImageRequest, watch: Watch = Watch()) -> tuple[list[Image.Image], list[Adjustment]]:
        """`request.n` RGBA pictures at the model's own size, or at twice that if its decoder can, unless no more
        than its own is asked for."""
        words, adjustments = self.words(request)
        options = options_of(request, self.description["sampling"])
        source = source_of(request, tuple(self.description["size"]))
        pieces = tuple(self.tokenizer.names(request.prompt, self.description["max_tokens"]))
        told = shared(watch, request.n)
        if self.runtime.get("large") and _wants_more(request, self.description["size"]):
            options["large"] = True

        def drawn(index: int) -> Image.Image:
            one = replace(
                watch, progress=partial(told, index), words=pieces, preview=watch.preview if index == 0 else None
            )
            said = self.steered(words, request.prompt, steering_of(request, index))
            with self._lanes.one(watch):
                pixels = self._runner.draw(self, said, options, seed_of(request, index), one, source)
            return to_picture(pixels)

        return all_of(at_once([partial(drawn, index) for index in range(request.n)], self._lanes.count)), adjustments

    def words(self, request: ImageRequest) -> tuple[dict[str, NDArray[Any]], list[Adjustment]]:
        """The encoded prompt, two rows each (the wanted and the avoided), and what was cut off."""
        texts, limit = [request.prompt, request.negative_prompt], self.description["max_tokens"]
        ids, grams, mask, _ = self.tokenizer.encode(texts, limit)
        text, pooled = self.encode_text(ids, grams, mask)
        style = self.description["styles"][request.style] if request.style else 0
        words = {"text": text, "pooled": pooled, "text_mask": mask, "style": np.array([style, 0], np.int64)}
        return words, unread(self.tokenizer, request, limit)

    def steered(self, words: dict[str, NDArray[Any]], prompt: str, steering: Steering) -> dict[str, NDArray[Any]]:
        """The words with those of the prompt, their first row, changed."""
        if steering.idle:
            return words
        weights = self.tokenizer.weights(prompt, steering.emphasis, self.description["max_tokens"])
        first, mask = words["text"][:1], words["text_mask"][:1]
        first = steering.steered(first, mask, weights, prompt)
        pooled = self.encode_text.pooled(first, mask)
        return {
            **words,
            "text": np.concatenate([first, words["text"][1:]]),
            "pooled": np.concatenate([pooled, words["pooled"][1:]]),
        }


def _wants_more(request: ImageRequest, size: Sequence[int]) -> bool:
    """Whether pictures larger than `size` are asked for, or parts of a picture, which may be."""
    if request.image is not None or request.size is None:
        return True
    return any(asked > own for asked, own in zip(request.size, size, strict=True))


def unread(tokenizer: Tokenizer, request: ImageRequest, limit: int) -> list[Adjustment]:
    """What of a request's words lies behind the `limit` tokens that a model reads."""
    found = []
    for field in ("prompt", "negative_prompt"):
        text = getattr(request, field)
        if rest := tokenizer.unread(text, limit):
            count = len(tokenizer.names(text, len(text)))
            reason = f"the model reads no further, and not: {textwrap.shorten(rest, 200, placeholder=' ...')}"
            found.append(Adjustment(field, f"{count} tokens", f"{limit} tokens", reason))
    return found


def read_description(folder: Path) -> dict[str, Any]:
    """`model.json`. Raises ModelNotFoundError, and ModelCorruptError for another format or a missing part."""
    path = folder / "model.json"
    if not path.is_file():
        raise ModelNotFoundError(f"There is no exported model in {folder}.", "Make one: imagewright export RUN DIR")
    stat = path.stat()
    return _described(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)  # while the file is the same: reading all of them took 1 ms a request
def _described(path: Path, changed: int, size: int) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(path.read_text("utf-8"))
        complete = description["format"] == FORMAT and set(description) >= KEYS
        parts = runner(description["technique"]).PARTS if complete else ()
        complete = complete and set(description["files"]) >= {f"{part}.onnx" for part in parts}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelCorruptError(f"{path} cannot be read: {error}.", "Export or install the model again.") from error
    if not complete:
        raise ModelCorruptError(f"{path} is of another format.", "Use the version of imagewright that made it.")
    return description


def read_verified(folder: Path, name: str, listed: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A file's bytes, if they match the model's description. A part may lie in a neighbouring model's folder.

    Raises ModelCorruptError."""
    path: Path = folder.parent / listed[name].get("in", folder.name) / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelCorruptError(f"{path.name} cannot be read: {error}.", "Install the model again.") from error
    if hashlib.sha256(data).hexdigest() != listed[name]["sha256"]:
        raise ModelCorruptError(f"{path} is damaged: its hash does not match.", "Install the model again.")
    return data


def verify(folder: Path) -> None:
    """Check every file of an exported model. Raises ModelNotFoundError, ModelCorruptError."""
    listed = read_description(folder)["files"]
    for name in listed:
        read_verified(folder, name, listed)


def default_folders() -> list[Path]:
    """Where models are looked for by name: those that ship, and the folders of IMAGEWRIGHT_MODELS."""
    extra = os.environ.get("IMAGEWRIGHT_MODELS", "")
    return [Path(str(files("imagewright") / "assets")), *(Path(p) for p in extra.split(os.pathsep) if p)]


def _in_order(folder: Path) -> list[Path]:
    """The model.json files in a folder of models, by rank (lower first), then by name."""
    return sorted(folder.glob("*/model.json"), key=lambda path: (read_description(path.parent).get("rank", 9), path))


def _info(path: Path) -> ModelInfo:
    """ModelInfo from a model.json; the digest is over the hashes that it lists, so that no weights are read."""
    found = read_description(path.parent)
    listed = "".join(f"{name}:{entry['sha256']}\n" for name, entry in sorted(found["files"].items()))
    return ModelInfo(
        name=found["name"],
        engine=EmbeddedEngine.name,
        technique=found["technique"],
        summary=found["summary"],
        licence=found["licence"],
        capabilities=capabilities(
            found["sampling"],
            (*found["runtime"].get("edits", ()), *_heard(found["technique"], found["runtime"])),
            size=tuple(found["size"]),
            default_size=tuple(found["default_size"]),
            transparent=found.get("transparent", True),
            styles=tuple(found["styles"]),
            max_prompt_tokens=found["max_tokens"],
        ),
        size_bytes=sum(entry["bytes"] for entry in found["files"].values() if "in" not in entry),
        digest=hashlib.sha256(listed.encode()).hexdigest(),
        extra={"path": str(path.parent), "training_manifest": found["training"]["manifest"]},
    )


def _heard(technique: str, runtime: Mapping[str, Any]) -> tuple[str, ...]:
    """What can be done to the words: all, unless the networks hear none."""
    deaf = {"gan": "w_mean" not in runtime, "vae": not runtime.get("inputs")}
    return () if deaf.get(technique, False) else WORDING
