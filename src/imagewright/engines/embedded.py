"""The engine that needs no torch: ONNX Runtime for the networks, numpy for the sampler.

Models are folders made by `imagewright export`; one ships in the package. Each picture is computed alone (guidance
makes it two rows), so its pixels depend on its seed and never on how many were asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagewright.engines.engine import Engine, ModelInfo, Progress, seed_of
from imagewright.errors import ModelCorruptError, ModelNotFoundError
from imagewright.models.samplers import PROCESSES, SAMPLERS, guided, noise_source
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.text import Tokenizer, WordVectors

FORMAT = 1
PARTS = ("text", "denoiser", "decoder")
KEYS = {
    *("name", "technique", "summary", "licence", "size", "default_size", "latent", "process", "styles"),
    *("max_tokens", "word_vectors", "defaults", "training", "files"),
}
Floats = NDArray[np.float32]


class EmbeddedEngine(Engine):
    """Runs exported models: those in the package and those in the folders of IMAGEWRIGHT_MODELS."""

    name = "embedded"

    def __init__(self, folders: Sequence[Path] | None = None) -> None:
        self._folders = list(folders) if folders is not None else _default_folders()
        self._loaded: dict[Path, ExportedModel] = {}

    def models(self) -> Sequence[ModelInfo]:
        """The models in the engine's folders, the default first."""
        return [_info(path) for folder in self._folders for path in sorted(folder.glob("*/model.json"))]

    def find(self, name: str | None) -> ModelInfo:
        """As Engine.find; `name` may also be the path of an exported model, if no model has that name."""
        if name is not None and Path(name).is_dir() and name not in {model.name for model in self.models()}:
            return _info(Path(name) / "model.json")
        return super().find(name)

    def _generate(
        self, request: ImageRequest, model: ModelInfo, progress: Progress | None
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        folder = Path(model.extra["path"])
        if folder not in self._loaded:
            self._loaded[folder] = ExportedModel(folder)
        return self._loaded[folder].generate(request, progress)


class ExportedModel:
    """An exported model, its files verified, ready to run."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.folder = folder
        self.description = read_description(folder)
        self.process = PROCESSES[self.description["process"]]()
        self.tokenizer = Tokenizer()
        self._threads = threads
        self._sessions: dict[str, Any] = {}

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of what the denoiser works on."""
        return tuple(self.description["latent"])

    @cached_property
    def vectors(self) -> WordVectors:
        """The word vectors that the text encoder was made for. Raises ModelCorruptError if these are others."""
        vectors = WordVectors()
        if vectors.digest != self.description["word_vectors"]:
            raise ModelCorruptError(
                f"{self.folder} was made for other word vectors.", "Use the version of imagewright that made it."
            )
        return vectors

    def run(self, part: str, **inputs: NDArray[Any]) -> list[Floats]:
        """The outputs of text, denoiser, decoder or encoder."""
        if part not in self._sessions:
            self._sessions[part] = self._open(part)
        result: list[Floats] = self._sessions[part].run(None, inputs)
        return result

    def _open(self, part: str) -> Any:
        import onnxruntime

        data = read_verified(self.folder / f"{part}.onnx", self.description["files"])
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads or _cores()
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def generate(
        self, request: ImageRequest, progress: Progress | None = None
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        """`request.n` RGBA pictures at the model's own size."""
        condition, adjustments = self.condition(request)
        steps = request.num_inference_steps or self.description["defaults"]["steps"]
        images = []
        for index in range(request.n):

            def told(done: int, before: int = index * steps) -> None:
                if progress is not None:
                    progress(before + done, request.n * steps)

            x = self.sample(condition, request, seed_of(request, index), steps, told)
            images.append(to_picture(self.run("decoder", x=x)[0]))
        return images, adjustments

    def condition(self, request: ImageRequest) -> tuple[dict[str, NDArray[Any]], list[Adjustment]]:
        """The denoiser's inputs but x and t, two rows each (the wanted and the avoided), and what was cut off."""
        texts, limit = [request.prompt, request.negative_prompt], self.description["max_tokens"]
        ids, grams, mask, cut = self.tokenizer.encode(texts, limit)
        text, pooled = self.run("text", vectors=self.vectors(ids), grams=grams, text_mask=mask)
        style = self.description["styles"][request.style] if request.style else 0
        adjustments = [
            Adjustment(field, f"{limit + more} tokens", f"{limit} tokens", "the model reads no further")
            for field, more in zip(("prompt", "negative_prompt"), cut, strict=True)
            if more
        ]
        return {
            "text": text,
            "pooled": pooled,
            "text_mask": mask,
            "style": np.array([style, 0], np.int64),
            "known": np.zeros((2, *self.shape), np.float32),
            "mask": np.zeros((2, 1, *self.shape[1:]), np.float32),
        }, adjustments

    def sample(
        self, condition: Mapping[str, NDArray[Any]], request: ImageRequest, seed: int, steps: int, told: Any
    ) -> Floats:
        """The latents (1, C, h, w) of one picture. `condition` holds two rows: the wanted and the avoided."""
        defaults = self.description["defaults"]
        times = self.process.times(steps)
        done = {t: i for i, t in enumerate(times)}

        def rows(x: Floats, t: float, count: int) -> Floats:
            told(done.get(t, 0))
            inputs = {name: value[:count] for name, value in condition.items()}
            return self.run("denoiser", x=np.repeat(x, count, axis=0), t=np.full(count, t, np.float32), **inputs)[0]

        def both(x: Floats, t: float) -> tuple[Floats, Floats]:
            estimate = rows(x, t, 2)
            return estimate[:1], estimate[1:]

        scale = defaults["guidance"] if request.guidance_scale is None else request.guidance_scale
        denoise = guided(lambda x, t: rows(x, t, 1), both, scale, tuple(defaults["interval"]))
        noise = noise_source(seed, (1, *self.shape))
        sampler = SAMPLERS[request.sampler or defaults["sampler"]]
        x: Floats = sampler(denoise, self.process.start(noise()), times, self.process, noise)
        told(steps)
        return x.astype(np.float32)


def to_picture(pixels: Floats) -> Image.Image:
    """(1, 4, H, W), premultiplied RGBA in [-1, 1] -> a straight-alpha RGBA picture."""
    rgba = (np.clip(pixels[0], -1, 1).transpose(1, 2, 0) + 1) / 2  # (H, W, 4)
    alpha = np.where(rgba[..., 3:] < 1 / 64, 0.0, rgba[..., 3:])  # faint haze is decoder noise, not glass
    alpha = np.where(alpha > 1 - 1 / 64, 1.0, alpha)
    colour = np.where(alpha > 0, rgba[..., :3] / np.maximum(alpha, 1 / 64), 0.0)
    straight = np.concatenate([np.clip(colour, 0, 1), alpha], axis=-1)
    return Image.fromarray((straight * 255).round().astype(np.uint8), "RGBA")


def read_description(folder: Path) -> dict[str, Any]:
    """`model.json`. Raises ModelNotFoundError, and ModelCorruptError for another format or a missing part."""
    path = folder / "model.json"
    if not path.is_file():
        raise ModelNotFoundError(f"There is no exported model in {folder}.", "Make one: imagewright export RUN DIR")
    try:
        description: dict[str, Any] = json.loads(path.read_text("utf-8"))
        known = description["format"] == FORMAT
        complete = set(description) >= KEYS and set(description["files"]) >= {f"{part}.onnx" for part in PARTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelCorruptError(f"{path} cannot be read: {error}.", "Export or install the model again.") from error
    if not known or not complete:
        raise ModelCorruptError(f"{path} is of another format.", "Use the version of imagewright that made it.")
    return description


def read_verified(path: Path, hashes: Mapping[str, Mapping[str, Any]]) -> bytes:
    """A file's bytes, if they match the model's description. Raises ModelCorruptError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelCorruptError(f"{path.name} cannot be read: {error}.", "Install the model again.") from error
    if hashlib.sha256(data).hexdigest() != hashes[path.name]["sha256"]:
        raise ModelCorruptError(f"{path} is damaged: its hash does not match.", "Install the model again.")
    return data


def verify(folder: Path) -> None:
    """Check every file of an exported model. Raises ModelNotFoundError, ModelCorruptError."""
    hashes = read_description(folder)["files"]
    for name in hashes:
        read_verified(folder / name, hashes)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _default_folders() -> list[Path]:
    extra = os.environ.get("IMAGEWRIGHT_MODELS", "")
    return [Path(str(files("imagewright") / "assets")), *(Path(p) for p in extra.split(os.pathsep) if p)]


def _info(path: Path) -> ModelInfo:
    """ModelInfo from a model.json; the digest is over the hashes that it lists, so that no weights are read."""
    found = read_description(path.parent)
    defaults = found["defaults"]
    listed = "".join(f"{name}:{entry['sha256']}\n" for name, entry in sorted(found["files"].items()))
    return ModelInfo(
        name=found["name"],
        engine=EmbeddedEngine.name,
        technique=found["technique"],
        summary=found["summary"],
        licence=found["licence"],
        capabilities=Capabilities(
            size=tuple(found["size"]),
            default_size=tuple(found["default_size"]),
            negative_prompt=True,
            steps=True,
            guidance=True,
            transparent=True,
            styles=tuple(found["styles"]),
            samplers=tuple(SAMPLERS),
            max_prompt_tokens=found["max_tokens"],
            default_steps=defaults["steps"],
            default_guidance=defaults["guidance"],
        ),
        size_bytes=sum(entry["bytes"] for entry in found["files"].values()),
        digest=hashlib.sha256(listed.encode()).hexdigest(),
        extra={"path": str(path.parent), "training_manifest": found["training"]["manifest"]},
    )
