"""The engine for training runs: torch, straight from a run folder or a checkpoint, with the averaged weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from PIL import Image

from imagewright.data.batch import STYLES
from imagewright.engines.embedded import unread
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
from imagewright.errors import ModelError, ModelNotFoundError
from imagewright.models.technique import Cond, Prompted, Technique
from imagewright.request import Adjustment, ImageRequest
from imagewright.source import to_picture
from imagewright.training.checkpoint import load_model, open_model
from imagewright.watch import Watch


class TrainedEngine(Engine):
    """Makes pictures with a run folder, named by its path; the newest intact checkpoint is used."""

    name = "trained"

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[Technique, ModelInfo]] = {}

    def models(self) -> Sequence[ModelInfo]:
        """Those used so far: runs are found by their path only."""
        return [info for _, info in self._loaded.values()]

    def find(self, name: str | None) -> ModelInfo:
        """The run at path `name`. Raises ModelNotFoundError, ModelCorruptError, ModelError."""
        if name is None:
            raise ModelNotFoundError("A trained model is named by its run folder.", "Give --model RUN_FOLDER.")
        if name not in self._loaded:
            technique = load_model(name)
            if not technique.family:
                raise ModelError(
                    f"{name} holds a {type(technique).__name__}, which makes no pictures from words.",
                    "Give the folder of a run that does (vae, gan, diffusion or autoregressive).",
                )
            self._loaded[name] = technique, self._info(name, technique)
        return self._loaded[name][1]

    def technique(self, model: ModelInfo) -> Technique:
        """The loaded network of a model that `find` gave."""
        return self._loaded[model.extra["path"]][0]

    def _info(self, name: str, technique: Technique) -> ModelInfo:
        path, run = open_model(name)
        side = technique.pixels
        digest = hashlib.sha256((path / "ema.safetensors").read_bytes()).hexdigest()
        return ModelInfo(
            name=Path(name).name,
            engine=self.name,
            technique=technique.family,
            summary=f"A run at step {path.name.removeprefix('step-')}.",
            licence="your own",
            capabilities=capabilities(
                defaults(technique),
                (*technique.edits, *(WORDING if hears(technique) else ())),
                size=(side, side),
                transparent=True,
                styles=tuple(run.get("styles", {})),
                max_prompt_tokens=getattr(getattr(technique.config, "text", None), "max_tokens", 0),
            ),
            digest=digest,
            extra={"path": name, "training_manifest": run.get("manifest_hash")},
        )

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        technique, n = self.technique(model), request.n
        style = STYLES.index(request.style) if request.style else 0
        steering = [steering_of(request, i) for i in range(n)]
        source = source_of(request, model.capabilities.size)
        pictures = technique.sample(
            Cond([request.prompt] * n, [style] * n, [request.negative_prompt] * n, steering),
            [seed_of(request, i) for i in range(n)],
            watch=watch if n == 1 else replace(watch, preview=None),
            **options_of(request, defaults(technique)),
            **({} if source is None else {"source": source}),
        )
        said = unread(technique.tokenizer, request, technique.config.text.max_tokens) if hears(technique) else []
        return [to_picture(picture[None].cpu().numpy()) for picture in pictures], said


def hears(technique: Technique) -> TypeGuard[Prompted]:
    """Whether its networks look at the words."""
    return isinstance(technique, Prompted) and bool(getattr(technique, "inputs", True))


def defaults(technique: Technique) -> dict[str, Any]:
    """The technique's sampling options and their defaults."""
    return {name: getattr(technique.config, name) for name in technique.sampling}
