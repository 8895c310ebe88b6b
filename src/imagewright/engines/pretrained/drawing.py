"""One call of a pipeline, looked upon: progress and previews step by step, an early stop, and no black pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from imagewright.engines.pretrained.describe import parameters
from imagewright.engines.pretrained.loading import first_line, offline, quiet
from imagewright.engines.pretrained.machine import is_full
from imagewright.errors import ModelError
from imagewright.watch import Watch


def draw_all(
    pipe: Any, given: Mapping[str, Any], seeds: Sequence[int], watch: Watch, stop: float, tile: bool
) -> list[Image.Image]:
    """One picture for each seed, each in a call of its own, so that a seed is one picture however many there are."""
    images = []
    with wrapped(pipe, tile):
        for index, seed in enumerate(seeds):

            def told(done: int, total: int, before: int = index) -> None:
                watch.told(before * total + done, len(seeds) * total)

            one = replace(watch, progress=told, preview=watch.preview if index == 0 else None)
            images.append(draw(pipe, given, seed, one, stop))
    return images


def draw(pipe: Any, given: Mapping[str, Any], seed: int, watch: Watch, stop: float = 1.0) -> Image.Image:
    """The picture of one call. What `watch` raises ends it.

    Raises ModelError where the networks give no numbers, or the pipeline refuses its arguments.
    """
    looker = _Looker(pipe, watch, stop, given)
    call = dict(given)
    takes = parameters(type(pipe))
    if "callback_on_step_end" in takes:
        call["callback_on_step_end"] = looker.step
    elif "callback" in takes:  # of older pipelines, which cannot be stopped early
        call["callback"] = lambda index, time, latents: looker.step(pipe, index, time, {"latents": latents})
    if "generator" in takes:
        call["generator"] = torch.Generator("cpu").manual_seed(seed)
    try:
        with offline(), quiet(), torch.no_grad(), finite(pipe), looker.estimates():
            image: Image.Image = pipe(**call).images[0]
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        if error is looker.raised or is_full(error):
            raise
        raise ModelError(
            f"{type(pipe).__name__} cannot draw this: {first_line(error)}",
            "Leave out what is unusual in the request; if it stays, the model's files do not fit together.",
        ) from error
    if looker.done == 0:
        watch.told(1, 1)
    return image


class _Looker:
    """Told by the pipeline after each step."""

    def __init__(self, pipe: Any, watch: Watch, stop: float, given: Mapping[str, Any]) -> None:
        self.pipe, self.watch, self.stop = pipe, watch, stop
        self.size = given.get("width"), given.get("height")
        self.steps = given.get("num_inference_steps")
        self.done = 0
        self.raised: BaseException | None = None  # by whoever looks on
        self.estimate: Tensor | None = None

    def step(self, pipe: Any, index: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """`callback_on_step_end` of diffusers."""
        if getattr(pipe, "interrupt", False):
            return tensors
        self.done = index + 1
        total = self._total(pipe)
        try:
            self.watch.told(min(self.done, total), total)
        except BaseException as error:
            self.raised = error
            raise
        latents: Tensor = tensors["latents"]
        clean = self.estimate if self.estimate is not None and self.estimate.shape == latents.shape else latents
        kept = max(1, round(self.stop * total))
        due = self.watch.due(index, index + 1, kept)
        if self.watch.tracing or due is not None:
            pixels = preview(pipe, clean, self.size)
            if pixels is not None:
                self.watch.shown("step", index, pixels, t=float(time))
            if pixels is not None and due is not None:
                self.watch.previewed(due, pixels)
        if kept <= self.done < total:
            pipe._interrupt = True  # the steps that are left are passed over
            return {**tensors, "latents": clean.to(latents.dtype)}
        return tensors

    def _total(self, pipe: Any) -> int:
        return max(1, int(getattr(pipe, "num_timesteps", 0) or self.steps or 1))

    @contextmanager
    def estimates(self) -> Iterator[None]:
        """Keeps what each step takes the clean latents to be, told by the scheduler; for previews and the stop."""
        scheduler = self.pipe.scheduler
        if not self.watch.tracing and self.watch.preview is None and self.stop >= 1:
            yield
            return
        original = scheduler.step

        def step(output: Tensor, time: Any, sample: Tensor, *rest: Any, **named: Any) -> Any:
            index = getattr(scheduler, "step_index", None)
            result = original(output, time, sample, *rest, **named)
            self.estimate = _clean(scheduler, result, output, sample, index)
            return result

        scheduler.step = step
        try:
            yield
        finally:
            del scheduler.step


def _clean(scheduler: Any, result: Any, output: Tensor, sample: Tensor, index: int | None) -> Tensor | None:
    """What a scheduler's step takes the clean latents to be."""
    if type(scheduler).__name__.startswith("FlowMatch"):
        index = 0 if index is None else index
        estimate: Tensor = sample.float() - scheduler.sigmas[index].to(sample.device) * output.float()
        return estimate
    if isinstance(result, tuple) and len(result) > 1 and isinstance(result[1], Tensor):
        return result[1]
    kept = getattr(scheduler, "model_outputs", None)  # of the multistep solvers: clean estimates
    if kept and isinstance(kept[-1], Tensor) and "++" in str(scheduler.config.get("algorithm_type", "++")):
        return kept[-1]
    return None


def preview(pipe: Any, latents: Tensor, size: tuple[Any, Any]) -> Tensor | None:
    """Latents as pixels (4, H, W), opaque RGBA in [-1, 1], through the decoder; None where it is of another kind."""
    vae: Any = getattr(pipe, "vae", None)
    if type(vae).__name__ not in ("AutoencoderKL", "AutoencoderTiny"):
        return None
    if latents.ndim == 3:
        if None in size or not hasattr(pipe, "_unpack_latents"):
            return None
        latents = pipe._unpack_latents(latents, size[1], size[0], pipe.vae_scale_factor)
    if latents.ndim != 4:
        return None
    z = latents[:1] / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)
    with torch.no_grad():
        rgb = vae.decode(z.to(vae.device, vae.dtype), return_dict=False)[0][0].float().cpu()  # (3, H, W)
    return torch.cat([rgb.clamp(-1, 1), torch.ones_like(rgb[:1])])


@contextmanager
def finite(pipe: Any) -> Iterator[None]:
    """Watches the decoder: what comes out NaN in half precision is decoded again in full; where the latents
    themselves are no numbers, ModelError."""
    vae = getattr(pipe, "vae", None)
    if vae is None or not hasattr(vae, "decode"):
        yield
        return
    original = vae.decode

    def decode(z: Tensor, *rest: Any, **named: Any) -> Any:
        if not torch.isfinite(z).all():
            raise ModelError(
                f"The denoiser's numbers overflowed in {_dtype(pipe)}: the picture would be black.",
                "Use another sampler, less guidance, or fewer or weaker add-ons.",
            )
        result = original(z, *rest, **named)
        if torch.isfinite(_sample(result)).all():
            return result
        dtype = vae.dtype
        if dtype != torch.float32:
            vae.to(torch.float32)
            try:
                result = original(z.float(), *rest, **named)
            finally:
                vae.to(dtype)
        if not torch.isfinite(_sample(result)).all():
            raise ModelError(
                "The decoder gives no numbers: the picture would be black.", "Copy or download the model again."
            )
        return result

    vae.decode = decode
    try:
        yield
    finally:
        del vae.decode


def _sample(result: Any) -> Tensor:
    found: Tensor = result[0] if isinstance(result, tuple) else result.sample
    return found


def _dtype(pipe: Any) -> str:
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    return str(getattr(denoiser, "dtype", "unknown")).removeprefix("torch.")


@contextmanager
def wrapped(pipe: Any, on: bool) -> Iterator[None]:
    """With `on`, the pictures continue at their opposite edges: every convolution reads around the edge."""
    parts = [part for name in ("unet", "vae", "controlnet") if isinstance(part := getattr(pipe, name, None), nn.Module)]
    layers = [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Conv2d)] if on else []
    before = [layer.padding_mode for layer in layers]
    for layer in layers:
        layer.padding_mode = "circular"
    try:
        yield
    finally:
        for layer, mode in zip(layers, before, strict=True):
            layer.padding_mode = mode
