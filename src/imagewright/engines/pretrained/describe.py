"""What a pretrained model can do, told by its configuration and its pipeline's signature; no weights are read."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
from diffusers.pipelines import auto_pipeline

from imagewright.engines.engine import ModelInfo
from imagewright.engines.pretrained import layouts, licence, samplers, sources
from imagewright.engines.pretrained.sources import Place
from imagewright.errors import ModelError
from imagewright.request import MAX_SIDE, Capabilities

Config = dict[str, Any]

_TASKS = {
    "text": auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
    "image": auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    "mask": auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
}
_NOT_AN_EDITOR = re.compile("Control|Upscal|Layered|CLIP|Variation|Depth|Redux")
_NO_WORDS_ALONE = {"image", "control_image", "num_frames", "audio_length_in_s", "noise_level"}
_SEVERAL = re.compile("Flux2|EditPlus")  # pipelines whose `image` may be a list of references
_CLIP = {"CLIPTextModel", "CLIPTextModelWithProjection"}
_LATENTS = 128  # a side, where a configuration does not say: diffusers' own default for FLUX and its like
WHOLE = 1 << 26  # bytes: files up to this size are read whole for a digest
SAMPLES = 1024  # of each larger one


@dataclass(frozen=True)
class Description:
    """A model's place, its pipeline class, and the configuration of each of its components."""

    place: Place
    pipeline: str
    parts: Mapping[str, tuple[str, str]]
    configs: Mapping[str, Config]
    options: Config
    layout: layouts.Layout | None = None
    variant: str | None = None

    @property
    def kind(self) -> Any:
        """The pipeline's class."""
        return getattr(diffusers, self.pipeline)

    @property
    def network(self) -> Config:
        """The configuration of the denoiser."""
        return self.configs.get("unet") or self.configs.get("transformer") or {}

    @property
    def scheduler(self) -> Config:
        """The configuration of the scheduler, with its class."""
        return self.configs.get("scheduler", {})

    @cached_property
    def verbs(self) -> dict[str, Any]:
        """ "text", "image", "mask" and "instruction" -> the pipeline class that does it."""
        found = _verbs(self.kind)
        if self.options.get("requires_aesthetics_score"):  # SDXL's refiner works on pictures only
            found.pop("text", None)
        if "unet" in self.parts and self.network.get("in_channels") in (8, 9):  # made to edit or to fill, no more
            found = {name: found[name] for name in ("mask", "instruction") if name in found}
        return found

    @property
    def scale(self) -> int:
        """Pixels of the picture for one of the latents, each way."""
        vae = self.configs.get("vae", {})
        names = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
        levels = next((len(vae[name]) for name in names if vae.get(name)), 4)
        return 1 << (levels - 1)

    @property
    def step(self) -> int:
        """What a side of the picture must be a multiple of; diffusers asks for 8 at least."""
        if "unet" in self.configs:
            return max(8, self.scale << (len(self.network.get("block_out_channels", [0])) - 1))
        return max(8, self.scale * max(2, int(self.network.get("patch_size") or 1)))

    @property
    def native(self) -> tuple[int, int]:
        """(width, height) at which the model was trained."""
        size = self.network.get("sample_size")
        if isinstance(size, int) and size > 0:
            return size * self.scale, size * self.scale
        if isinstance(size, list) and len(size) == 2:
            return int(size[1]) * self.scale, int(size[0]) * self.scale
        return _LATENTS * self.scale, _LATENTS * self.scale

    @property
    def areas(self) -> tuple[float, float]:
        """The least and the largest area that it draws well, as shares of the native one."""
        return (0.6, 1.5) if self.network.get("sample_size") else (0.1, 2.0)

    @property
    def clip_only(self) -> bool:
        """Whether all that reads the words is CLIP, as in Stable Diffusion 1, 2 and XL."""
        encoders = [kind for name, (_, kind) in self.parts.items() if name.startswith("text_encoder")]
        return "unet" in self.parts and bool(encoders) and set(encoders) <= _CLIP

    @property
    def few_steps(self) -> samplers.FewSteps | None:
        """What it wants where it was distilled to few steps."""
        return samplers.few_steps(self.place.name, samplers.Traits(self.pipeline, self.scheduler, self.network))


def describe(place: Place) -> Description:
    """Reads and checks the model at `place`. Raises ModelNotFoundError, ModelCorruptError, ModelError."""
    found = _of_file(place) if place.single else _of_folder(place)
    if not hasattr(diffusers, found.pipeline) or not found.verbs:
        raise ModelError(
            f"{place.name} is a {found.pipeline}, which this version of diffusers cannot make pictures with.",
            "Choose another model, or a newer diffusers.",
        )
    return found


def _of_file(place: Place) -> Description:
    layout = layouts.read(place.path, sources.shapes(place.path))
    configs = {name: {"_class_name": kind, **(config or {})} for name, (_, kind, config) in layout.parts.items()}
    parts = {name: (library, kind) for name, (library, kind, _) in layout.parts.items()}
    return Description(place, layout.pipeline, parts, configs, layout.options, layout)


def _of_folder(place: Place) -> Description:
    index = sources.read_index(place.path)
    variant = sources.check_folder(place.path, index)
    parts = sources.components(index)
    configs = {name: config for name in parts if (config := _config(place.path / name))}
    options = {name: value for name, value in index.items() if name not in parts and not name.startswith("_")}
    return Description(place, index["_class_name"], parts, configs, options, None, variant)


def _config(part: Path) -> Config | None:
    for name in ("config.json", "scheduler_config.json"):
        if (part / name).is_file():
            return sources.read_json(part / name)
    return None


def _verbs(kind: Any) -> dict[str, Any]:
    """The verbs that a pipeline class knows, itself or through its relatives on the same components."""
    family = {
        task: other
        for key, table in ((key, table) for table in _TASKS.values() for key, one in table.items() if one is kind)
        for task, table in _TASKS.items()
        if (other := table.get(key)) is not None
    }
    takes = parameters(kind)
    found = {}
    text = family.get("text", kind if {"prompt", "height", "width"} <= takes and not takes & _NO_WORDS_ALONE else None)
    led = text is not None and "control_image" in parameters(text) and "ControlNet" not in text.__name__
    if text is not None and not led and "image" not in _required(text):
        found["text"] = text
    for task, needed in (("image", {"image", "strength"}), ("mask", {"image", "mask_image"})):
        for other in (kind, family.get(task)):
            if (
                other is not None
                and needed <= parameters(other)
                and (task == "mask" or "mask_image" not in parameters(other))
            ):
                found[task] = other
                break
    plain = {"prompt", "image"} <= takes and not takes & {"strength", "mask_image", "noise_level", "num_frames"}
    if plain and not _NOT_AN_EDITOR.search(kind.__name__):
        found["instruction"] = kind
    return found


def parameters(kind: Any) -> set[str]:
    """The names of the arguments of a pipeline's call."""
    return set(inspect.signature(kind.__call__).parameters)


def default(kind: Any, name: str) -> Any:
    """The default of an argument of a pipeline's call; None where there is none."""
    found = inspect.signature(kind.__call__).parameters.get(name)
    return None if found is None or found.default is inspect.Parameter.empty else found.default


def _required(kind: Any) -> set[str]:
    found = inspect.signature(kind.__call__).parameters.values()
    return {one.name for one in found if one.default is inspect.Parameter.empty}


def control_class(kind: Any) -> Any:
    """The pipeline class that does the same with ControlNets, or None."""
    if "ControlNet" in kind.__name__:
        return kind
    for tail in ("Img2ImgPipeline", "InpaintPipeline", "Pipeline"):
        if kind.__name__.endswith(tail):
            start = f"{kind.__name__.removesuffix(tail)}ControlNet"
            return getattr(diffusers, start + tail, None) or getattr(diffusers, f"{start}InpaintingPipeline", None)
    return None


def info(found: Description, engine: str) -> ModelInfo:
    """The model as the engine lists it."""
    files = list(sources.files(found.place))
    return ModelInfo(
        name=found.place.name,
        engine=engine,
        technique="diffusion",
        summary=f"{found.pipeline} of diffusers" + (f", {found.few_steps.kind}" if found.few_steps else ""),
        licence=licence.read(found.place),
        capabilities=capabilities(found),
        size_bytes=sum(file.stat().st_size for file in files),
        digest=digest(found.place),
        extra={"path": str(found.place.path), "pipeline": found.pipeline},
    )


def capabilities(found: Description) -> Capabilities:
    """What the model can do."""
    verbs, takes = found.verbs, parameters(found.kind).union(*map(parameters, found.verbs.values()))
    main = verbs.get("text") or found.kind
    few = found.few_steps
    least = max(found.step, 64 // found.step * found.step)
    return Capabilities(
        size=found.native,
        sides=(least, MAX_SIDE // found.step * found.step, found.step),
        negative_prompt="negative_prompt" in takes and not (few and few.guidance <= 1),
        steps="num_inference_steps" in takes,
        guidance=bool(takes & {"guidance_scale", "true_cfg_scale"}),
        image=bool(set(verbs) - {"text"}),
        mask="mask" in verbs,
        samplers=tuple(samplers.table(found.scheduler)),
        features=tuple(_features(found, main)),
        max_prompt_tokens=0 if found.clip_only else int(default(main, "max_sequence_length") or 0),
        default_steps=few.steps if few else default(main, "num_inference_steps"),
        default_guidance=few.guidance if few else guidance(main),
    )


def guidance(kind: Any) -> float | None:
    """The pipeline's default guidance: of `true_cfg_scale` where that is what guides (Qwen-Image), else plain."""
    plain: float | None = default(kind, "guidance_scale")
    other: float | None = default(kind, "true_cfg_scale")
    return other if plain is None else plain


def _features(found: Description, main: Any) -> list[str]:
    controls = {control_class(kind) for verb, kind in found.verbs.items() if verb != "instruction"} - {None}
    adaptable = "unet" in found.parts and hasattr(main, "load_ip_adapter")
    has = {
        "instruction": "instruction" in found.verbs,
        "images": "instruction" in found.verbs and bool(_SEVERAL.search(found.pipeline)),
        "style_images": adaptable,
        "subject_images": adaptable,
        "controls": bool(controls),
        "adapters": hasattr(main, "load_lora_weights"),
        "embeddings": found.clip_only and hasattr(main, "load_textual_inversion"),
        "tile": "unet" in found.parts and found.parts.get("vae", ("", ""))[1] == "AutoencoderKL",
        "emphasis": found.clip_only,
        "stop": hasattr(main, "interrupt"),
    }
    return [name for name, there in has.items() if there]


def digest(place: Place) -> str:
    """The sha256 over the names, sizes and contents of the model's files; of large weights, over samples.

    Files of many GiB are not read through: their header and 1,024 stretches of 4 KiB, evenly spread, tell one training
    from another, though not every single changed number.
    """
    told = hashlib.sha256()
    for path in sources.files(place):
        inner = path.name if place.single else path.relative_to(place.path).as_posix()
        size = path.stat().st_size
        told.update(f"{inner}\n{size}\n".encode())
        with path.open("rb") as file:
            if size <= WHOLE:
                told.update(file.read())
                continue
            told.update(file.read(int.from_bytes(file.read(8), "little")))
            for sample in range(SAMPLES):
                file.seek(size * sample // SAMPLES)
                told.update(file.read(4096))
    return told.hexdigest()
