"""Opens a model as a pipeline of diffusers: from its folder, or from a single file with what else is at hand.

A single file holds networks and no words: the tokenizer, and what else it lacks (FLUX files often hold the denoiser
alone), is taken from a folder beside the file or from the hub's local cache. Nothing is fetched.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import constants
from safetensors import SafetensorError

from imagewright.engines.pretrained import samplers, sources
from imagewright.engines.pretrained.describe import Description
from imagewright.engines.pretrained.layouts import Layout
from imagewright.errors import ImagewrightError, ModelCorruptError, ModelError

_CLIP_HOMES = (  # repositories whose tokenizer is CLIP's, the same in all
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "openai/clip-vit-large-patch14",
    "stabilityai/stable-diffusion-xl-base-1.0",
    "stabilityai/sd-turbo",
    "stabilityai/sdxl-turbo",
)
_HOMES = {
    "sd1": _CLIP_HOMES,
    "sd2": ("stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1-base", *_CLIP_HOMES),
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", *_CLIP_HOMES),
    "sd3": (
        "stabilityai/stable-diffusion-3.5-medium",
        "stabilityai/stable-diffusion-3.5-large",
        "stabilityai/stable-diffusion-3-medium-diffusers",
        *_CLIP_HOMES,
    ),
    "flux": ("black-forest-labs/FLUX.1-schnell", "black-forest-labs/FLUX.1-dev", *_CLIP_HOMES),
}


@contextmanager
def offline() -> Iterator[None]:
    """No library asks the hub for anything, for the time of the block."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def open_pipeline(found: Description, dtype: torch.dtype) -> Any:
    """The model's pipeline, its weights in `dtype`. Raises ModelCorruptError, ModelError."""
    with offline(), quiet():
        try:
            pipe = _of_file(found, dtype) if found.layout else _of_folder(found, dtype)
        except ImagewrightError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
            raise ModelCorruptError(
                f"{found.place.name} cannot be loaded: {first_line(error)}", "Copy or download the model again."
            ) from error
    _check_loaded(pipe, found)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _of_folder(found: Description, dtype: torch.dtype) -> Any:
    unwanted: dict[str, Any] = {"safety_checker": None} if "safety_checker" in found.parts else {}
    if "requires_safety_checker" in found.options:
        unwanted["requires_safety_checker"] = False
    pipelines: Any = diffusers.DiffusionPipeline
    return pipelines.from_pretrained(
        str(found.place.path),
        dtype=dtype,
        variant=found.variant,
        use_safetensors=True,
        local_files_only=True,
        **unwanted,
    )


def _of_file(found: Description, dtype: torch.dtype) -> Any:
    layout = found.layout
    assert layout is not None
    lacking = {name: kind for name, (_, kind, config) in layout.parts.items() if config is None}
    given = {name: _borrowed(name, kind, found, dtype) for name, kind in lacking.items()}
    with tempfile.TemporaryDirectory() as folder:
        _write(layout, Path(folder))
        return found.kind.from_single_file(
            str(found.place.path), config=folder, local_files_only=True, dtype=dtype, **given
        )


def _write(layout: Layout, folder: Path) -> None:
    """The configurations of a layout, as diffusers reads them from a model's folder."""
    (folder / sources.INDEX).write_text(json.dumps(layout.index()), "utf-8")
    for name, (_, kind, config) in layout.parts.items():
        if config is not None:
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            (folder / name).mkdir()
            (folder / name / file).write_text(json.dumps({"_class_name": kind, **config}), "utf-8")


def _borrowed(name: str, kind: str, found: Description, dtype: torch.dtype) -> Any:
    """A component that a single file lacks, from beside it or from the hub's cache. Raises ModelError."""
    for home in _homes(found):
        for part in (home / name, home / "tokenizer", home):
            if part != home / name and (kind != "CLIPTokenizer" or not (part / "tokenizer_config.json").is_file()):
                continue  # all models read the same CLIP vocabulary, so any tokenizer will do
            if part.is_dir():
                return _open_part(part, name, kind, found, dtype)
    source = _HOMES[found.layout.family][0] if found.layout else ""
    raise ModelError(
        f"{found.place.path.name} has no {name}, and none is here.",
        f"Put the folder {name} of the model's repository beside it, or: imagewright models get {source} '{name}/*'",
    )


def _open_part(part: Path, name: str, kind: str, found: Description, dtype: torch.dtype) -> Any:
    home = getattr(transformers, kind, None) or getattr(diffusers, kind)
    if "Tokenizer" in kind:
        padding = {"pad_token": "!"} if _pads_with_zero(name, found) else {}
        return home.from_pretrained(str(part), local_files_only=True, **padding)
    sources.check_part(part)
    return home.from_pretrained(str(part), dtype=dtype, use_safetensors=True, local_files_only=True)


def _pads_with_zero(name: str, found: Description) -> bool:
    """OpenCLIP's encoders (SD 2, the second of SDXL and SD3) were trained with word 0 after the end."""
    return found.layout is not None and (found.layout.family == "sd2" or name == "tokenizer_2")


def _homes(found: Description) -> Iterator[Path]:
    file = found.place.path
    yield from (file.with_suffix(""), file.parent)
    for repository in _HOMES[found.layout.family] if found.layout else ():
        cached = sources.cached(repository)
        if cached is not None:
            yield cached


def derived(pipe: Any, kind: Any, sampler: str | None = None, **extra: Any) -> Any:
    """A pipeline of class `kind` on the same components, none copied, with a scheduler of its own."""
    wanted = signature(kind.__init__).parameters
    parts = {name: part for name, part in pipe.components.items() if name in wanted}
    options = {name: value for name, value in pipe.config.items() if name in wanted and name not in parts}
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    if sampler is not None:
        scheduler = samplers.replaced(scheduler, sampler)
    with quiet():
        made = kind(**{**options, **parts, "scheduler": scheduler, **extra})
    made.set_progress_bar_config(disable=True)
    return made


def _check_loaded(pipe: Any, found: Description) -> None:
    """Every weight must have come from the file: one that is still on the meta device did not."""
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            if isinstance(part, transformers.PreTrainedModel):
                part.tie_weights()  # a single file holds what is shared once
            lost = next((key for key, value in part.state_dict().items() if value.is_meta), None)
            if lost:
                raise ModelCorruptError(f"{found.place.name} lacks {name}.{lost}.", "Copy or download the model again.")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' own progress bars, advice and warnings, which speak to those who write models."""
    loggers = (diffusers.utils.logging, transformers.utils.logging)
    levels = [one.get_verbosity() for one in loggers]
    bars = [one.is_progress_bar_enabled() for one in loggers]
    for one in loggers:
        one.set_verbosity_error()
        one.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level, bar in zip(loggers, levels, bars, strict=True):
            one.set_verbosity(level)
            if bar:
                one.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
