"""Configurations read off the tensors of a single file, against the real models' widths, with fewer of their layers.

The networks are on the meta device, which holds shapes and no numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from single_files import clip_tensors, joint_tensors, open_clip_tensors, unet_tensors, vae_tensors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from imagewright.engines.pretrained import layouts

BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 1,
}
SD1 = {**BLOCKS, "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SD2 = {
    **BLOCKS,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "sample_size": 96,
}
SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 1,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
}
SMALL = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 12}
LARGE = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 3, "num_attention_heads": 20}


def clip(projected: bool, **config: Any) -> Any:
    made = CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, projection_dim=config["hidden_size"], **config)
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(made)


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def read(name: str, tensors: dict[str, torch.Tensor]) -> layouts.Layout:
    return layouts.read(Path(name), shapes(tensors))


def check(layout: layouts.Layout, part: str, model: Any, told: dict[str, Any]) -> None:
    """The configuration gives a network of the same shapes, and says all of `told`."""
    config = layout.parts[part][2]
    assert config is not None
    assert {key: config[key] for key in told} == {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}
    if hasattr(type(model), "from_config"):
        again = type(model).from_config(config)
        assert shapes(again.state_dict()) == shapes(model.state_dict())


@pytest.mark.parametrize(("unet", "family"), [(SD1, "sd1"), (SD2, "sd2"), (SDXL, "sdxl")])
def test_stable_diffusion(unet: dict[str, Any], family: str) -> None:
    with torch.device("meta"):
        network, vae = UNet2DConditionModel(**unet), AutoencoderKL(**VAE)
        small, large = clip(False, **SMALL), clip(True, **LARGE)
        tensors = {**unet_tensors(network), **vae_tensors(vae)}
        if family == "sdxl":
            tensors |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in clip_tensors(small).items()}
            tensors |= {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip_tensors(large).items()}
        elif family == "sd2":
            tensors |= {f"cond_stage_model.model.{k}": v for k, v in open_clip_tensors(large).items()}
        else:
            tensors |= {f"cond_stage_model.transformer.{k}": v for k, v in clip_tensors(small).items()}
        found = read("model.safetensors", tensors)
        assert found.family == family
        depths = ("transformer_layers_per_block", "sample_size")  # of a level without attention it says nothing
        check(
            found,
            "unet",
            network,
            {k: v for k, v in unet.items() if k not in depths} | {"sample_size": unet["sample_size"]},
        )
        check(found, "vae", vae, VAE)
    if family == "sdxl":
        check(found, "text_encoder", small, {**SMALL, "hidden_act": "quick_gelu"})
        check(found, "text_encoder_2", large, {**LARGE, "hidden_act": "gelu", "projection_dim": 1280})
        assert found.parts["vae"][2]["scaling_factor"] == 0.13025  # type: ignore[index]
    predicted = found.parts["scheduler"][2]["prediction_type"]  # type: ignore[index]
    assert predicted == ("v_prediction" if family == "sd2" else "epsilon")


def test_sd3() -> None:
    config = {
        "num_layers": 24,
        "num_attention_heads": 24,
        "attention_head_dim": 64,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "in_channels": 16,
        "out_channels": 16,
        "patch_size": 2,
        "pos_embed_max_size": 192,
        "sample_size": 128,
        "qk_norm": "rms_norm",
    }
    transformer = SD3Transformer2DModel(**{**config, "num_layers": 2, "pos_embed_max_size": 4})
    with torch.device("meta"):
        bare = joint_tensors(transformer)
        vae = AutoencoderKL(**{**VAE, "latent_channels": 16}, use_quant_conv=False, use_post_quant_conv=False)
        parts = {k.replace("first_stage_model.", "vae."): v for k, v in vae_tensors(vae).items()}
        found = read("sd3.safetensors", {**{f"model.diffusion_model.{k}": v for k, v in bare.items()}, **parts})
        told = {**config, "num_layers": 2, "pos_embed_max_size": 4}
        check(found, "transformer", transformer, told)
        check(found, "vae", vae, {"latent_channels": 16, "use_quant_conv": False, "shift_factor": 0.0609})
    assert found.parts["text_encoder"][2] is None  # the file holds none


def test_an_inpainting_and_an_editing_file_are_told_by_their_inputs() -> None:
    for channels, pipeline in ((9, "StableDiffusionInpaintPipeline"), (8, "StableDiffusionInstructPix2PixPipeline")):
        unet = tiny_pipelines.unet(channels=channels)
        assert read("model.safetensors", unet_tensors(unet)).pipeline == pipeline
