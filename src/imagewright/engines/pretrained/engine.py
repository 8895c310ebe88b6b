"""The engine for open weights: a model of diffusers, in place on this disk, loaded for the first request and kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagewright.engines.engine import Engine, ModelInfo, seed_of
from imagewright.errors import MissingExtraError, ModelNotFoundError
from imagewright.request import Adjustment, ImageRequest, ImageResult
from imagewright.watch import Watch

if TYPE_CHECKING:
    from imagewright.engines.pretrained.describe import Description
    from imagewright.engines.pretrained.machine import Plan

# Read by the libraries when they are imported: no reports to anybody, no advice on packages that are not needed.
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


class PretrainedEngine(Engine):
    """Runs models in the layout of diffusers and single .safetensors files, named by path or by hub id."""

    name = "pretrained"

    def __init__(self) -> None:
        if find_spec("diffusers") is None:
            raise MissingExtraError("The pretrained engine", "pretrained")
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        self._known: dict[str, tuple[Description, ModelInfo]] = {}
        self._open: tuple[str, Any, Plan] | None = None  # one at a time: they fill the memory

    def models(self) -> Sequence[ModelInfo]:
        """Those used so far: models are found by their path or hub id only."""
        return [info for _, info in self._known.values()]

    def find(self, name: str | None) -> ModelInfo:
        """The model at path or with hub id `name`. Reads no weights.

        Raises ModelNotFoundError, ModelCorruptError, ModelError.
        """
        from imagewright.engines.pretrained import describe, sources

        if name is None:
            raise ModelNotFoundError("A pretrained model is named by its place.", "Give --model FOLDER or ORG/NAME.")
        if name not in self._known:
            found = describe.describe(sources.locate(name))
            info = describe.info(found, self.name)
            self._known[name] = found, info
        return self._known[name][1]

    def generate(self, request: ImageRequest, watch: Watch = Watch()) -> ImageResult:
        """As Engine.generate; a few-step LoRA brings its own steps, guidance and sampler, and the records tell the
        number format, the scheduler and the add-ons with their hashes. Before a model's first use, `watch` is told its
        licence."""
        from imagewright.engines.pretrained import addons, licence

        model = self.find(request.model)
        if said := licence.notice(model):
            watch.said(said)
        result = super().generate(_with_defaults(request, self._description(model)), watch)
        facts = {**self._facts(request, model), **addons.gather(request, self._description(model)).told()}
        return replace(result, records=tuple({**record, **facts} for record in result.records))

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        from imagewright.engines.pretrained import addons, calls, drawing, fast, loading, machine, words
        from imagewright.engines.pretrained.describe import parameters

        found = self._description(model)
        put_on = addons.gather(request, found)
        verb = calls.verb_of(request, found)
        kind = calls.kind_for(request, verb, found)
        size, said = calls.size_for(request, found)
        base, plan = self._opened(model, found, size)
        with addons.worn(base, put_on, request):
            nets = addons.control_nets(put_on, plan.dtype)
            control = {"controlnet": nets if len(nets) > 1 else nets[0]} if nets else {}
            pipe = machine.prepare(loading.derived(base, kind, request.sampler, **control), plan, watch.said)
            machine.refit(pipe, plan, *size)
            machine.announce(pipe, request, *size, watch.said)
            spoken, cut = words.spoken(pipe, request, found.clip_only, parameters(kind))
            references = {"ip_adapter_image": addons.references(request)} if put_on.ip_adapter else {}

            def all_of_them(width: int, height: int) -> tuple[list[Image.Image], list[Adjustment]]:
                given, bent = calls.arguments(request, verb, kind, (width, height))
                call = {**spoken, **given, **references}
                seeds = [seed_of(request, i) for i in range(request.n)]
                return drawing.draw_all(pipe, call, seeds, watch, request.stop, request.tile), bent

            (images, bent), shrunk = machine.retrying(pipe, all_of_them, *size)
        return images, [*said, *cut, *bent, *shrunk, *fast.told(pipe)]

    def _opened(self, model: ModelInfo, found: Description, size: tuple[int, int]) -> tuple[Any, Plan]:
        """The model's pipeline and the plan that it was loaded by; loaded where it is not the last one used."""
        from imagewright.engines.pretrained import loading, machine

        if self._open is None or self._open[0] != model.digest:
            self._open = None  # the last one's memory is free before the next is planned
            plan = machine.plan(found.place.path, *size)
            self._open = model.digest, loading.open_pipeline(found, plan.dtype), plan
        return self._open[1], self._open[2]

    def _description(self, model: ModelInfo) -> Description:
        path = Path(model.extra["path"])
        return next(found for found, _ in self._known.values() if found.place.path == path)

    def _facts(self, request: ImageRequest, model: ModelInfo) -> dict[str, Any]:
        assert self._open is not None
        scheduler = request.sampler or self._description(model).scheduler.get("_class_name")
        return {"dtype": str(self._open[2].dtype).removeprefix("torch."), "scheduler": scheduler}


def _with_defaults(request: ImageRequest, found: Description) -> ImageRequest:
    """The request with what a few-step LoRA, or a few-step model in a single file, wants of sampling, where it does
    not say itself. (A folder's own scheduler is right already.)"""
    from imagewright.engines.pretrained import samplers

    loras = (samplers.by_name(Path(one.model).stem) for one in request.adapters)
    few = next(filter(None, loras), found.few_steps if found.layout else None)
    if few is None:
        return request
    guided = request.guidance_scale is not None or found.network.get("guidance_embeds")
    suited = few.sampler if few.sampler in samplers.table(found.scheduler) else None
    return replace(
        request,
        num_inference_steps=request.num_inference_steps or few.steps,
        guidance_scale=request.guidance_scale if guided else few.guidance,
        sampler=request.sampler or suited,
    )
