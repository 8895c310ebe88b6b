"""`imagewright train`: from a captioned folder and a preset's name to a trained run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from imagewright.data.loader import CaptionedFolder
from imagewright.errors import OptionError
from imagewright.models import registry
from imagewright.models.consistency import Consistency, ConsistencyConfig, student_of
from imagewright.models.diffusion import Diffusion
from imagewright.models.technique import Prompted, Technique
from imagewright.models.text import load_pretrained
from imagewright.text import Tokenizer
from imagewright.training import overrides as options
from imagewright.training.checkpoint import EXPORTED, load_model, open_model
from imagewright.training.checkup import checkup_of
from imagewright.training.config import TrainConfig, nearest
from imagewright.training.distributed import local_device
from imagewright.training.loop import TrainReport, train
from imagewright.training.presets import PRESETS, Preset
from imagewright.training.previews import preview_of
from imagewright.training.resident import ResidentSource
from imagewright.training.sources import CONDITIONS, LatentSource, PixelSource, cache_latents, weights_digest

FIRST_STAGE_SHARE = 0.25  # of the minutes
TRAINABLE = tuple(name for name in PRESETS if name != "judge")  # judges learn from labels: see training/judges.py


@dataclass(frozen=True)
class _Job:
    """What to train, on what, and how."""

    model: Any
    config: TrainConfig
    folder: CaptionedFolder
    scenes_share: float
    condition: str
    start: Technique | None = None
    teacher: Diffusion | None = None


@dataclass(frozen=True)
class _Asked:
    """The command: a preset of a technique with changes to it, where its data are and where the run goes, and the runs
    that it is to build on."""

    technique: str
    preset: Preset
    config: TrainConfig
    changes: Mapping[str, str]  # of the model
    data: Path
    out: Path
    condition: str
    size: int | None
    first_stage: Path | None
    start: Path | None

    def job(self, model: Any, start: Technique | None) -> _Job:
        """A model that is to learn edits does so where the data has some; else it does not claim it."""
        folder = CaptionedFolder(self.data)
        if getattr(model, "edit_share", 0) and not folder.has_edits:
            model = options.replaced(model, edit_share=0.0)
        return _Job(model, self.config, folder, self.preset.scenes_share, self.condition, start)


@dataclass(frozen=True)
class _Stage:
    """A finished first stage: its weights, the scale of its latents where a model that works on them has one, and the
    folder that encoded pictures are kept in."""

    autoencoder: Technique
    scale: tuple[torch.Tensor, torch.Tensor] | None
    cache: Path


def run(
    technique: str,
    data: Path,
    preset: str | None,
    out: Path,
    overrides: Mapping[str, str],
    *,
    size: int | None = None,
    condition: str = "text",
    minutes: float | None = None,
    first_stage: Path | None = None,
    start: Path | None = None,
) -> TrainReport:
    """Train `technique` on the folder `data` by a preset (default: cpu), in the run folder `out`.

    `overrides`: see training/overrides.py. `size`: side of the pictures in pixels. `condition`: `text`, `class` (only
    the concept's name, no scenes) or `none`. `minutes`: for the whole command. A model on latents or codes first trains
    the autoencoder or tokenizer that it works on; `first_stage` names a finished run of one to use instead, or a model
    that has one. `start`: a run of the same model, whose averaged weights are where this one begins (fine-tuning); one
    that was restored from an exported model also says how the network is built. For `consistency` it is the diffusion
    run to make a student of. The same call goes on where it stopped. Raises OptionError on unknown names and on values
    that cannot work.
    """
    if condition not in CONDITIONS:
        raise OptionError(f"There is no condition {condition!r}.", nearest(condition, CONDITIONS))
    found = _preset(technique, preset or "cpu")
    restored = start is not None and EXPORTED in open_model(start)[1]
    is_student = isinstance(found.model, ConsistencyConfig)
    two_stages = stage_of(found.model) is not None and not is_student
    dials, model_changes, stage_changes = options.split(overrides, two_stages)
    if (share := dials.pop("scenes_share", None)) is not None:
        found = options.changed(found, {"scenes_share": share})
    stage_share = FIRST_STAGE_SHARE if two_stages and first_stage is None and not restored else 0.0
    if minutes is not None:
        dials["minutes"] = str(minutes * (1 - stage_share))
    config = options.changed(found.train, dials)
    asked = _Asked(technique, found, config, model_changes, data, out, condition, size, first_stage, start)
    if is_student:
        return _train_student(asked)
    if restored:
        return _fine_tune(asked)
    stage_dials = {} if minutes is None else {"minutes": str(minutes * stage_share)}
    return _train_new(asked, preset or "cpu", stage_changes, stage_dials)


def _train_new(
    asked: _Asked, preset: str, stage_changes: Mapping[str, str], stage_dials: Mapping[str, str]
) -> TrainReport:
    """Train a model of the preset, its first stage before it if it has one. `stage_dials`: of that, beside its
    changes."""
    model = options.changed(asked.preset.model, asked.changes)
    begun = None if asked.start is None else load_model(asked.start)
    if stage_of(model) is None:
        if asked.first_stage is not None:
            fix = "Leave --autoencoder out."
            raise OptionError(f"The preset {preset!r} of {asked.technique} has no first stage.", fix)
        job = asked.job(sized(model, asked.size), begun)
        return _train_on(_built(job), job, None, asked.out)
    dials, stage_model, _ = options.split(stage_changes, False)
    stage = None
    if asked.first_stage is not None:
        stage = _finished_stage(model, asked.first_stage, asked.size, stage_changes)
        model = _on_stage(model, stage.autoencoder.config)
    else:
        model = sized(_on_stage(model, options.changed(stage_of(model), stage_model)), asked.size)
    job = asked.job(model, begun)
    built = _built(job)  # before the first stage trains, so that what does not fit is said at once
    if stage is None:
        report = _train_stage(job, preset, {**dials, **stage_dials}, asked.out / "autoencoder")
        if report.reason == "interrupted":
            return report
        stage = _Stage(load_model(asked.out / "autoencoder"), None, asked.out)
    return _train_on(built, job, stage, asked.out)


def _fine_tune(asked: _Asked) -> TrainReport:
    """Train on what was restored from an exported model. Its network, its size and its first stage are its own."""
    assert asked.start is not None
    begun, start = load_model(asked.start), asked.start.name
    if technique_of(begun.config) != asked.technique:
        raise OptionError(f"{start} is of the technique {technique_of(begun.config)}.", "Name that with --technique.")
    if asked.first_stage is not None:
        raise OptionError(f"{start} has a first stage of its own, or needs none.", "Leave --autoencoder out.")
    if asked.size not in (None, begun.pixels):
        raise OptionError(f"{start} works on {begun.pixels} pixels.", f"Use --size {begun.pixels}, or leave it out.")
    job = asked.job(options.changed(begun.config, asked.changes), begun)
    return _train_on(_built(job), job, None, asked.out)


def _train_stage(job: _Job, preset: str, dials: Mapping[str, str], out: Path) -> TrainReport:
    """Train the first stage of the job's model by its technique's preset of the same name."""
    rows = PRESETS[technique_of(stage_of(job.model))]
    found = rows.get(preset, rows["cpu"])
    config = options.changed(found.train, dials)
    stage = _Job(stage_of(job.model), config, job.folder, found.scenes_share, "text")
    built = _built(stage)
    return _train(built, _source(built, stage), stage, out)


def _train_student(asked: _Asked) -> TrainReport:
    """Train the student of a diffusion run, which gives it its network and its autoencoder."""
    teacher = _teacher(asked.start)
    model = options.changed(student_of(asked.preset.model, teacher.config), asked.changes)
    job = replace(asked.job(model, teacher), teacher=teacher)
    built = _built(job)
    stage = None
    if asked.first_stage is not None and stage_of(model) is not None:
        stage = _finished_stage(model, asked.first_stage, None, {})
    return _train_on(built, job, stage, asked.out)


def _teacher(start: Path | None) -> Diffusion:
    if start is None:
        raise OptionError("A consistency model is tuned from a diffusion run.", "Name it: --from RUN.")
    found = load_model(start)
    if type(found) is not Diffusion:
        raise OptionError(
            f"{start} holds a {type(found).__name__}, which cannot be the teacher of a consistency model.",
            "Give the run of a model of the technique diffusion.",
        )
    return found


def _train_on(built: Technique, job: _Job, stage: _Stage | None, out: Path) -> TrainReport:
    """Train on pixels, or on what the model's first stage makes of them. `stage`: where that gets its weights; None: it
    has them, and their scale."""
    if stage_of(job.model) is None:
        return _train(built, _source(built, job), job, out)
    encoder: Any = built.encoder
    scaled = job.start is not None
    if stage is not None:
        encoder.autoencoder.load_state_dict(stage.autoencoder.state_dict())
        if stage.scale is not None and not scaled:
            encoder.mean.copy_(stage.scale[0])
            encoder.std.copy_(stage.scale[1])
            scaled = True
    cache = cache_latents(encoder, job.folder, built.pixels, out if stage is None else stage.cache, scaled=scaled)
    edits_share = getattr(job.model, "edit_share", 0.0)
    source = LatentSource(job.folder, built.pixels, Tokenizer(), cache, job.scenes_share, job.condition, edits_share)
    return _train(built, source, job, out, {"first_stage": weights_digest(encoder.autoencoder)})


def _train(built: Technique, source: PixelSource, job: _Job, out: Path, facts: Mapping[str, Any] = {}) -> TrainReport:
    facts = {"condition": job.condition, **facts}
    if isinstance(built, Consistency) and job.teacher is not None:
        built.learn_from(job.teacher)
        facts["teacher"] = weights_digest(job.teacher)
    preview, checkup = preview_of(built, source), checkup_of(built, source)
    device = next(built.parameters()).device
    fed = source if device.type == "cpu" else ResidentSource(source, device, words=isinstance(built, Prompted))
    return train(built, fed, job.config, out, preview=preview, checkup=checkup, facts=facts)


def _source(built: Technique, job: _Job) -> PixelSource:
    edits_share = getattr(job.model, "edit_share", 0.0)
    return PixelSource(job.folder, built.pixels, Tokenizer(), job.scenes_share, job.condition, edits_share)


def _built(job: _Job) -> Technique:
    """The untrained model on this process's device; one that takes words gets the text encoder that ships."""
    torch.manual_seed(job.config.seed)
    try:
        built = registry.build(job.model)
    except ValueError as error:
        raise OptionError(f"The model cannot be built: {error}", "Choose another size or another preset.") from error
    if isinstance(built, Prompted):
        built.text.load_state_dict(load_pretrained().state_dict())
    if job.start is not None:
        _begin_from(built, job.start)
    return built.to(local_device())


def _begin_from(built: Technique, start: Technique) -> None:
    """Copy the weights of a model into one of the same shape, in which a gate for copying and a decoder's detail may be
    new."""
    fix = "Use its preset and its --set values."
    try:
        missing, more = built.load_state_dict(start.state_dict(), strict=False)
    except RuntimeError as error:
        raise OptionError("The model to begin from has another shape.", fix) from error
    if more or any(not name.startswith(("network.copy.", "detail.")) for name in missing):
        raise OptionError("The model to begin from has other parts.", fix)


def _preset(technique: str, name: str) -> Preset:
    for word, table in ((technique, TRAINABLE), (name, PRESETS.get(technique, {}))):
        if word not in table:
            raise OptionError(f"There is no technique or preset {word!r}.", nearest(word, table))
    return PRESETS[technique][name]


def technique_of(model: Any) -> str:
    """The name, in the table of presets, of the technique that a config's type belongs to."""
    return next(name for name, rows in PRESETS.items() for row in rows.values() if type(row.model) is type(model))


def stage_of(model: Any) -> Any:
    """The config of the autoencoder or tokenizer that a model works on, or None."""
    return getattr(getattr(model, "encoder", None), "autoencoder", None)


def _on_stage(model: Any, stage: Any) -> Any:
    return options.replaced(model, encoder=options.replaced(model.encoder, autoencoder=stage))


def sized(model: Any, size: int | None) -> Any:
    """`model` for pictures of `size` pixels a side. Raises OptionError where its network cannot have that size."""
    if size is None:
        return model
    if (encoder := getattr(model, "encoder", None)) is None:
        return _resized(model, size)
    if (stage := stage_of(model)) is not None:
        cell, model = stage.factor, _on_stage(model, _resized(stage, size))
    else:
        cell, model = 1, options.replaced(model, encoder=_resized(encoder, size))
    unit = getattr(model, "factor", None) or getattr(getattr(model, "network", None), "patch", 1)
    _check_multiple(size, cell * unit)
    return model


def _resized(config: Any, size: int) -> Any:
    if not hasattr(config, "size"):
        raise OptionError(f"{type(config).__name__} has one size only.", "Leave --size out.")
    _check_multiple(size, getattr(config, "factor", 1))
    return options.replaced(config, size=size)


def _check_multiple(size: int, unit: int) -> None:
    if size < unit or size % unit:
        near = max(1, round(size / unit)) * unit
        raise OptionError(f"The network works on units of {unit} pixels: {size} does not fit.", f"Use --size {near}.")


def _finished_stage(model: Any, folder: Path, size: int | None, changes: Mapping[str, str]) -> _Stage:
    """The first stage in `folder`, a run of one or a model that works on one, fit to be that of `model`."""
    if changes:
        raise OptionError(f"{folder} is trained already.", f"Leave out the options of {options.STAGE}.")
    found = load_model(folder)
    encoder = getattr(found, "encoder", None)
    stage = getattr(encoder, "autoencoder", found)
    if type(stage.config) is not type(stage_of(model)):
        raise OptionError(
            f"{folder} holds a {type(stage.config).__name__}, the model works on a {type(stage_of(model)).__name__}.",
            f"Give the run of a model of the technique {technique_of(stage_of(model))}, or a model that works on one.",
        )
    if size not in (None, stage.config.size):
        raise OptionError(f"{folder} was trained for {stage.config.size} pixels.", f"Use --size {stage.config.size}.")
    scale = (encoder.mean, encoder.std) if encoder is not None and hasattr(encoder, "fit") else None
    return _Stage(stage, scale, folder)
