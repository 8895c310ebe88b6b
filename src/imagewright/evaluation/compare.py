"""Several models, one request, one seed: their pictures side by side, with what they cost and how judges score them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from PIL import Image

from imagewright.engines.catalog import Catalog
from imagewright.engines.engine import ModelInfo
from imagewright.errors import ImagewrightError, ModelNotFoundError
from imagewright.evaluation.measure import Cost, measure
from imagewright.evaluation.sheet import matrix
from imagewright.evaluation.suites import SheetPrompt
from imagewright.request import FAMILIES

Measure = Callable[[Sequence[Mapping[str, Any]]], tuple[list[Image.Image], list[dict[str, Any]], Cost]]
Tell = Callable[[int, int], None]


class Scorer(Protocol):
    """The part of refine.judge.Judges that is used here."""

    labels: dict[str, list[Any]]

    def match(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Any:
        """Probabilities (N,)."""

    def identify(self, pictures: Sequence[Image.Image]) -> Mapping[str, Any]:
        """Probabilities by name; `style` (N, styles)."""


@dataclass(frozen=True)
class Entry:
    """A model's answers. `label` tells it from the others; `parameters` None: not known. `match` and `style` hold a
    score a picture, None where it was not scored (no judge, no style asked for); `steps`: what was asked for."""

    label: str
    technique: str
    parameters: int | None
    size_bytes: int
    cost: Cost
    pictures: tuple[Image.Image, ...]
    match: tuple[float | None, ...]
    style: tuple[float | None, ...]
    seed: int
    steps: int | None = None
    adjustments: tuple[str, ...] = ()

    @property
    def means(self) -> dict[str, float | None]:
        """The mean of each score over the pictures that have one."""
        return {"match": _mean(self.match), "style": _mean(self.style)}

    def told(self) -> dict[str, Any]:
        """As JSON values, without the pictures."""
        return {
            "model": self.label,
            "technique": self.technique,
            "parameters": self.parameters,
            "bytes": self.size_bytes,
            "seed": self.seed,
            "steps": self.steps,
            "cold_seconds": round(self.cost.cold, 3),
            "warm_seconds": round(self.cost.warm, 4),
            "peak_bytes": self.cost.peak_bytes,
            "match": self.match,
            "style": self.style,
            "means": self.means,
            "adjustments": self.adjustments,
        }


def models_of(catalog: Catalog, technique: str, names: Sequence[str] = ()) -> tuple[dict[str, str], list[str]]:
    """The models to compare, by label as the catalogue finds them, and the families of which none is here.

    Those named; else the first of each family, or with `technique` other than 'all' every model of that family.
    Raises ModelNotFoundError where there is none.
    """
    if names:
        return _labelled(names), []
    found: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for listing in catalog.listings():
        for model in listing.models:
            if model.technique in found:
                found[model.technique].append(f"{listing.engine}/{model.name}")
    if technique != "all":
        if not found.get(technique):
            raise ModelNotFoundError(f"No {technique} model is here.", "Name models or the folders of runs: --models")
        return _labelled(found[technique]), []
    firsts = [models[0] for models in found.values() if models]
    return _labelled(firsts), [family for family, models in found.items() if not models]


def with_steps(catalog: Catalog, models: Mapping[str, str]) -> dict[str, str]:
    """Those of `models` whose number of steps can be chosen. Raises what the catalogue raises."""
    found = {}
    for label, name in models.items():
        engine, own_name = catalog.find(name)
        if engine.find(own_name).capabilities.steps:
            found[label] = name
    return found


def entries(
    models: Mapping[str, str],
    prompts: Sequence[SheetPrompt],
    seed: int,
    *,
    steps: int | None = None,
    scorer: Scorer | None = None,
    progress: Tell | None = None,
    measured: Measure = measure,
) -> tuple[list[Entry], dict[str, str]]:
    """What each of `models` (by label) makes of `prompts`, all with one seed, and what went wrong by label."""
    made, problems, catalog = [], {}, Catalog()
    for index, (label, name) in enumerate(models.items()):
        try:
            made.append(_entry(catalog, name, label, prompts, seed, steps, scorer, measured))
        except ImagewrightError as error:
            problems[label] = error.message
        if progress is not None:
            progress(index + 1, len(models))
    return made, problems


def _entry(
    catalog: Catalog,
    name: str,
    label: str,
    prompts: Sequence[SheetPrompt],
    seed: int,
    steps: int | None,
    scorer: Scorer | None,
    measured: Measure,
) -> Entry:
    engine, own_name = catalog.find(name)
    info = engine.find(own_name)
    styles = (None, *info.capabilities.styles)  # a user's own model need not have those of the sticker set
    lacking = {p.style for p in prompts if p.style not in styles}
    prompts = [p if p.style in styles else replace(p, style=None) for p in prompts]
    requests = [
        {"prompt": p.prompt, "style": p.style, "seed": seed, "model": name, "num_inference_steps": steps}
        for p in prompts
    ]
    pictures, records, cost = measured(requests)
    match, style = scores(scorer, pictures, prompts)
    told = {f"{a['field']}: {a['requested']} -> {a['used']} ({a['reason']})" for r in records for a in r["adjustments"]}
    told |= {f"style: {style} -> none (this model has no such style)" for style in lacking}
    return Entry(
        label=label,
        technique=info.technique,
        parameters=parameters(info),
        size_bytes=info.size_bytes or sum(path.stat().st_size for path in _weights(info)),
        cost=cost,
        pictures=tuple(pictures),
        match=match,
        style=style,
        seed=seed,
        steps=steps,
        adjustments=tuple(sorted(told)),
    )


def scores(
    scorer: Scorer | None, pictures: Sequence[Image.Image], prompts: Sequence[SheetPrompt]
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """How well each picture fits its prompt, and the probability that it has the style that was asked for."""
    if scorer is None:
        return (None,) * len(pictures), (None,) * len(pictures)
    match = tuple(round(float(score), 4) for score in scorer.match(pictures, [p.prompt for p in prompts]))
    styles, names = scorer.identify(pictures)["style"], scorer.labels["styles"]
    style = tuple(
        round(float(row[names.index(p.style)]), 4) if p.style in names else None
        for row, p in zip(styles, prompts, strict=True)
    )
    return match, style


def parameters(info: ModelInfo) -> int | None:
    """How many numbers the model learnt: as its description says, or counted in a run's weights."""
    folder = Path(info.extra.get("path", ""))
    if (folder / "model.json").is_file():
        count: int | None = json.loads((folder / "model.json").read_text("utf-8")).get("parameters")
        return count
    from safetensors import safe_open

    total = 0
    for path in _weights(info):
        with safe_open(path, "numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  (not a dict)
                total += prod(weights.get_slice(name).get_shape())
    return total or None


def table(made: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The entries as rows of text, the head first."""
    head = ("MODEL", "TECHNIQUE", "PARAMETERS", "FILES", "COLD", "WARM", "MEMORY", "MATCH", "STYLE")
    return [head, *(tuple(_row(entry)) for entry in made)]


def sheet_of(made: Sequence[Entry], prompts: Sequence[SheetPrompt], cell: int = 256) -> Image.Image:
    """The pictures by prompt (rows) and model (columns), each column headed by what it cost."""
    heads = [f"{e.label}\n{e.technique}\n{e.cost.warm:.2f} s, {memory(e)}\n{_match_text(e)}" for e in made]
    rows = [[entry.pictures[index] for entry in made] for index in range(len(prompts))]
    return matrix(rows, [caption(p) for p in prompts], heads, cell)


def caption(prompt: SheetPrompt) -> str:
    """The prompt and its style."""
    return prompt.prompt + (f" [{prompt.style}]" if prompt.style else "")


def memory(entry: Entry) -> str:
    """'312 MB', or '?' where the system does not tell."""
    return "?" if entry.cost.peak_bytes is None else f"{entry.cost.peak_bytes / 1e6:.0f} MB"


def _row(entry: Entry) -> Iterator[str]:
    yield entry.label
    yield entry.technique
    yield "?" if entry.parameters is None else f"{entry.parameters / 1e6:.1f} M"
    yield f"{entry.size_bytes / 1e6:.1f} MB"
    yield f"{entry.cost.cold:.2f} s"
    yield f"{entry.cost.warm:.3f} s"
    yield memory(entry)
    for mean in entry.means.values():
        yield "-" if mean is None else f"{mean:.2f}"


def _match_text(entry: Entry) -> str:
    mean = entry.means["match"]
    return "not scored" if mean is None else f"match {mean:.2f}"


def _labelled(models: Sequence[str]) -> dict[str, str]:
    """Each under the last part of its name, or the whole where two would be the same."""
    short = [Path(model).name for model in models]
    return {name if short.count(name) == 1 else model: model for name, model in zip(short, models, strict=True)}


def _weights(info: ModelInfo) -> list[Path]:
    path = Path(info.extra.get("path", ""))
    return [file for file in (path / "model.safetensors",) if file.is_file()]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
