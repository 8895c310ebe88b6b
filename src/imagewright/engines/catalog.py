"""Names of models to engines.

Engines come from the entry point group `imagewright.engines`; the built-in ones are also listed here and cannot be
replaced. Those on this machine are found first, those of hosted services, which cost money, last. An engine class is
made without arguments. A model is named `NAME`, `ENGINE/NAME`, by the path of its folder or file, or by its hub id
(`ORG/NAME`). A folder with `*.onnx` files goes to the embedded engine, one in the layout of diffusers, a single file or
a hub id to the pretrained engine, any other folder to the trained engine; their `find` takes the path or the id as the
name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from threading import RLock

from imagewright.engines.engine import Engine, ModelInfo
from imagewright.errors import (
    ConfigError,
    CredentialError,
    MissingExtraError,
    ModelError,
    ModelNotFoundError,
    UnsupportedError,
)

DEFAULT_ENGINE = "embedded"
GROUP = "imagewright.engines"


@dataclass(frozen=True)
class Listing:
    """One engine as `imagewright models` shows it: its models, or what is missing and how to mend it. `hint`: how those
    that are not listed are named. `locked`: it is a hosted service, and there is no key for it."""

    engine: str
    models: tuple[ModelInfo, ...] = ()
    hint: str = "a folder"
    problem: str = ""
    fix: str = ""
    locked: bool = False


@dataclass(frozen=True)
class _Source:
    """Where an engine's class is; `needs` is an import that its extra brings."""

    target: str
    needs: str = ""
    extra: str = ""
    by_path: bool = False  # its models are folders of the user, named by their path


_PIPELINE = ("model_index.json", "unet", "transformer", "vae")  # what a folder in the layout of diffusers has in it
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z")

_BUILT_IN = {
    "embedded": _Source("imagewright.engines.embedded:EmbeddedEngine"),
    "trained": _Source("imagewright.engines.trained:TrainedEngine", needs="torch", extra="train", by_path=True),
    "pretrained": _Source(
        "imagewright.engines.pretrained:PretrainedEngine", needs="diffusers", extra="pretrained", by_path=True
    ),
}

_HOSTED = {
    name: _Source(f"imagewright.engines.hosted.{name}:{engine}")
    for name, engine in {
        "openai": "OpenAIEngine",
        "cometapi": "CometAPIEngine",
        "midjourney": "MidjourneyEngine",
        "stability": "StabilityEngine",
        "firefly": "FireflyEngine",
        "bfl": "BFLEngine",
        "gemini": "GeminiEngine",
        "openrouter": "OpenRouterEngine",
        "compatible": "CompatibleEngine",
    }.items()
}


class Catalog:
    """Finds engines and models, from any thread. Engines are made on first use and kept."""

    def __init__(self) -> None:
        self._lock, self._engines = RLock(), dict[str, Engine]()

    @cached_property
    def _sources(self) -> dict[str, _Source]:
        found = {point.name: _Source(point.value) for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}
        strangers = {name: source for name, source in found.items() if name not in {**_BUILT_IN, **_HOSTED}}
        return {**_BUILT_IN, **strangers, **_HOSTED}

    def engine(self, name: str) -> Engine:
        """The engine called `name`. Raises ModelNotFoundError, MissingExtraError, ModelError."""
        with self._lock:
            if name not in self._engines:
                source = _BUILT_IN.get(name) or _HOSTED.get(name) or self._sources.get(name)
                if source is None:
                    raise ModelNotFoundError(f"No engine {name!r}.", f"There are: {', '.join(self._sources)}.")
                self._engines[name] = _load(name, source)
            return self._engines[name]

    def find(self, name: str | None, technique: str | None = None) -> tuple[Engine, str | None]:
        """The engine of a model, and the model's name there; None is the first of `technique`, or without one the
        first of the embedded engine's.

        Raises ModelNotFoundError, MissingExtraError, and UnsupportedError where a named model is of another technique.
        """
        if technique is None:
            return self._named(name)
        if name is None:
            name = self._first_of(technique)
        engine, own_name = self._named(name)
        if (found := engine.find(own_name).technique) != technique:
            raise UnsupportedError(
                f"{name} is a {found} model, and the technique asked for is {technique}.",
                "Leave out the model or the technique.",
            )
        return engine, own_name

    def _first_of(self, technique: str) -> str:
        for listing in self._listed():
            for model in listing.models:
                if model.technique == technique:
                    return f"{listing.engine}/{model.name}"
        raise ModelNotFoundError(
            f"No {technique} model is here.",
            f"Train one (imagewright train --technique {technique}) and give its folder as the model.",
        )

    def _named(self, name: str | None) -> tuple[Engine, str | None]:
        if name is None:
            return self.engine(DEFAULT_ENGINE), None
        engine, _, rest = name.partition("/")
        if rest and engine in self._sources:
            return self.engine(engine), rest
        here: list[str] = []
        for listing in self._listed():
            if name in (names := [model.name for model in listing.models]):
                return self.engine(listing.engine), name
            here += names
        if Path(name.removesuffix("@best")).is_dir():
            return self.engine(_engine_of(Path(name))), name
        if Path(name).is_file() or _HUB_ID.match(name):
            return self.engine("pretrained"), name
        there = ", ".join(here) or "none"
        raise ModelNotFoundError(f"No model {name!r} here.", f"There are: {there}, or give a run's folder.")

    def listings(self) -> Sequence[Listing]:
        """Every engine with its models, the built-in ones first; a missing extra or key is said, not raised."""
        return list(self._listed())

    def _listed(self) -> Iterator[Listing]:
        return (self._listing(name, source) for name, source in self._sources.items())

    def _listing(self, name: str, source: _Source) -> Listing:
        if source.needs and find_spec(source.needs) is None:
            return Listing(name, problem=f"It needs {source.needs}.", fix=f"pip install 'imagewright[{source.extra}]'")
        if source.by_path:
            return Listing(name)
        try:
            hint = f"{name}/MODEL" if name in _HOSTED else "a folder"
            return Listing(name, models=tuple(self.engine(name).models()), hint=hint)
        except (MissingExtraError, ModelError, ConfigError, CredentialError) as error:
            locked = isinstance(error, CredentialError)
            return Listing(name, problem=error.message, fix=error.fix, locked=locked)


def _engine_of(folder: Path) -> str:
    if any(folder.glob("*.onnx")):
        return "embedded"
    return "pretrained" if any((folder / part).exists() for part in _PIPELINE) else "trained"


def _load(name: str, source: _Source) -> Engine:
    module, _, attribute = source.target.partition(":")
    try:
        made = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError) as error:
        if source.extra and find_spec(source.needs) is None:
            raise MissingExtraError(f"The {name} engine", source.extra) from error
        raise ModelError(f"The engine {name!r} cannot be loaded: {error}.", "Install what it needs.") from error
    if not isinstance(made, Engine):
        raise ModelError(f"The engine {name!r} is not an imagewright Engine.", "Ask its authors.")
    return made
