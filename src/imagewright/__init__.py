"""imagewright makes images from words and pictures, with every technique there is.

    import imagewright
    result = imagewright.generate("a red fox", seed=1)
    result[0].save("fox.png")
    hat = imagewright.fill("fox.png", "a blue hat", region="25%,0,50%,30%")  # all else stays as it is

More verbs are in imagewright.verbs: vary, blend, restyle, upscale, undo.

Importing this package is cheap: names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagewright.engines.engine import Engine, ModelInfo
    from imagewright.errors import (
        ImagewrightError,
        MissingExtraError,
        ModelError,
        ModelNotFoundError,
        RequestError,
        UnsupportedError,
    )
    from imagewright.pictures import open_picture
    from imagewright.request import Adjustment, Capabilities, ImageRequest, ImageResult
    from imagewright.verbs import edit, expand, fill
    from imagewright.workshop import Workshop, generate

__version__ = "0.1.0"

_HOME = {
    "generate": "workshop",
    "edit": "verbs",
    "fill": "verbs",
    "expand": "verbs",
    "Workshop": "workshop",
    "ImageRequest": "request",
    "ImageResult": "request",
    "Adjustment": "request",
    "Capabilities": "request",
    "Engine": "engines.engine",
    "ModelInfo": "engines.engine",
    "open_picture": "pictures",
    "ImagewrightError": "errors",
    "RequestError": "errors",
    "UnsupportedError": "errors",
    "ModelError": "errors",
    "ModelNotFoundError": "errors",
    "MissingExtraError": "errors",
}

__all__ = [
    "Adjustment",
    "Capabilities",
    "Engine",
    "ImageRequest",
    "ImageResult",
    "ImagewrightError",
    "MissingExtraError",
    "ModelError",
    "ModelInfo",
    "ModelNotFoundError",
    "RequestError",
    "UnsupportedError",
    "Workshop",
    "__version__",
    "edit",
    "expand",
    "fill",
    "generate",
    "open_picture",
]


def __getattr__(name: str) -> Any:
    if name == "prompt":  # a module, so that imagewright.prompt.parse needs no import of its own
        return import_module("imagewright.prompt")
    if name not in _HOME:
        raise AttributeError(f"module 'imagewright' has no attribute {name!r}")
    return getattr(import_module(f"imagewright.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
