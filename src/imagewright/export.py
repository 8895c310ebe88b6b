"""A trained run becomes a folder that the embedded engine runs without torch.

    model.json        what it is: sizes, sampling defaults, styles, training data, sha256 of the files
    PART.onnx         the graphs that the technique names (Technique.graphs), run by engines/runners/<family>.py
    text.safetensors  the text encoder but its word table, if it was trained further than the one that ships
    README.md         the model card, if one is given

Weights are stored in 32, 8 or 4 bits (quantise.py); the products inside the blocks of a graph marked `fast_int8` are
also computed with them, and of a graph marked `precise` all but the largest weights keep 8 bits at least.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from imagewright import __version__
from imagewright.engines.embedded import FORMAT, TEXT
from imagewright.engines.runners import runner
from imagewright.engines.trained import defaults as sampling_defaults
from imagewright.errors import ModelError, OptionError, OutputError
from imagewright.models import registry
from imagewright.models.autoencoder import LARGE, Autoencoder
from imagewright.models.samplers import SAMPLERS
from imagewright.models.technique import Graph, Prompted, Technique
from imagewright.models.text import packed_state
from imagewright.quantise import quantise
from imagewright.text import MAX_TOKENS
from imagewright.text_encoder import HEADS as TEXT_HEADS
from imagewright.text_encoder import TABLE, digest, shipped
from imagewright.training.checkpoint import load_model, open_model

OPSET = 17
WEIGHTS = {32: "float32", 8: "int8", 4: "int4"}  # what model.json calls the bits
DEFAULT_SIDE = 256  # a smaller picture is enlarged to this unless a size is asked for


def export(
    run_dir: Path,
    out_dir: Path,
    *,
    name: str,
    bits: int = 8,
    card: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    share: bool = False,
    rank: int | None = None,
    without: Collection[str] = (),
    autoencoder: Path | None = None,
) -> Path:
    """Write the averaged weights of `run_dir` as an ONNX folder `out_dir`, and return it.

    `bits` a weight: 32, 8 or 4. `card`: a Markdown file to go with it as its README. `defaults`: sampling options
    (steps, guidance, temperature) that replace those of the run's configuration. `share`: a part that a model beside
    `out_dir` holds already is named there instead of written again. `rank`: its place among the models of a folder
    (lower first, 9 if not said). `without`: parts that drawing does not need and that are not written.
    `autoencoder`: a run whose encoder is the model's and whose decoder, trained on since, replaces the model's.
    Raises ModelNotFoundError, ModelCorruptError, ModelError for a model that makes no pictures alone, OptionError for
    a default that the technique has not, and OutputError if `out_dir` holds anything but an exported model.
    """
    if bits not in WEIGHTS:
        raise OptionError(f"Weights of {bits} bits cannot be exported.", "Use 32, 8 or 4.")
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / "model.json").exists():
        raise OutputError(f"{out_dir} holds something else than an exported model.", "Name a new folder.")
    technique = load_model(run_dir, ema=True).eval()
    if not technique.family:
        raise ModelError(
            f"A {type(technique).__name__} alone makes no pictures from words.", "Export the run that uses it."
        )
    if autoencoder is not None:
        _decoding_with(technique, autoencoder)
    sampling = _sampling(technique, defaults or {})
    graphs = _parts(technique, without)
    path, run_config = open_model(run_dir)
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    description = {
        **_describe(technique, run_config, path, name, bits, graphs),
        "sampling": sampling,
        "text_encoder": _write_text(technique, partial),
        **({} if rank is None else {"rank": rank}),
    }
    for part, graph in graphs.items():
        write_graph(graph, partial / f"{part}.onnx", bits)
    if card is not None:
        shutil.copy(card, partial / "README.md")
    description["files"] = _listed(partial, out_dir, share)
    (partial / "model.json").write_text(json.dumps(description, indent=1) + "\n", "utf-8")
    shutil.rmtree(out_dir, ignore_errors=True)
    partial.rename(out_dir)
    return out_dir


def _sampling(technique: Technique, changed: Mapping[str, Any]) -> dict[str, Any]:
    """The technique's options of sampling, some of them `changed`, as JSON values. Raises OptionError for what is
    none."""
    sampling = sampling_defaults(technique)
    if unknown := set(changed) - set(sampling):
        raise OptionError(f"This technique has no {', '.join(unknown)}.", f"It has: {', '.join(sampling) or 'none'}.")
    if (sampler := changed.get("sampler")) not in (None, *SAMPLERS):
        raise OptionError(f"There is no sampler {sampler!r}.", f"There are: {', '.join(SAMPLERS)}.")
    found: dict[str, Any] = json.loads(json.dumps({**sampling, **changed}))
    return found


def _parts(technique: Technique, without: Collection[str]) -> dict[str, Graph]:
    """The technique's graphs but those in `without`. Raises OptionError for one that drawing needs or that is none."""
    graphs, needed = technique.graphs(), {*runner(technique.family).PARTS, "decoder"}
    for part in without:
        if part in needed or part not in graphs:
            spare = ", ".join(name for name in graphs if name not in needed)
            raise OptionError(f"The part {part!r} cannot be left out.", f"These can: {spare or 'none'}.")
        del graphs[part]
    return graphs


def _decoding_with(technique: Technique, run_dir: Path) -> None:
    """Give `technique` the decoder of an autoencoder that was trained on. Raises OptionError if the latents differ."""
    ours, found = _stage_of(technique), load_model(run_dir, ema=True).eval()
    if ours is None or not isinstance(found, Autoencoder):
        raise OptionError(f"{run_dir} has no decoder for this model.", "Name the autoencoder that it works on.")
    before, after = ours.encoder.state_dict(), found.encoder.state_dict()
    if before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before):
        fix = "Train its decoder on with --from and --set model.frozen=true."
        raise OptionError(f"{run_dir} makes other latents than those that this model knows.", fix)
    technique.encoder.autoencoder = found  # type: ignore[union-attr]


def _stage_of(technique: Technique) -> Autoencoder | None:
    """The autoencoder that a technique works on."""
    stage = getattr(getattr(technique, "encoder", None), "autoencoder", None)
    return stage if isinstance(stage, Autoencoder) else None


def write_graph(graph: Graph, file: Path, bits: int) -> None:
    """Export one part to `file`, its weights in 32, 8 or 4 bits."""
    to_onnx(graph, file)
    if bits < 32:
        quantise(file, bits, products=graph.fast_int8, precise=graph.precise)


def _write_text(technique: Technique, folder: Path) -> str:
    """Write the text encoder unless it is the one that ships; return its digest."""
    ours = shipped()
    if not isinstance(technique, Prompted):
        return digest(ours)
    packed = packed_state(technique.text)
    if any(not np.array_equal(packed[key], ours[key]) for key in TABLE):
        raise ModelError("This run was trained with other word vectors.", "Train it with this version of imagewright.")
    if digest(packed) != digest(ours):
        save_file({key: array for key, array in packed.items() if key not in TABLE}, str(folder / TEXT))
    return digest(packed)


def _listed(partial: Path, out_dir: Path, share: bool) -> dict[str, dict[str, Any]]:
    """Hash and size of each file; with `share`, files that a neighbour of `out_dir` holds are removed here."""
    listed: dict[str, dict[str, Any]] = {}
    neighbours = [p.parent for p in sorted(out_dir.parent.glob("*/model.json")) if p.parent != out_dir and share]
    for file in sorted(f for f in partial.iterdir() if f.suffix in (".onnx", ".safetensors")):
        data = file.read_bytes()
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        holders = [n.name for n in neighbours if (n / file.name).is_file() and (n / file.name).read_bytes() == data]
        if holders:
            file.unlink()
        listed[file.name] = {**entry, **({"in": holders[0]} if holders else {})}
    return listed


def to_onnx(graph: Graph, file: Path) -> None:
    """Write the graph, its weights in 32 bits, as `file`."""
    axes = {name: {0: "batch"} for name in (*graph.inputs, *graph.outputs)}
    for name, more in (graph.dynamic or {}).items():
        axes[name] |= more
    with warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter is deprecated but needs no further package, and 7 s where the new one takes minutes.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.module,
            graph.example,
            str(file),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _runtime(technique: Technique, parts: Collection[str]) -> dict[str, Any]:
    """The technique's, with the edits that can be made with these parts: all but tiling begin by encoding a picture."""
    runtime = technique.runtime()
    if getattr(_stage_of(technique), "detail", None) is not None:
        runtime["large"] = True
    if not set(runtime.get("encoding", ["encoder"])) <= set(parts) and "edits" in runtime:
        runtime["edits"] = [edit for edit in runtime["edits"] if edit == "tile"]
    return runtime


def _describe(
    technique: Technique, run: dict[str, Any], path: Path, name: str, bits: int, parts: Collection[str]
) -> dict[str, Any]:
    side, text = technique.pixels, getattr(technique.config, "text", None)
    runtime = _runtime(technique, parts)
    drawn = side * LARGE if runtime.get("large") else side
    return {
        "format": FORMAT,
        "name": name,
        "technique": technique.family,
        "summary": f"Text to pictures with transparent background, {drawn}x{drawn} pixels.",
        "licence": "Apache-2.0",
        "size": [side, side],
        "default_size": [max(drawn, DEFAULT_SIDE)] * 2,
        "styles": run.get("styles", {}),
        "max_tokens": text.max_tokens if text else MAX_TOKENS,
        "text_heads": text.heads if text else TEXT_HEADS,
        "weights": WEIGHTS[bits],
        "parameters": sum(p.numel() for p in technique.parameters()),
        "runtime": runtime,
        "model": registry.to_dict(_built_as(technique)),
        "training": {
            "manifest": run.get("manifest_hash"),
            "steps": _step_of(path),
            "batch": run["train"]["batch"],
            "software": f"imagewright {__version__}, torch {torch.__version__}",
        },
    }


def _built_as(technique: Technique) -> Any:
    """The configuration that builds this model, with the autoencoder that it has now."""
    config, stage = technique.config, _stage_of(technique)
    if stage is None:
        return config
    return replace(config, encoder=replace(config.encoder, autoencoder=stage.config))


def _step_of(path: Path) -> int | None:
    _, _, step = path.name.partition("step-")
    return int(step) if step.isdigit() else None
