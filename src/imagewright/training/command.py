"""`imagewright train`: from a captioned folder and a preset's name to a trained run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from imagewright.data.loader import CaptionedFolder
from imagewright.errors import OptionError
from imagewright.models import registry
from imagewright.models.diffusion import Diffusion, DiffusionConfig
from imagewright.models.encoders import KLLatents, LatentsConfig
from imagewright.models.technique import Cond, Technique
from imagewright.models.text import load_pretrained
from imagewright.models.vae import Autoencoder
from imagewright.text import Tokenizer
from imagewright.training.checkpoint import load_model
from imagewright.training.config import TrainConfig, nearest
from imagewright.training.distributed import local_device
from imagewright.training.loop import Preview, TrainReport, train
from imagewright.training.presets import PRESETS, Preset
from imagewright.training.sources import LatentSource, PixelSource, cache_latents

PREVIEW_PROMPTS = (
    "red apple", "cat face", "dog", "rocket", "pizza", "house", "sunflower", "fire engine",
    "smiling face with sunglasses", "a blue cat", "three red apples", "a fox to the left of a tree",
)  # fmt: skip


def run(technique: str, data: Path, preset: str | None, out: Path, overrides: Mapping[str, str]) -> TrainReport:
    """Train `technique` on the folder `data` by a preset (default: cpu), in the run folder `out`.

    `overrides`: TrainConfig fields as text; with the prefix `autoencoder.` those of a latent model's first stage, with
    `model.` (or `network.`) those of the model's configuration. The same call goes on where it stopped.
    Raises OptionError on unknown names and values.
    """
    found = _preset(technique, preset or "cpu")
    scopes = _scopes(overrides)
    folder = CaptionedFolder(data)
    model = _changed(found.model, scopes["model"])
    if isinstance(model, DiffusionConfig):
        model = dataclasses.replace(model, network=_changed(model.network, scopes["network"]))
        if isinstance(model.encoder, LatentsConfig):
            autoencoder = _changed(model.encoder.autoencoder, scopes["autoencoder.model"])
            model = dataclasses.replace(model, encoder=LatentsConfig(autoencoder))
        return _train_diffusion(model, found, folder, out, scopes, preset or "cpu")
    source = PixelSource(folder, model.size, Tokenizer(), found.scenes_share)
    technique_ = _on_device(_seeded(model, found.train))
    return train(technique_, source, _changed(found.train, scopes[""]), out, preview=_reconstructions(source))


def _train_diffusion(
    model: DiffusionConfig,
    found: Preset,
    folder: CaptionedFolder,
    out: Path,
    scopes: Mapping[str, Any],
    preset: str,
) -> TrainReport:
    config = _changed(found.train, scopes[""])
    tokenizer = Tokenizer()
    technique = _seeded(model, config)
    assert isinstance(technique, Diffusion)
    technique.text.load_state_dict(load_pretrained().state_dict())
    _on_device(technique)
    size = technique.pixels
    if isinstance(technique.encoder, KLLatents):
        stage = out / "autoencoder"
        overrides = {f"model.{k}": v for k, v in scopes["autoencoder.model"].items()} | scopes["autoencoder"]
        report = run("autoencoder", folder.path, preset, stage, overrides)
        if report.reason == "interrupted":
            return report
        technique.encoder.autoencoder.load_state_dict(load_model(stage).state_dict())
        cache = cache_latents(technique.encoder, folder, size, out)
        source: PixelSource = LatentSource(folder, size, tokenizer, cache, found.scenes_share)
    else:
        source = PixelSource(folder, size, tokenizer, found.scenes_share)
    return train(technique, source, config, out, preview=_prompts(source))


def _preset(technique: str, name: str) -> Preset:
    for word, table in ((technique, PRESETS), (name, PRESETS.get(technique, {}))):
        if word not in table:
            raise OptionError(f"There is no technique or preset {word!r}.", nearest(word, table))
    return PRESETS[technique][name]


def _scopes(overrides: Mapping[str, str]) -> dict[str, dict[str, str]]:
    scopes: dict[str, dict[str, str]] = {
        "": {},
        "model": {},
        "network": {},
        "autoencoder": {},
        "autoencoder.model": {},
    }
    for key, value in overrides.items():
        scope, _, name = key.rpartition(".")
        if scope not in scopes:
            raise OptionError(f"Unknown option {key!r}.", nearest(scope, filter(None, scopes)))
        scopes[scope][name] = value
    return scopes


def _changed(config: Any, changes: Mapping[str, str]) -> Any:
    """`config` with fields replaced by values read from text by the type of the present value."""
    fields = {f.name for f in dataclasses.fields(config)}
    values: dict[str, Any] = {}
    for name, text in changes.items():
        if name not in fields:
            raise OptionError(f"Unknown option {name!r}.", nearest(name, fields))
        values[name] = _read(name, text, getattr(config, name))
    return dataclasses.replace(config, **values)


def _read(name: str, text: str, present: Any) -> Any:
    try:
        if isinstance(present, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(present, tuple):
            return tuple(_read(name, part, present[0]) for part in text.split(","))
        return type(present)(text) if present is not None else float(text)
    except (KeyError, ValueError) as error:
        raise OptionError(f"Cannot read {name}={text!r}.", f"Write it like {present!r}.") from error


def _seeded(model: Any, config: TrainConfig) -> Technique:
    torch.manual_seed(config.seed)
    return registry.build(model)


def _on_device(technique: Technique) -> Technique:
    return technique.to(local_device())


def _reconstructions(source: PixelSource) -> Preview:
    batch = source.heldout(0, 32, 0) or source.batch(0, 0, 0, 32, 32)

    def preview(technique: Technique, step: int, path: Path) -> None:
        assert isinstance(technique, Autoencoder) and batch.pixels is not None
        pixels = batch.pixels.to(next(technique.parameters()).device)
        both = torch.stack([pixels, technique.reconstruct(pixels).float()], dim=1).flatten(0, 1)
        grid(both.cpu(), 8).save(path)

    return preview


def _prompts(source: PixelSource) -> Preview:
    """Fixed prompts, once in no particular style and once in the data's styles by turns."""
    styles = list(source.styles.values()) or [0]
    cond = Cond(PREVIEW_PROMPTS * 2, [0] * len(PREVIEW_PROMPTS) + list(islice(cycle(styles), len(PREVIEW_PROMPTS))))

    def preview(technique: Technique, step: int, path: Path) -> None:
        pictures = technique.sample(cond, seeds=[0] * len(cond.prompts))
        grid(pictures.cpu(), len(PREVIEW_PROMPTS)).save(path)

    return preview


def grid(pictures: torch.Tensor, columns: int) -> Image.Image:
    """Pictures (B, 4, H, W), premultiplied RGBA in [-1, 1], side by side on white."""
    rgba = (pictures.clamp(-1, 1) + 1) / 2
    rgb = rgba[:, :3] + (1 - rgba[:, 3:])  # (B, 3, H, W)
    B, _, H, W = rgb.shape
    rows = -(-B // columns)
    sheet = torch.ones(3, rows * H, columns * W)
    for i, picture in enumerate(rgb):
        y, x = divmod(i, columns)
        sheet[:, y * H : (y + 1) * H, x * W : (x + 1) * W] = picture
    return Image.fromarray((sheet.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy())
