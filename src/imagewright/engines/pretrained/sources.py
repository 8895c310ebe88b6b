"""Where a pretrained model lies, and whether its files may be opened. Imports no torch; runs nothing.

A model is a folder in the layout of diffusers, one .safetensors file, or the id of a repository (ORG/NAME) whose copy
is in the hub's local cache. Only safetensors is read: pickles (.ckpt, .pt, .bin) are refused unopened, and a
pickle renamed .safetensors fails as a safetensors file. Components from modules other than diffusers and
transformers are refused: no code that comes with a model is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from imagewright.errors import ModelCorruptError, ModelError, ModelNotFoundError

INDEX = "model_index.json"
WEIGHTS = ".safetensors"
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")
_AGAIN = "Copy or download it again."

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Place:
    """A model on this disk: its folder or file, the name that a record may show, and the id that it came by."""

    path: Path
    name: str
    repository: str = ""

    @property
    def single(self) -> bool:
        """Whether it is one file."""
        return self.path.is_file()


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form ORG/NAME."""
    return bool(_HUB_ID.match(name))


def locate(name: str) -> Place:
    """The model called `name`. Raises ModelNotFoundError, and ModelError for a pickle."""
    path = Path(name)
    if path.is_dir():
        return Place(path, path.resolve().name)
    if path.is_file():
        refuse_pickle(path)
        return Place(path, path.stem)
    if is_hub_id(name):
        found = cached(name)
        if found is None:
            raise ModelNotFoundError(
                f"{name} is not here, and nothing is downloaded while pictures are made.",
                f"Run: imagewright models get {name}",
            )
        return Place(found, name, name)
    raise ModelNotFoundError(f"There is no model at {name!r}.", "Give a folder, a .safetensors file or ORG/NAME.")


def cached(repository: str) -> Path | None:
    """The folder of a repository in the hub's local cache, with what was fetched of it, or None.

    The client's own look-up refuses a repository of which only some files were fetched, as is usual.
    """
    from huggingface_hub import constants

    home = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    try:
        folder = home / "snapshots" / (home / "refs" / "main").read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return folder if folder.is_dir() else None


def refuse_pickle(path: Path) -> None:
    """Raises ModelError unless the file is called .safetensors."""
    if path.suffix.lower() != WEIGHTS:
        what = "can run code when it is opened" if path.suffix.lower() in PICKLES else "is of another format"
        raise ModelError(
            f"{path.name} {what}; only safetensors files are read.", "Get the model's .safetensors file or folder."
        )


def shapes(path: Path) -> Shapes:
    """The tensors of a safetensors file by name. Reads its header only. Raises ModelCorruptError, ModelError."""
    refuse_pickle(path)
    try:
        with safe_open(path, "np") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelCorruptError(f"{path.name} is not a whole safetensors file: {error}.", _AGAIN) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelCorruptError."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelCorruptError(f"{path.parent.name}/{path.name} cannot be read: {error}.", _AGAIN) from error
    if not isinstance(found, dict):
        raise ModelCorruptError(f"{path.parent.name}/{path.name} holds no object.", _AGAIN)
    return found


def read_index(folder: Path) -> dict[str, Any]:
    """A pipeline's model_index.json, its classes known. Raises ModelNotFoundError, ModelCorruptError, ModelError."""
    if not (folder / INDEX).is_file():
        raise ModelNotFoundError(
            f"{folder} holds no {INDEX}, so it is no pipeline's folder.",
            "Give the folder that has model_index.json, unet or transformer, vae and text_encoder in it.",
        )
    index = read_json(folder / INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise _foreign(folder, str(index.get("_class_name")))
    for name, (library, kind) in components(index).items():
        if not _known(library, kind):
            raise _foreign(folder, f"{name}: {library}.{kind}")
    return index


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The components that a model_index.json names: (library, class) by name. Raises ModelCorruptError."""
    found = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list):
            continue  # an option of the pipeline
        if len(value) != 2 or not re.fullmatch(r"\w+", name):
            raise ModelCorruptError(f"{INDEX} has a strange entry {name!r}.", _AGAIN)
        if value[0] is not None:
            found[name] = (str(value[0]), str(value[1]))
    return found


def _known(library: str, kind: str) -> bool:
    import diffusers
    import transformers

    home: Any = {"diffusers": diffusers, "transformers": transformers}.get(library)
    if home is None:
        home = getattr(diffusers.pipelines, library, None) if library.isidentifier() else None
    return home is not None and hasattr(home, kind)


def _foreign(folder: Path, what: str) -> ModelError:
    return ModelError(
        f"{folder.name} needs code that is not part of diffusers or transformers ({what}).",
        "imagewright runs no code that comes with a model: choose another model, or a newer diffusers.",
    )


def check_folder(folder: Path, index: Mapping[str, Any]) -> str | None:
    """Whether every component is there and whole; the variant of the weights' files to read (None: the plain one).

    Raises ModelCorruptError, ModelError.
    """
    variants: set[str | None] = set()
    for name, (library, kind) in components(index).items():
        if name == "safety_checker":
            continue  # never loaded
        part = folder / name
        if not part.is_dir():
            raise ModelCorruptError(f"The component {name} is missing in {folder.name}.", _AGAIN)
        if _has_weights(library, kind):
            variants.add(check_part(part))
    named = variants - {None}
    return next(iter(named)) if len(named) == 1 else None


def _has_weights(library: str, kind: str) -> bool:
    import diffusers
    import torch
    import transformers

    home = {"diffusers": diffusers, "transformers": transformers}.get(library)
    found = getattr(home or getattr(diffusers.pipelines, library), kind)
    return isinstance(found, type) and issubclass(found, torch.nn.Module)


def check_part(part: Path) -> str | None:
    """The variant of a component's weights; all must be whole safetensors. Raises ModelCorruptError, ModelError."""
    files = sorted(part.glob(f"*{WEIGHTS}"))
    if not files:
        pickles = [file.name for file in part.iterdir() if file.suffix in PICKLES]
        if pickles:
            raise ModelError(
                f"{part.name} has its weights only as {pickles[0]}, which can run code when it is opened.",
                "Get the model's safetensors files.",
            )
        raise ModelCorruptError(f"{part.name} has no weights.", _AGAIN)
    for listing in part.glob(f"*{WEIGHTS}.index*.json"):
        missing = set(map(str, read_json(listing).get("weight_map", {}).values())) - {file.name for file in files}
        if missing:
            raise ModelCorruptError(f"{part.name} lacks {sorted(missing)[0]}.", _AGAIN)
    for file in files:
        shapes(file)
    plain = [file for file in files if not _variant(file)]
    return None if plain else _variant(files[0])


def _variant(file: Path) -> str | None:
    """ "fp16" for diffusion_pytorch_model.fp16.safetensors and model.fp16-00001-of-00002.safetensors."""
    parts = re.sub(r"-\d{5}-of-\d{5}", "", file.name).split(".")
    return parts[-2] if len(parts) > 2 else None


def files(place: Place) -> Iterator[Path]:
    """The files that a model consists of: its weights and its JSON, in order."""
    if place.single:
        yield place.path
        return
    for path in sorted(place.path.rglob("*")):
        inner = path.relative_to(place.path)
        if path.suffix in (WEIGHTS, ".json") and not any(part.startswith(".") for part in inner.parts):
            yield path
