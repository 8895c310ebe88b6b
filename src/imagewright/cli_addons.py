"""The options that put something on a pretrained model: --adapter, --control, --embedding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from imagewright.errors import RequestError
from imagewright.pictures import open_picture
from imagewright.request import Adapter, Control

Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="MODEL[:WEIGHT]",
        help="A LoRA or an IP-Adapter for a pretrained model: a file, a folder or ORG/NAME. May be given again.",
    ),
]
Controls = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="MODEL=PICTURE[:WEIGHT]",
        help="A ControlNet and the picture that it follows. May be given again.",
    ),
]
Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="FILE",
        help="A textual inversion; the prompt names it by its file's name. May be given again.",
    ),
]


def put_on(options: Mapping[str, Any]) -> dict[str, Any]:
    """The request's fields from the options `adapter`, `control` and `embedding`. Raises RequestError, PictureError."""
    found = {
        "adapters": tuple(Adapter(*_weighted(text)) for text in options.get("adapter") or ()),
        "controls": tuple(_control(text) for text in options.get("control") or ()),
        "embeddings": tuple(options.get("embedding") or ()),
    }
    return {name: value for name, value in found.items() if value}


def _control(text: str) -> Control:
    model, sign, rest = text.partition("=")
    if not (model and sign and rest):
        raise RequestError(f"No picture in --control {text!r}.", "Write it as --control MODEL=PICTURE.")
    picture, weight = _weighted(rest)
    return Control(model, open_picture(Path(picture)), weight)


def _weighted(text: str) -> tuple[str, float]:
    """ "name:0.7" -> ("name", 0.7); a name that ends in no number has weight 1."""
    name, _, weight = text.rpartition(":")
    try:
        return (name, float(weight)) if name else (text, 1.0)
    except ValueError:
        return text, 1.0
