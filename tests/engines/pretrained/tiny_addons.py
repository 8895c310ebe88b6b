"""Tiny add-ons for the tiny pipelines: LoRA, ControlNet, IP-Adapter, learned words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ControlNetModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tiny_pipelines import vision


def lora(pipe_folder: Path, folder: Path, name: str = "lora.safetensors", strength: float = 0.5) -> Path:
    """A LoRA of rank 2 as peft makes it, saved as diffusers does."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(pipe_folder), local_files_only=True)
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    network = getattr(pipe, part)
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
    torch.manual_seed(1)
    for key, value in network.named_parameters():
        if "lora_" in key:
            value.data.normal_(std=strength)
    layers = {f"{part}_lora_layers": get_peft_model_state_dict(network)}
    type(pipe).save_lora_weights(str(folder), weight_name=name, safe_serialization=True, **layers)
    return folder / name


def control_net(pipe_folder: Path, folder: Path) -> Path:
    """A ControlNet made from the model's own U-Net, with its last layers away from zero."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(str(pipe_folder), subfolder="unet")
    # the tiny autoencoder halves a picture once, so its control is halved once
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32))
    torch.manual_seed(2)
    for key, value in net.named_parameters():
        if "controlnet_" in key:
            value.data.normal_(std=0.1)
    net.save_pretrained(str(folder))
    return folder


def ip_adapter(pipe_folder: Path, folder: Path) -> Path:
    """An IP-Adapter and its image encoder."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(str(pipe_folder), subfolder="unet")
    torch.manual_seed(3)
    cross = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * cross, 24),
        "image_proj.proj.bias": torch.zeros(4 * cross),
        "image_proj.norm.weight": torch.ones(cross),
        "image_proj.norm.bias": torch.zeros(cross),
    }
    layers: list[Any] = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    by_name = dict(unet.named_modules())
    for number, name in enumerate(names):
        width = by_name[name.removesuffix(".processor")].to_q.weight.shape[0]
        for kind in ("k", "v"):
            tensors[f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"] = torch.randn(width, cross)
    assert len(layers) == len(names)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "ip_adapter.safetensors"))
    vision(folder / "image_encoder")
    return folder / "ip_adapter.safetensors"


def learned_word(folder: Path, name: str = "foxart.safetensors", width: int = 64) -> Path:
    """A textual inversion of two vectors."""
    torch.manual_seed(4)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": torch.randn(2, width)}, str(folder / name))
    return folder / name
