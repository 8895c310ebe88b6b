"""What is put on a model for one request: LoRA, ControlNets, IP-Adapters and learned words; taken off again after.

All are safetensors on this disk: a file, a folder, or a repository in the hub's local cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from imagewright.engines.pretrained import sources
from imagewright.engines.pretrained.describe import Description
from imagewright.engines.pretrained.loading import first_line, offline, quiet
from imagewright.errors import ImagewrightError, ModelError, ModelNotFoundError, RequestError
from imagewright.request import Control, ImageRequest

_IP_HOME = "h94/IP-Adapter"
_IP_NAMES = {
    True: ("sdxl_models", "ip-adapter_sdxl_vit-h.safetensors"),
    False: ("models", "ip-adapter_sd15.safetensors"),
}


@dataclass(frozen=True)
class Lora:
    """A LoRA's file and weight."""

    file: Path
    weight: float


@dataclass(frozen=True)
class Addons:
    """The add-ons of a request, found on the disk."""

    loras: tuple[Lora, ...] = ()
    ip_adapter: Path | None = None
    embeddings: tuple[Path, ...] = ()
    controls: tuple[tuple[Path, Control], ...] = field(default=())

    def told(self) -> dict[str, Any]:
        """For the record: each add-on's file name and hash."""
        named: dict[str, Any] = {}
        if self.loras:
            named["adapters"] = [{**_named(one.file), "weight": one.weight} for one in self.loras]
        if self.ip_adapter:
            named["ip_adapter"] = _named(self.ip_adapter)
        if self.embeddings:
            named["embeddings"] = [_named(file) for file in self.embeddings]
        if self.controls:
            named["controls"] = [{"name": path.name, "weight": control.weight} for path, control in self.controls]
        return named


def _named(file: Path) -> dict[str, Any]:
    with file.open("rb") as data:
        return {"name": file.name, "sha256": hashlib.file_digest(data, "sha256").hexdigest()}


def gather(request: ImageRequest, found: Description) -> Addons:
    """The add-ons that `request` names. Raises ModelNotFoundError, ModelCorruptError, ModelError, RequestError."""
    loras, ip_adapter = [], None
    for adapter in request.adapters:
        file = _weights_file(adapter.model)
        if any(key.startswith(("image_proj.", "ip_adapter.")) for key in sources.shapes(file)):
            ip_adapter = file
        else:
            loras.append(Lora(file, adapter.weight))
    if (request.style_images or request.subject_images) and ip_adapter is None:
        ip_adapter = _own_ip_adapter(found)
    embeddings = tuple(_weights_file(name) for name in request.embeddings)
    controls = tuple((_control_folder(control.model), control) for control in request.controls)
    return Addons(tuple(loras), ip_adapter, embeddings, controls)


def _weights_file(name: str) -> Path:
    """The safetensors file that `name` means: itself, or the only one in a folder or cached repository."""
    place = sources.locate(name)
    if place.single:
        sources.shapes(place.path)
        return place.path
    files = sorted(place.path.glob(f"*{sources.WEIGHTS}"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files)
        raise ModelNotFoundError(
            f"{name} holds {len(files)} safetensors files{': ' * bool(files)}{names}.", "Give the file itself."
        )
    sources.shapes(files[0])
    return files[0]


def _control_folder(name: str) -> Path:
    place = sources.locate(name)
    if place.single or not (place.path / "config.json").is_file():
        raise ModelNotFoundError(f"{name} is no ControlNet's folder.", "Give the folder with config.json and weights.")
    sources.check_part(place.path)
    return place.path


def _own_ip_adapter(found: Description) -> Path:
    """The IP-Adapter in the model's folder or in the hub's cache. Raises ModelNotFoundError."""
    homes = [] if found.place.single else [found.place.path / "ip_adapter"]
    files = [file for home in homes for file in sorted(home.glob(f"*{sources.WEIGHTS}"))]
    cached = sources.cached(_IP_HOME)
    if cached:
        files.append(cached.joinpath(*_IP_NAMES["XL" in found.pipeline]))
    for file in files:
        if file.is_file():
            sources.shapes(file)
            return file
    raise ModelNotFoundError(
        "To follow a picture's style or subject, this model needs an IP-Adapter, and none is here.",
        f"Give one: --adapter IP_ADAPTER.safetensors, or run: imagewright models get {_IP_HOME}",
    )


def control_nets(addons: Addons, dtype: torch.dtype) -> list[Any]:
    """The ControlNets, opened. Raises ModelError."""
    nets = []
    for path, _ in addons.controls:
        kind = str(sources.read_json(path / "config.json").get("_class_name"))
        if "ControlNet" not in kind or not hasattr(diffusers, kind):
            raise ModelError(f"{path.name} holds a {kind}, which is no ControlNet.", "Give a ControlNet's folder.")
        with offline(), quiet(), _told(path):
            nets.append(
                getattr(diffusers, kind).from_pretrained(
                    str(path), dtype=dtype, use_safetensors=True, local_files_only=True
                )
            )
    return nets


@contextmanager
def worn(pipe: Any, addons: Addons, request: ImageRequest) -> Iterator[None]:
    """The pipeline with the LoRAs, the IP-Adapter and the learned words on, for the time of the block."""
    with offline(), quiet():
        try:
            _put_on_loras(pipe, addons.loras)
            for file in addons.embeddings:
                with _told(file):
                    _learn_word(pipe, file)
            if addons.ip_adapter:
                with _told(addons.ip_adapter):
                    _put_on_ip_adapter(pipe, addons.ip_adapter, request)
            yield
        finally:
            _take_off(pipe, addons)


def _put_on_loras(pipe: Any, loras: Sequence[Lora]) -> None:
    names = [f"lora{i}" for i in range(len(loras))]
    for name, lora in zip(names, loras, strict=True):
        with _told(lora.file):
            pipe.load_lora_weights(
                str(lora.file.parent), weight_name=lora.file.name, adapter_name=name, local_files_only=True
            )
            if not any(name in there for there in pipe.get_list_adapters().values()):
                raise ModelError(f"Nothing in {lora.file.name} fits this model.", "Use a LoRA made for its family.")
    if loras:
        pipe.set_adapters(names, [lora.weight for lora in loras])


def _learn_word(pipe: Any, file: Path) -> None:
    """A textual inversion. Its word is its file's name, or <name>, and what the file itself calls it."""
    tensors = load_file(file)
    pairs: list[tuple[Any, Any, tuple[str, ...]]] = [(pipe.tokenizer, pipe.text_encoder, ("clip_l", "emb_params"))]
    if getattr(pipe, "tokenizer_2", None) is not None:
        pairs.append((pipe.tokenizer_2, pipe.text_encoder_2, ("clip_g",)))
    for tokenizer, encoder, keys in pairs:
        width = encoder.get_input_embeddings().weight.shape[1]
        key = next((key for key in keys if key in tensors), None) or next(
            (key for key, value in tensors.items() if value.shape[-1] == width and key not in ("clip_l", "clip_g")),
            None,
        )
        if key is None or tensors[key].shape[-1] != width:
            raise RequestError(f"{file.name} was learned for another model.", "Use an embedding made for its family.")
        own = key if key not in ("clip_l", "clip_g", "emb_params") else file.stem
        vectors = tensors[key].reshape(-1, width)
        for word in dict.fromkeys((own, file.stem, f"<{file.stem}>")):
            pipe.load_textual_inversion({word: vectors}, token=word, tokenizer=tokenizer, text_encoder=encoder)


def _put_on_ip_adapter(pipe: Any, file: Path, request: ImageRequest) -> None:
    """One adapter, or two of the same where both a style and a subject are to be followed."""
    count = len(references(request))
    encoder = next(
        (f for f in (file.parent / "image_encoder", file.parent.parent / "image_encoder") if f.is_dir()), None
    )
    if encoder is None:
        raise ModelNotFoundError(f"{file.name} has no folder image_encoder beside it.", "Copy that folder as well.")
    sources.check_part(encoder)
    vision = CLIPVisionModelWithProjection.from_pretrained(
        str(encoder), dtype=pipe.dtype, use_safetensors=True, local_files_only=True
    )
    pipe.register_modules(image_encoder=vision)
    pipe.load_ip_adapter(
        [str(file.parent)] * count,
        subfolder=[""] * count,
        weight_name=[file.name] * count,
        image_encoder_folder=None,
        local_files_only=True,
    )
    scales: list[Any] = []
    if request.style_images:
        # SDXL keeps style in one attention block (arXiv 2404.02733); the others would copy the layout as well
        weight, large = request.style_weight, len(pipe.unet.config.up_block_types) == 3
        scales.append({"up": {"block_0": [0.0, weight, 0.0]}} if large else weight)
    if request.subject_images:
        scales.append(request.subject_weight)
    pipe.set_ip_adapter_scale(scales)


def references(request: ImageRequest) -> list[list[Any]]:
    """`ip_adapter_image`: the pictures of each adapter on, the style's first."""
    groups = [request.style_images, request.subject_images]
    return [[image.convert("RGB") for image in group] for group in groups if group]


def _take_off(pipe: Any, addons: Addons) -> None:
    if addons.loras:
        pipe.unload_lora_weights()
    if addons.embeddings:
        pipe.unload_textual_inversion()
        if getattr(pipe, "tokenizer_2", None) is not None:
            pipe.unload_textual_inversion(tokenizer=pipe.tokenizer_2, text_encoder=pipe.text_encoder_2)
    if addons.ip_adapter and pipe.unet.encoder_hid_proj is not None:
        pipe.unload_ip_adapter()


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Turns what the libraries say of a file into a ModelError that names it."""
    try:
        yield
    except ImagewrightError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{file.name} does not fit this model: {first_line(error)}", "Use one made for the model's family."
        ) from error
