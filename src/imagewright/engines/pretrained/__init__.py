"""Open weights (Stable Diffusion, SDXL, SD3, FLUX and what else diffusers runs) as one engine.

The name below is loaded on first use, so that the modules here that need no torch can be had without it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["PretrainedEngine"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from imagewright.engines.pretrained.engine import PretrainedEngine

        return PretrainedEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
