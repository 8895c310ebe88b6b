"""Changes to a preset given as text: `steps=100`, `network.depth=4`, `autoencoder.model.latent=8`.

A name without a dot is a field of the TrainConfig. A dotted one is a path into the model's configuration, whatever
dataclasses it nests; a leading `model.` may be left out. What begins with `autoencoder.` is for the first stage of a
model that works on latents or codes, by the same rules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from imagewright.errors import OptionError
from imagewright.training.config import nearest

STAGE = "autoencoder"


def split(overrides: Mapping[str, str], first_stage: bool) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """The overrides of the TrainConfig, of the model, and (if it has one) of its first stage, without prefixes."""
    train: dict[str, str] = {}
    model: dict[str, str] = {}
    stage: dict[str, str] = {}
    for key, value in overrides.items():
        head, dot, rest = key.partition(".")
        if not dot:
            train[key] = value
        elif head == STAGE and first_stage:
            stage[rest] = value
        else:
            model[rest if head == "model" else key] = value
    return train, model, stage


def changed(config: Any, changes: Mapping[str, str]) -> Any:
    """The dataclass `config` with fields, also nested ones, replaced by values read from text by their present type.

    Raises OptionError on unknown names and on values that cannot work.
    """
    for path, text in changes.items():
        config = _with(config, path, text)
    return config


def _with(config: Any, path: str, text: str) -> Any:
    name, _, rest = path.partition(".")
    fields = {f.name for f in dataclasses.fields(config)}
    if name not in fields:
        raise OptionError(f"Unknown option {path!r}.", nearest(name, fields))
    present = getattr(config, name)
    nested = dataclasses.is_dataclass(present)
    if nested != bool(rest):
        inside = sorted(f.name for f in dataclasses.fields(present)) if nested else []
        raise OptionError(
            f"The option {path!r} names {'a group' if nested else 'no group'} of options.",
            f"Name one of its own: {', '.join(inside)}." if nested else f"Write {name}=VALUE.",
        )
    return replaced(config, **{name: _with(present, rest, text) if nested else _read(name, text, present)})


def replaced(config: Any, **values: Any) -> Any:
    """dataclasses.replace; a ValueError of the config becomes an OptionError."""
    try:
        return dataclasses.replace(config, **values)
    except ValueError as error:
        raise OptionError(f"{type(config).__name__}: {error}", f"Change {' or '.join(values)}.") from error


def _read(name: str, text: str, present: Any) -> Any:
    try:
        if isinstance(present, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(present, tuple):
            return tuple(_read(name, part, present[0]) for part in text.split(","))
        return type(present)(text) if present is not None else float(text)
    except (KeyError, ValueError) as error:
        raise OptionError(f"Cannot read {name}={text!r}.", f"Write it like {present!r}.") from error
