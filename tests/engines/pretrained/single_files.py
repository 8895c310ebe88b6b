"""Writes a tiny pipeline as the single files that its original authors published: names and layouts turned back."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def write(folder: Path, family: str, file: Path) -> Path:
    """The pipeline in `folder` as one file."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    tensors = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3}[family](pipe)
    save_file({name: value.contiguous() for name, value in tensors.items()}, str(file))
    return file


def words_beside(folder: Path, file: Path) -> None:
    """The tokenizers, in a folder of the file's name beside it, as no single file has them."""
    for part in folder.glob("tokenizer*"):
        shutil.copytree(part, file.with_suffix("") / part.name)


def _sd(pipe: Any) -> Tensors:
    text = {f"cond_stage_model.transformer.{k}": v for k, v in clip_tensors(pipe.text_encoder).items()}
    return {**unet_tensors(pipe.unet), **vae_tensors(pipe.vae), **text}


def _sdxl(pipe: Any) -> Tensors:
    small = {f"conditioner.embedders.0.transformer.{k}": v for k, v in clip_tensors(pipe.text_encoder).items()}
    large = {f"conditioner.embedders.1.model.{k}": v for k, v in open_clip_tensors(pipe.text_encoder_2).items()}
    return {**unet_tensors(pipe.unet), **vae_tensors(pipe.vae), **small, **large}


def _sd3(pipe: Any) -> Tensors:
    tensors = {f"model.diffusion_model.{k}": v for k, v in joint_tensors(pipe.transformer).items()}
    tensors |= {k.replace("first_stage_model.", "vae."): v for k, v in vae_tensors(pipe.vae).items()}
    for name, part in (("clip_l", pipe.text_encoder), ("clip_g", pipe.text_encoder_2)):
        tensors |= {f"text_encoders.{name}.transformer.{k}": v for k, v in clip_tensors(part).items()}
    t5 = {k: v for k, v in pipe.text_encoder_3.state_dict().items() if k != "encoder.embed_tokens.weight"}
    return {**tensors, **{f"text_encoders.t5xxl.transformer.{k}": v for k, v in t5.items()}}


def clip_tensors(encoder: Any) -> Tensors:
    found = {}
    for key, value in encoder.state_dict().items():
        prefixed = key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"
        found[prefixed] = value
    return found


def open_clip_tensors(encoder: Any) -> Tensors:
    bare = {key.removeprefix("text_model."): value for key, value in encoder.state_dict().items()}
    found = {
        "token_embedding.weight": bare["embeddings.token_embedding.weight"],
        "positional_embedding": bare["embeddings.position_embedding.weight"],
        "ln_final.weight": bare["final_layer_norm.weight"],
        "ln_final.bias": bare["final_layer_norm.bias"],
        "text_projection": bare["text_projection.weight"].T,
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
    for number in range(encoder.config.num_hidden_layers):
        old, new = f"encoder.layers.{number}.", f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            for theirs, ours in names.items():
                found[f"{new}{ours}.{kind}"] = bare[f"{old}{theirs}.{kind}"]
            joined = [bare[f"{old}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            found[f"{new}attn.in_proj_{kind}"] = torch.cat(joined)
    return found


RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
          "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip


def unet_tensors(unet: Any) -> Tensors:
    """The U-Net in the names of the latent-diffusion code."""
    each = unet.config.layers_per_block
    found = {}
    for key, value in unet.state_dict().items():
        name = key
        for ours, theirs in ENDS.items():
            if key.startswith(f"{ours}."):
                name = key.replace(ours, theirs, 1)
        if match := re.match(
            r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key
        ):
            side, level, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
            if side == "down":
                block = 1 + level * (each + 1) + (each if kind == "downsamplers" else layer)
            else:
                block = level * (each + 1) + (each if kind == "upsamplers" else layer)
            has_attention = f"{side}_blocks.{level}.attentions.0.norm.weight" in unet.state_dict()
            place = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2 if has_attention else 1}[kind]
            rest = rest.replace("conv.", "op.") if kind == "downsamplers" else rest
            name = f"{'input' if side == 'down' else 'output'}_blocks.{block}.{place}.{rest}"
        elif match := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
            name = f"middle_block.{1 if match[1] == 'attentions' else 2 * int(match[2])}.{match[3]}"
        if ".resnets." in key:
            head, part, tail = re.match(
                r"(.*?)(norm1|conv1|time_emb_proj|norm2|conv2|conv_shortcut)(.*)", name
            ).groups()  # type: ignore[union-attr]
            name = head + RESNET[part] + tail
        found[f"model.diffusion_model.{name}"] = value
    return found


def vae_tensors(vae: Any) -> Tensors:
    """The autoencoder in the names of the latent-diffusion code."""
    levels = len(vae.config.block_out_channels)
    found = {}
    for key, value in vae.state_dict().items():
        name = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        for kind, new in (("resnets.", "block."), ("upsamplers.0", "upsample")):
            name = re.sub(
                rf"up_blocks\.(\d+)\.{re.escape(kind)}", lambda m, new=new: f"up.{levels - 1 - int(m[1])}.{new}", name
            )
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0." in name:
            name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm")
            for ours, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
                name = name.replace(f".{ours}.", f".{theirs}.")
            value = value[:, :, None, None] if value.ndim == 2 else value  # these were convolutions
        found[f"first_stage_model.{name}"] = value
    return found


def joint_tensors(transformer: Any) -> Tensors:
    """SD3's transformer in the names of its authors."""
    ours = transformer.state_dict()
    found = {
        "pos_embed": ours["pos_embed.pos_embed"],
        "final_layer.adaLN_modulation.1.weight": _swapped(ours["norm_out.linear.weight"]),
        "final_layer.adaLN_modulation.1.bias": _swapped(ours["norm_out.linear.bias"]),
    }
    pairs = {"pos_embed.proj": "x_embedder.proj", "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
             "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2", "proj_out": "final_layer.linear",
             "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0", "context_embedder": "context_embedder",
             "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2"}  # fmt: skip
    count = transformer.config.num_layers
    for number in range(count):
        old, new = f"transformer_blocks.{number}.", f"joint_blocks.{number}."
        last = number == count - 1
        pairs |= {f"{old}norm1.linear": f"{new}x_block.adaLN_modulation.1",
                  f"{old}attn.to_out.0": f"{new}x_block.attn.proj",
                  f"{old}ff.net.0.proj": f"{new}x_block.mlp.fc1",
                  f"{old}ff.net.2": f"{new}x_block.mlp.fc2"}  # fmt: skip
        if not last:
            pairs |= {f"{old}norm1_context.linear": f"{new}context_block.adaLN_modulation.1",
                      f"{old}attn.to_add_out": f"{new}context_block.attn.proj",
                      f"{old}ff_context.net.0.proj": f"{new}context_block.mlp.fc1",
                      f"{old}ff_context.net.2": f"{new}context_block.mlp.fc2"}  # fmt: skip
        for kind in ("weight", "bias"):
            for block, names in (("x_block", "to_q to_k to_v"), ("context_block", "add_q_proj add_k_proj add_v_proj")):
                found[f"{new}{block}.attn.qkv.{kind}"] = torch.cat(
                    [ours[f"{old}attn.{n}.{kind}"] for n in names.split()]
                )
            if last:
                key = f"{new}context_block.adaLN_modulation.1.{kind}"
                found[key] = _swapped(ours[f"{old}norm1_context.linear.{kind}"])
        for block, infix in (("x_block", ""), ("context_block", "added_")):
            for letter in "qk":
                found[f"{new}{block}.attn.ln_{letter}.weight"] = ours[f"{old}attn.norm_{infix}{letter}.weight"]
    found |= {f"{new}.{kind}": ours[f"{old}.{kind}"] for old, new in pairs.items() for kind in ("weight", "bias")}
    return found


def _swapped(value: Tensor) -> Tensor:
    return torch.cat(list(reversed(value.chunk(2))))
