"""Samplers by name, and what a model that was distilled to few steps wants.

The names are the usual ones; each is a scheduler class of diffusers with the model's own scheduler configuration
kept. Few-step models are known by what they say of themselves (a scheduler, a flag) or by their name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers

_KARRAS = {"use_karras_sigmas": True}
_TRAILING = {"timestep_spacing": "trailing"}

# name -> (scheduler class, what differs from the model's own configuration)
NOISE_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpm++-2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++-2m-karras": ("DPMSolverMultistepScheduler", _KARRAS),
    "dpm++-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++-2m-sde-karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **_KARRAS}),
    "dpm++-2s": ("DPMSolverSinglestepScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", _KARRAS),
    "euler-trailing": ("EulerDiscreteScheduler", _TRAILING),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "tcd": ("TCDScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
FLOW_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "euler-karras": ("FlowMatchEulerDiscreteScheduler", _KARRAS),
    "euler-stochastic": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
}


def table(scheduler: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The samplers that suit a model whose scheduler_config.json is `scheduler`; none where it is of its own kind."""
    name = str(scheduler.get("_class_name"))
    if name == "FlowMatchEulerDiscreteScheduler":
        return FLOW_SAMPLERS
    shared = getattr(getattr(diffusers, name, None), "_compatibles", ())  # those that share Stable Diffusion's settings
    return NOISE_SAMPLERS if "DDIMScheduler" in shared or name in ("LCMScheduler", "TCDScheduler") else {}


def replaced(scheduler: Any, name: str) -> Any:
    """The scheduler called `name`, with the configuration of the model's own one."""
    kind, changes = table({"_class_name": type(scheduler).__name__})[name]
    return getattr(diffusers, kind).from_config(scheduler.config, **changes)


@dataclass(frozen=True)
class FewSteps:
    """What a few-step model or LoRA wants: steps, guidance, and the sampler where its own is not right (LoRA)."""

    kind: str
    steps: int
    guidance: float
    sampler: str | None = None


# what a name has in it -> defaults; the first that fits counts
_BY_NAME = (
    (r"\blcm\b", FewSteps("LCM", 4, 1.0, "lcm")),
    (r"\blightning\b", FewSteps("Lightning", 4, 0.0, "euler-trailing")),
    (r"\bhyper (sd|flux)", FewSteps("Hyper", 8, 0.0, "tcd")),
    (r"\bturbo\b", FewSteps("Turbo", 4, 0.0, "euler-trailing")),
    (r"\bschnell\b", FewSteps("schnell", 4, 0.0)),
)
_STEPS = re.compile(r"(\d+) ?steps?\b")


@dataclass(frozen=True)
class Traits:
    """What of a pipeline's files tells few-step models apart."""

    pipeline: str
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, Any] = field(default_factory=dict)  # the config of its unet or transformer


def few_steps(name: str, traits: Traits) -> FewSteps | None:
    """What the model called `name` wants, or None where it is no few-step model."""
    if traits.network.get("time_cond_proj_dim") or traits.scheduler.get("_class_name") == "LCMScheduler":
        embedded = bool(traits.network.get("time_cond_proj_dim"))  # it was told its guidance while distilled
        return FewSteps("LCM", 4, 8.0 if embedded else 1.0)
    if "Flux" in traits.pipeline and traits.network.get("guidance_embeds") is False and "Flux2" not in traits.pipeline:
        return FewSteps("schnell", 4, 0.0)
    return by_name(name)


def by_name(name: str) -> FewSteps | None:
    """What the name of a model or LoRA says of its steps."""
    words = " ".join(re.split(r"[^a-z0-9]+", name.lower()))
    for pattern, found in _BY_NAME:
        if re.search(pattern, words):
            told = _STEPS.search(words)
            steps = int(told.group(1)) if told else found.steps
            return FewSteps(found.kind, max(1, min(steps, 50)), found.guidance, found.sampler)
    return None
