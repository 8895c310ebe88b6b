"""What a single-file checkpoint holds: the configurations of its networks, read off the shapes of its tensors.

Single files come without configurations, and fetching them needs a network. For Stable Diffusion 1 and 2, SDXL,
SD3 and FLUX the shapes tell nearly all; the rest (numbers of heads, scaling factors, the schedule) is the same in
every model of a family. Imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagewright.engines.pretrained.sources import Shapes
from imagewright.errors import ModelCorruptError, ModelError

Config = dict[str, Any]

_UNET = "model.diffusion_model."
_HEAD = 64  # width of an attention head in all but SD 1
_NOISE: Config = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Layout:
    """A pipeline class, its components (library, class, configuration), and options of the pipeline itself.

    A configuration is None where the file does not hold the component, or it is a tokenizer.
    """

    family: str
    pipeline: str
    parts: dict[str, tuple[str, str, Config | None]]
    options: Config

    def index(self) -> Config:
        """The model_index.json of the same model as a folder."""
        return {
            "_class_name": self.pipeline,
            **{name: [library, kind] for name, (library, kind, _) in self.parts.items()},
            **self.options,
        }


def read(path: Path, tensors: Shapes) -> Layout:
    """The layout of a checkpoint. Raises ModelError where it is of no family known here, and ModelCorruptError."""
    found = _family(tensors)
    if found is None:
        raise ModelError(
            f"{path.name} is no checkpoint of Stable Diffusion, SDXL, SD3 or FLUX (a LoRA or a part, perhaps).",
            "Give the model's folder in the layout of diffusers; a LoRA belongs to --adapter.",
        )
    try:
        return found(path, tensors)
    except (LookupError, ValueError, TypeError) as error:
        raise ModelCorruptError(
            f"{path.name} lacks tensors of its networks ({error}).", "Download it again."
        ) from error


def _family(tensors: Shapes) -> Callable[[Path, Shapes], Layout] | None:
    bare = {key.removeprefix(_UNET) for key in tensors}
    if "joint_blocks.0.context_block.adaLN_modulation.1.bias" in bare:
        return _sd3
    if "double_blocks.0.img_attn.norm.key_norm.scale" in bare and "img_in.weight" in bare:
        return _flux
    if f"{_UNET}input_blocks.0.0.weight" not in tensors:
        return None
    if any(key.startswith("conditioner.embedders.") for key in tensors):
        return _sdxl
    return _sd


def _sd(path: Path, tensors: Shapes) -> Layout:
    unet = _unet(tensors)
    second = any(key.startswith("cond_stage_model.model.") for key in tensors)  # SD 2 has OpenCLIP's text encoder
    base = not second or "base" in path.stem.lower() or unet["in_channels"] != 4
    unet["sample_size"] = 64 if base else 96
    scheduler = {**_NOISE, "prediction_type": "epsilon" if base else "v_prediction", "set_alpha_to_one": False}
    pipelines = {8: "StableDiffusionInstructPix2PixPipeline", 9: "StableDiffusionInpaintPipeline"}
    text = _open_clip(tensors, "cond_stage_model.model.") if second else _clip(tensors, "cond_stage_model.transformer.")
    return Layout(
        "sd2" if second else "sd1",
        pipelines.get(unet["in_channels"], "StableDiffusionPipeline"),
        {
            "scheduler": ("diffusers", "DDIMScheduler", scheduler),
            "text_encoder": ("transformers", "CLIPTextModel", text),
            "tokenizer": ("transformers", "CLIPTokenizer", None),
            "unet": ("diffusers", "UNet2DConditionModel", unet),
            "vae": ("diffusers", "AutoencoderKL", _vae(tensors, 0.18215)),
        },
        {"requires_safety_checker": False},
    )


def _sdxl(path: Path, tensors: Shapes) -> Layout:
    unet = {**_unet(tensors), "sample_size": 128}
    predicted = "v_prediction" if "v_pred" in tensors else "epsilon"
    scheduler = {**_NOISE, "prediction_type": predicted, "rescale_betas_zero_snr": "ztsnr" in tensors}
    refiner = "conditioner.embedders.0.model.text_projection" in tensors
    large = "conditioner.embedders.0.model." if refiner else "conditioner.embedders.1.model."
    parts: dict[str, tuple[str, str, Config | None]] = {
        "scheduler": ("diffusers", "EulerDiscreteScheduler", scheduler),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection", _open_clip(tensors, large)),
        "tokenizer_2": ("transformers", "CLIPTokenizer", None),
        "unet": ("diffusers", "UNet2DConditionModel", unet),
        "vae": ("diffusers", "AutoencoderKL", _vae(tensors, 0.13025)),
    }
    if refiner:
        options = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
        return Layout("sdxl", "StableDiffusionXLImg2ImgPipeline", parts, options)
    small = _clip(tensors, "conditioner.embedders.0.transformer.")
    parts["text_encoder"] = ("transformers", "CLIPTextModel", small)
    parts["tokenizer"] = ("transformers", "CLIPTokenizer", None)
    pipeline = "StableDiffusionXLInpaintPipeline" if unet["in_channels"] == 9 else "StableDiffusionXLPipeline"
    return Layout("sdxl", pipeline, parts, {"force_zeros_for_empty_prompt": True})


def _sd3(path: Path, tensors: Shapes) -> Layout:
    bare = _without(tensors, _UNET)
    width, context = bare["context_embedder.weight"]
    inputs = bare["x_embedder.proj.weight"]  # (width, channels, patch, patch)
    count = _count(bare, r"joint_blocks\.(\d+)\.")
    dual = [i for i in range(count) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in bare]
    transformer = {
        "num_layers": count,
        "num_attention_heads": width // _HEAD,
        "attention_head_dim": _HEAD,
        "caption_projection_dim": width,
        "joint_attention_dim": context,
        "pooled_projection_dim": bare["y_embedder.mlp.0.weight"][1],
        "in_channels": inputs[1],
        "out_channels": bare["final_layer.linear.weight"][0] // inputs[2] ** 2,
        "patch_size": inputs[2],
        "pos_embed_max_size": math.isqrt(bare["pos_embed"][1]),
        "qk_norm": "rms_norm" if any(".ln_q." in key for key in bare) else None,
        "dual_attention_layers": dual,
        "sample_size": 128,
    }
    parts: dict[str, tuple[str, str, Config | None]] = {
        "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        "transformer": ("diffusers", "SD3Transformer2DModel", transformer),
        "vae": ("diffusers", "AutoencoderKL", _vae(tensors, 1.5305, 0.0609)),
    }
    for number, name in (("", "clip_l"), ("_2", "clip_g")):
        text = _clip(tensors, f"text_encoders.{name}.transformer.", plain=name == "clip_g")
        parts[f"text_encoder{number}"] = ("transformers", "CLIPTextModelWithProjection", text)
        parts[f"tokenizer{number}"] = ("transformers", "CLIPTokenizer", None)
    parts["text_encoder_3"] = ("transformers", "T5EncoderModel", _t5(tensors))
    parts["tokenizer_3"] = ("transformers", "T5Tokenizer", None)
    return Layout("sd3", "StableDiffusion3Pipeline", parts, {})


def _flux(path: Path, tensors: Shapes) -> Layout:
    bare = _without(tensors, _UNET)
    width, inputs = bare["img_in.weight"]
    guided = "guidance_in.in_layer.bias" in bare
    transformer = {
        "num_layers": _count(bare, r"double_blocks\.(\d+)\."),
        "num_single_layers": _count(bare, r"single_blocks\.(\d+)\."),
        "num_attention_heads": width // 128,
        "attention_head_dim": 128,
        "joint_attention_dim": bare["txt_in.weight"][1],
        "pooled_projection_dim": bare["vector_in.in_layer.weight"][1],
        "in_channels": inputs,
        "out_channels": bare["final_layer.linear.weight"][0],
        "guidance_embeds": guided,
    }
    shift = {"use_dynamic_shifting": True, "shift": 3.0} if guided else {"use_dynamic_shifting": False, "shift": 1.0}
    scheduler = {**shift, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    text = _clip(tensors, "text_encoders.clip_l.transformer.")
    pipelines = {384: "FluxFillPipeline", 128: "FluxControlPipeline"}
    named = "FluxKontextPipeline" if "kontext" in path.stem.lower() else "FluxPipeline"
    return Layout(
        "flux",
        pipelines.get(inputs, named),
        {
            "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler", scheduler),
            "text_encoder": ("transformers", "CLIPTextModel", text),
            "text_encoder_2": ("transformers", "T5EncoderModel", _t5(tensors)),
            "tokenizer": ("transformers", "CLIPTokenizer", None),
            "tokenizer_2": ("transformers", "T5Tokenizer", None),
            "transformer": ("diffusers", "FluxTransformer2DModel", transformer),
            "vae": ("diffusers", "AutoencoderKL", _vae(tensors, 0.3611, 0.1159)),
        },
        {},
    )


def _unet(tensors: Shapes) -> Config:
    """The U-Net of Stable Diffusion: walk its input blocks; a downsampling closes a level."""
    bare = {key.removeprefix(_UNET): shape for key, shape in tensors.items() if key.startswith(_UNET)}
    levels: list[list[tuple[int, int]]] = [[]]  # of each residual block: channels, transformer layers
    for block in range(1, _count(bare, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{block}.0.op.weight" in bare:
            levels.append([])
            continue
        channels = bare[f"input_blocks.{block}.0.in_layers.2.weight"][0]
        levels[-1].append((channels, _count(bare, rf"input_blocks\.{block}\.1\.transformer_blocks\.(\d+)\.")))
    middle = _count(bare, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    widths = [level[0][0] for level in levels]
    depths = [max(depth for _, depth in level) for level in levels]
    linear = len(bare["middle_block.1.proj_in.weight"]) == 2
    config: Config = {
        "in_channels": bare["input_blocks.0.0.weight"][1],
        "out_channels": bare["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [*(max(1, depth) for depth in depths[:-1]), middle],
        "cross_attention_dim": bare["middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": [max(1, width // _HEAD) for width in widths] if linear else 8,
        "use_linear_projection": linear,
        "norm_num_groups": min(32, widths[0]),
    }
    if "label_emb.0.0.weight" in bare:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": bare["label_emb.0.0.weight"][1],
        }
    return config


def _vae(tensors: Shapes, scale: float, shift: float | None = None) -> Config | None:
    prefix = next((p for p in ("first_stage_model.", "vae.") if f"{p}decoder.conv_in.weight" in tensors), None)
    if prefix is None:
        return None
    bare = {key.removeprefix(prefix): shape for key, shape in tensors.items() if key.startswith(prefix)}
    count = _count(bare, r"encoder\.down\.(\d+)\.")
    widths = [bare[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(count)]
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "latent_channels": bare["decoder.conv_in.weight"][1],
        "layers_per_block": _count(bare, r"encoder\.down\.0\.block\.(\d+)\."),
        "norm_num_groups": min(32, widths[0]),
        "scaling_factor": scale,
        "shift_factor": shift,
        "use_quant_conv": "quant_conv.weight" in bare,
        "use_post_quant_conv": "post_quant_conv.weight" in bare,
    }


def _clip(tensors: Shapes, prefix: str, plain: bool = False) -> Config | None:
    """A CLIP text encoder in the naming of transformers; `plain`: OpenCLIP's activation."""
    bare = _without(tensors, f"{prefix}text_model.")
    if "embeddings.token_embedding.weight" not in bare:
        return None
    inner = bare["encoder.layers.0.mlp.fc1.weight"][0]
    layers = _count(bare, r"encoder\.layers\.(\d+)\.")
    projected = tensors.get(f"{prefix}text_projection.weight", (0,))[0]
    return _clip_config(
        bare["embeddings.token_embedding.weight"],
        bare["embeddings.position_embedding.weight"][0],
        inner,
        layers,
        "gelu" if plain else "quick_gelu",
        projected,
    )


def _open_clip(tensors: Shapes, prefix: str) -> Config | None:
    """A text encoder in the naming of OpenCLIP. Stable Diffusion 2 reads the last layer but one, so has one less."""
    bare = _without(tensors, prefix)
    if "token_embedding.weight" not in bare:
        return None
    layers = _count(bare, r"transformer\.resblocks\.(\d+)\.")
    if prefix.startswith("cond_stage_model"):
        layers = min(layers, 23)
    inner = bare["transformer.resblocks.0.mlp.c_fc.weight"][0]
    projected = bare.get("text_projection", (0, 0))[1]
    return _clip_config(
        bare["token_embedding.weight"], bare["positional_embedding"][0], inner, layers, "gelu", projected
    )


def _clip_config(
    embedding: tuple[int, ...], positions: int, inner: int, layers: int, activation: str, projected: int
) -> Config:
    words, width = embedding
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // _HEAD),
        "max_position_embeddings": positions,
        "hidden_act": activation,
        "projection_dim": projected or width,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
    }


def _t5(tensors: Shapes) -> Config | None:
    bare = _without(tensors, "text_encoders.t5xxl.transformer.")
    if "shared.weight" not in bare:
        return None
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = bare[f"{attention}.relative_attention_bias.weight"]
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "vocab_size": bare["shared.weight"][0],
        "d_model": bare["shared.weight"][1],
        "d_ff": bare["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "d_kv": bare[f"{attention}.q.weight"][0] // heads,
        "num_heads": heads,
        "num_layers": _count(bare, r"encoder\.block\.(\d+)\."),
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": True,
        "is_encoder_decoder": False,
    }


def _without(tensors: Shapes, prefix: str) -> Shapes:
    """The tensors below `prefix`, without it; all of them as they are where none has it."""
    found = {key.removeprefix(prefix): shape for key, shape in tensors.items() if key.startswith(prefix)}
    return found if found or not prefix.startswith(_UNET) else tensors


def _count(tensors: Shapes, pattern: str) -> int:
    """One more than the highest number that `pattern` finds at the start of a name."""
    found = re.compile(pattern)
    return 1 + max((int(match.group(1)) for key in tensors if (match := found.match(key))), default=-1)
