"""The engine for training runs: torch, straight from a run folder or a checkpoint, with the averaged weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from imagewright.data.batch import STYLES
from imagewright.engines.embedded import to_picture
from imagewright.engines.engine import Engine, ModelInfo, Progress, seed_of
from imagewright.errors import ModelError, ModelNotFoundError
from imagewright.models.diffusion import Diffusion
from imagewright.models.samplers import SAMPLERS
from imagewright.models.technique import Cond
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.training.checkpoint import load_model, open_model
from imagewright.watch import Watch


class TrainedEngine(Engine):
    """Makes pictures with a run folder, named by its path; the newest intact checkpoint is used."""

    name = "trained"

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[Diffusion, ModelInfo]] = {}

    def models(self) -> Sequence[ModelInfo]:
        """Those used so far: runs are found by their path only."""
        return [info for _, info in self._loaded.values()]

    def find(self, name: str | None) -> ModelInfo:
        """The run at path `name`. Raises ModelNotFoundError, ModelCorruptError, ModelError."""
        if name is None:
            raise ModelNotFoundError("A trained model is named by its run folder.", "Give --model RUN_FOLDER.")
        if name not in self._loaded:
            technique = load_model(name)
            if not isinstance(technique, Diffusion):
                raise ModelError(
                    f"{name} holds a {type(technique).__name__}, which makes no pictures from words.",
                    "Give the folder of a diffusion run.",
                )
            self._loaded[name] = technique, self._info(name, technique)
        return self._loaded[name][1]

    def _info(self, name: str, technique: Diffusion) -> ModelInfo:
        path, run = open_model(name)
        config, side = technique.config, technique.pixels
        digest = hashlib.sha256((path / "ema.safetensors").read_bytes()).hexdigest()
        return ModelInfo(
            name=Path(name).name,
            engine=self.name,
            technique="diffusion",
            summary=f"A run at step {path.name.removeprefix('step-')}.",
            licence="your own",
            capabilities=Capabilities(
                size=(side, side),
                negative_prompt=True,
                steps=True,
                guidance=True,
                transparent=True,
                styles=tuple(run.get("styles", {})),
                samplers=tuple(SAMPLERS),
                max_prompt_tokens=config.text.max_tokens,
                default_steps=config.steps,
                default_guidance=config.guidance,
            ),
            digest=digest,
            extra={"path": name, "training_manifest": run.get("manifest_hash")},
        )

    def _generate(
        self, request: ImageRequest, model: ModelInfo, progress: Progress | None
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        technique, _ = self._loaded[model.extra["path"]]
        style = STYLES.index(request.style) if request.style else 0
        pictures = technique.sample(
            Cond([request.prompt] * request.n, [style] * request.n, [request.negative_prompt] * request.n),
            [seed_of(request, i) for i in range(request.n)],
            steps=request.num_inference_steps,
            guidance=request.guidance_scale,
            sampler=request.sampler,
            watch=Watch(progress),
        )
        return [to_picture(picture[None].cpu().numpy()) for picture in pictures], []
