"""Which class a config type builds, and configs to JSON and back. The only list of techniques."""

from __future__ import annotations

import dataclasses
from typing import Any

from imagewright.errors import ModelCorruptError
from imagewright.models.autoencoder import Autoencoder, AutoencoderConfig
from imagewright.models.consistency import Consistency, ConsistencyConfig
from imagewright.models.diffusion import Diffusion, DiffusionConfig
from imagewright.models.dit import DiTConfig
from imagewright.models.encoders import CodesConfig, LatentsConfig, PixelsConfig
from imagewright.models.gan import GAN, GANConfig
from imagewright.models.gpt import GPT, GPTConfig
from imagewright.models.hvae import HierarchicalVAE, HVAEConfig
from imagewright.models.judge import (
    AttributeJudge,
    AttributeJudgeConfig,
    EncoderJudge,
    EncoderJudgeConfig,
    MatchJudge,
    MatchJudgeConfig,
)
from imagewright.models.stylegan import StyleGAN, StyleGANConfig
from imagewright.models.technique import Technique
from imagewright.models.text import TextConfig
from imagewright.models.unet import UNetConfig
from imagewright.models.vae import VAE, VAEConfig
from imagewright.models.var import VAR, VARConfig
from imagewright.models.vqvae import PictureTokenizer, TokenizerConfig

TECHNIQUES: dict[type, type[Technique]] = {
    AttributeJudgeConfig: AttributeJudge,
    AutoencoderConfig: Autoencoder,
    ConsistencyConfig: Consistency,
    DiffusionConfig: Diffusion,
    EncoderJudgeConfig: EncoderJudge,
    GPTConfig: GPT,
    GANConfig: GAN,
    MatchJudgeConfig: MatchJudge,
    HVAEConfig: HierarchicalVAE,
    StyleGANConfig: StyleGAN,
    TokenizerConfig: PictureTokenizer,
    VARConfig: VAR,
    VAEConfig: VAE,
}
_CONFIGS = {
    config.__name__: config
    for config in (
        AttributeJudgeConfig,
        EncoderJudgeConfig,
        MatchJudgeConfig,
        AutoencoderConfig,
        ConsistencyConfig,
        DiffusionConfig,
        CodesConfig,
        DiTConfig,
        GPTConfig,
        GANConfig,
        HVAEConfig,
        LatentsConfig,
        PixelsConfig,
        StyleGANConfig,
        UNetConfig,
        TextConfig,
        TokenizerConfig,
        VARConfig,
        VAEConfig,
    )
}


def to_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON values; `type` names its class, also inside."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    nested = {k: to_dict(v) if dataclasses.is_dataclass(v) else v for k, v in values.items()}
    return {"type": type(config).__name__, **nested}


def from_dict(values: dict[str, Any]) -> Any:
    """The inverse of `to_dict`. Raises ModelCorruptError on an unknown type or field."""
    values = dict(values)
    name = values.pop("type", None)
    config = _CONFIGS.get(name)
    known = {f.name for f in dataclasses.fields(config)} if config else set()
    if config is None or not set(values) <= known:
        raise ModelCorruptError(
            f"The model's configuration {name!r} is of another version (unknown: {sorted(set(values) - known)}).",
            "Use the version of imagewright that made it.",
        )
    return config(**{k: _restore(v) for k, v in values.items()})


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """A `to_dict` of an older version with the fields added since, at their defaults; of another's type as it is."""
    return to_dict(from_dict(values)) if values.get("type") in _CONFIGS else values


def _restore(value: Any) -> Any:
    if isinstance(value, dict):
        return from_dict(value)
    return tuple(_restore(v) for v in value) if isinstance(value, list) else value


def build(config: Any) -> Technique:
    """The untrained model of a config, or of a config's `to_dict`."""
    config = from_dict(config) if isinstance(config, dict) else config
    return TECHNIQUES[type(config)](config)
