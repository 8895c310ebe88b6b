"""Feature spaces of others: Inception, DINOv2 and CLIP, from weights that lie in a local folder.

Nothing is ever fetched: the weights are files of the user, in IMAGEWRIGHT_METRICS/<name>/ (config.json and
model.safetensors, as their hubs publish them). They were trained on photographs and misjudge icons (for FID:
arXiv:2306.04675), so they never stand alone: an evaluation shows them beside our own judges.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from imagewright.errors import MissingExtraError, ModelNotFoundError, OptionError
from imagewright.evaluation.features import FeatureSpace
from imagewright.refine.judge import Bytes, Floats, over_grey

FOLDER_VARIABLE = "IMAGEWRIGHT_METRICS"
MEANS = {
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.481, 0.458, 0.408), (0.269, 0.261, 0.276)),
}
SIDES = {"inception": 299, "dinov2": 224, "clip": 224}


class Foreign:
    """A network of others as a FeatureSpace; `forward` maps (B, 3, H, W) tensors, normalised its way, to (B, D)."""

    def __init__(self, name: str, version: str, forward: Callable[[Any], Any]) -> None:
        self.name, self.version, self.forward = name, version, forward

    def embed(self, rgba: Bytes) -> Floats:
        """(N, S, S, 4) uint8, premultiplied RGBA -> features (N, D) of length 1."""
        import torch
        import torch.nn.functional as F

        side, (mean, deviation) = SIDES[self.name], MEANS[self.name]
        rgb = torch.from_numpy((over_grey(rgba) + 1) / 2)
        rgb = F.interpolate(rgb, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        normal = (rgb - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(deviation).view(3, 1, 1)
        with torch.no_grad():
            features: Floats = F.normalize(self.forward(normal).float(), dim=-1).numpy()
        return features


def _inception(folder: Path) -> Callable[[Any], Any]:
    import timm  # type: ignore[import-not-found,unused-ignore]

    model: Any = timm.create_model("inception_v3", num_classes=0, checkpoint_path=str(folder / "model.safetensors"))
    return model.eval()  # type: ignore[no-any-return]


def _dinov2(folder: Path) -> Callable[[Any], Any]:
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    return lambda rgb: model(pixel_values=rgb).last_hidden_state[:, 0]


def _clip(folder: Path) -> Callable[[Any], Any]:
    from transformers import CLIPVisionModelWithProjection

    model: Any = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    return lambda rgb: model.eval()(pixel_values=rgb).image_embeds


PLUGINS: dict[str, tuple[str, Callable[[Path], Callable[[Any], Any]]]] = {
    "inception": ("timm", _inception),
    "dinov2": ("transformers", _dinov2),
    "clip": ("transformers", _clip),
}


def load(name: str, folder: Path | None = None) -> FeatureSpace:
    """The feature space called `name`, from `folder` (default: IMAGEWRIGHT_METRICS/<name>).

    Raises OptionError for an unknown name, MissingExtraError without its package, ModelNotFoundError without weights.
    """
    if name not in PLUGINS:
        raise OptionError(f"There are no features {name!r}.", f"There are: {', '.join(PLUGINS)}.")
    package, opened = PLUGINS[name]
    if find_spec(package) is None or find_spec("torch") is None:
        raise MissingExtraError(f"The features {name}", "metrics")
    folder = folder or Path(os.environ.get(FOLDER_VARIABLE, ".")) / name
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ModelNotFoundError(
            f"There are no weights {weights}.", f"Put them there, or set {FOLDER_VARIABLE}; nothing is fetched."
        )
    return Foreign(name, _version(weights), opened(folder))


def _version(weights: Path) -> str:
    """The first digits of the sha256 of a file."""
    import hashlib

    with weights.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


assert set(SIDES) == set(MEANS) == set(PLUGINS)
