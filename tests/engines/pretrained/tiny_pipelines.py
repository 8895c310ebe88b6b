"""Tiny random pipelines of diffusers' own classes, saved as real ones are; nothing is fetched."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers import UNet2DConditionModel as UNet
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

diffusers.utils.logging.disable_progress_bar()
LETTERS = string.ascii_lowercase + string.digits + string.punctuation
WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
BETAS = {
    "clip_sample": False,
    "timestep_spacing": "leading",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


def clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A tokenizer whose words are letters."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), pad_token=pad, model_max_length=77)
    tokenizer.save_pretrained(str(folder))
    return tokenizer


def t5_tokenizer() -> T5Tokenizer:
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5Tokenizer(vocab=words, extra_ids=0, model_max_length=512)


def clip_text(width: int = 64, projected: bool = False, activation: str = "quick_gelu") -> Any:
    config = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        max_position_embeddings=77,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=len(WORDS) - 2,
        eos_token_id=len(WORDS) - 1,
        pad_token_id=len(WORDS) - 1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5_text(width: int = 32) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(LETTERS) + 4,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()


def vae(
    channels: int = 4, scale: float = 0.18215, shift: float | None = None, quant: bool = True, attention: bool = True
) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        layers_per_block=1,
        norm_num_groups=32,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
        mid_block_add_attention=attention,
        sample_size=64,
    ).eval()


def unet(cross: int = 64, channels: int = 4, **more: Any) -> UNet:
    return UNet(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=cross,
        in_channels=channels,
        norm_num_groups=32,
        sample_size=32,
        **{"attention_head_dim": 8, **more},
    ).eval()


def pix2pix(home: Path) -> Path:
    """InstructPix2Pix in small: the picture to change comes with the latents."""
    return sd(home, "StableDiffusionInstructPix2PixPipeline", 8)


def inpainting(home: Path) -> Path:
    """A Stable Diffusion that was made to fill holes only."""
    return sd(home, "StableDiffusionInpaintPipeline", 9)


def sd(home: Path, kind: str = "StableDiffusionPipeline", channels: int = 4) -> Path:
    """Stable Diffusion 1 in small: 64x64 pixels."""
    torch.manual_seed(0)
    pipe = getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(home / "words"),
        unet=unet(channels=channels),
        scheduler=DDIMScheduler(**BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _saved(pipe, home / "sd")


def sdxl(home: Path) -> Path:
    """SDXL in small: 64x64 pixels."""
    torch.manual_seed(0)
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae(scale=0.13025),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(128, projected=True, activation="gelu"),
        tokenizer=clip_tokenizer(home / "words"),
        tokenizer_2=clip_tokenizer(home / "words2", "!"),
        unet=unet(
            192,
            attention_head_dim=(1, 1),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=6 * 256 + 128,
        ),
        scheduler=EulerDiscreteScheduler(**{k: v for k, v in BETAS.items() if k != "clip_sample"}),
    )
    return _saved(pipe, home / "sdxl")


def sd3(home: Path) -> Path:
    """SD3 in small, with its three text encoders."""
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=1,
        joint_attention_dim=192,
        caption_projection_dim=64,
        pooled_projection_dim=192,
        pos_embed_max_size=32,
        qk_norm="rms_norm",
    )
    small = clip_text(projected=True)
    small.text_projection.weight.data = torch.eye(64)  # as CLIP-L's is in single files
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(16, 1.5305, 0.0609, quant=False),
        text_encoder=small,
        tokenizer=clip_tokenizer(home / "words"),
        text_encoder_2=clip_text(128, projected=True, activation="gelu"),
        tokenizer_2=clip_tokenizer(home / "words2", "!"),
        text_encoder_3=t5_text(192),
        tokenizer_3=t5_tokenizer(),
    )
    return _saved(pipe, home / "sd3")


def flux(home: Path, kind: str = "FluxPipeline") -> Path:
    """FLUX in small, without guidance of its own, as schnell."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )
    pipe = getattr(diffusers, kind)(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae(4, 0.3611, 0.1159, quant=False, attention=False),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(home / "words"),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )
    return _saved(pipe, home / "flux")


def kontext(home: Path) -> Path:
    """FLUX that draws and edits."""
    return flux(home, "FluxKontextPipeline")


def pixart(home: Path) -> Path:
    """PixArt in small: a pipeline that nothing in the engine names."""
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        caption_channels=32,
        norm_type="ada_norm_single",
        attention_bias=True,
    )
    pipe = diffusers.PixArtSigmaPipeline(
        transformer=transformer,
        vae=vae(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
    )
    return _saved(pipe, home / "pixart")


def _saved(pipe: Any, folder: Path) -> Path:
    pipe.save_pretrained(str(folder), safe_serialization=True)
    return folder


def vision(folder: Path) -> Path:
    """The image encoder of an IP-Adapter."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    config.projection_dim = 24
    CLIPVisionModelWithProjection(config).save_pretrained(str(folder))
    return folder


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "sd": sd,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pix2pix": pix2pix,
    "inpainting": inpainting,
    "kontext": kontext,
    "pixart": pixart,
}
