"""`imagewright train` from a folder of pictures: two stages, resumed, and clear words about what is wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests_support import discs_and_squares

from imagewright.data.loader import CaptionedFolder
from imagewright.errors import CheckpointError, OptionError, TrainingError
from imagewright.models.encoders import KLLatents, LatentsConfig
from imagewright.text import Tokenizer
from imagewright.training.checkpoint import load_model
from imagewright.training.command import TRAINABLE, run, stage_of
from imagewright.training.presets import PRESETS
from imagewright.training.previews import grid
from imagewright.training.sources import LatentSource, PixelSource, cache_latents, weights_digest

QUICK = {
    "steps": "3",
    "batch": "8",
    "sample_every": "0",
    "heldout_every": "2",
    "autoencoder.steps": "3",
    "autoencoder.batch": "8",
    "autoencoder.sample_every": "3",
    "autoencoder.heldout_every": "0",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return discs_and_squares(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def drawer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a diffusion model that has learned next to nothing."""
    out = tmp_path_factory.mktemp("drawer")
    run("diffusion", folder, "tiny", out, QUICK)
    return out


def test_two_stages_train_and_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    first = run("diffusion", folder, "tiny", tmp_path / "run", QUICK)
    assert (first.step, first.reason) == (3, "steps")
    assert (tmp_path / "run" / "autoencoder" / "samples" / "step-00000003.png").exists()
    again = run("diffusion", folder, "tiny", tmp_path / "run", {**QUICK, "steps": "5"})
    assert again.step == 5
    model = load_model(tmp_path / "run")
    autoencoder = load_model(tmp_path / "run" / "autoencoder")
    for name, tensor in autoencoder.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[f"encoder.autoencoder.{name}"])


def test_pairs_with_an_instruction_are_learned_from_a_run_on(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data, ignore=shutil.ignore_patterns(".cache"))
    names = sorted(path.name for path in data.glob("*.png"))
    lines = [{"file_name": b, "before": a, "instruction": "turn it"} for a, b in zip(names, names[20:], strict=False)]
    (data / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run("diffusion", folder, "tiny", tmp_path / "base", QUICK)
    assert load_model(tmp_path / "base").config.edit_share == 0, "this folder has no pairs, so nothing is claimed"
    changed = {name: value for name, value in QUICK.items() if not name.startswith("autoencoder")} | {"lr": "1e-9"}
    stage = tmp_path / "base" / "autoencoder"
    start = {"first_stage": stage, "start": tmp_path / "base"}
    run("diffusion", data, "tiny", tmp_path / "run", changed | {"muon_lr": "1e-9"}, **start)  # type: ignore[arg-type]
    base, tuned = load_model(tmp_path / "base"), load_model(tmp_path / "run")
    assert tuned.config.edit_share > 0
    assert torch.equal(base.encoder.mean, tuned.encoder.mean) and torch.equal(base.encoder.std, tuned.encoder.std)
    for name, tensor in base.network.state_dict().items():
        assert torch.allclose(tensor, tuned.network.state_dict()[name], atol=1e-5), name
    deeper = changed | {"network.depth": "1"}
    with pytest.raises(OptionError, match="other parts"):
        run("diffusion", data, "tiny", tmp_path / "other", deeper, **start)  # type: ignore[arg-type]


@pytest.mark.parametrize("technique", TRAINABLE)
def test_every_technique_trains_is_looked_at_and_can_be_loaded(
    technique: str, folder: Path, drawer: Path, tmp_path: Path
) -> None:
    dials = {"steps": "1", "batch": "8", "sample_every": "1", "heldout_every": "1"}
    first_stage = stage_of(PRESETS[technique]["tiny"].model) is not None
    stage_dials = {f"autoencoder.{name}": "0" if name.endswith("every") else v for name, v in dials.items()}
    start = drawer if technique == "consistency" else None
    dials |= stage_dials if first_stage and start is None else {}
    run(technique, folder, "tiny", tmp_path / "run", dials, start=start)
    events = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    model = load_model(tmp_path / "run")
    found = [set(e) for e in events if e["event"] == "checkup"]
    assert found == ([{"event", "step", "spread", "copies"}] if model.family else [])
    assert any(e["event"] == "heldout" for e in events) and (tmp_path / "run/samples/step-00000001.png").exists()
    assert (tmp_path / "run/checkpoints/best").exists() == (len(model.phases) == 1)
    assert len(list((tmp_path / "run").glob("latents-*.safetensors"))) == first_stage


def test_a_student_has_the_parts_of_its_teacher_and_no_other_goes_on(
    folder: Path, drawer: Path, tmp_path: Path
) -> None:
    dials = {"steps": "1", "batch": "8", "sample_every": "0", "lr": "1e-9", "model.halvings": "0"}
    run("consistency", folder, "tiny", tmp_path / "run", dials, first_stage=drawer / "autoencoder", start=drawer)
    student, teacher = load_model(tmp_path / "run"), load_model(drawer)
    assert student.config.network == teacher.config.network and student.config.halvings == 0
    for name, tensor in teacher.state_dict().items():
        torch.testing.assert_close(tensor, student.state_dict()[name], atol=1e-6, rtol=0, msg=name)
    with pytest.raises(OptionError, match="holds a Consistency"):
        run("consistency", folder, "tiny", tmp_path / "other", dials, start=tmp_path / "run")
    with pytest.raises(OptionError, match="holds a Autoencoder"):
        run("consistency", folder, "tiny", tmp_path / "other", dials, start=drawer / "autoencoder")
    with pytest.raises(OptionError, match="is tuned from a diffusion run"):
        run("consistency", folder, "tiny", tmp_path / "other", dials)
    another = tmp_path / "another"
    run("diffusion", folder, "tiny", another, {**QUICK, "seed": "1"})
    with pytest.raises(CheckpointError, match="teacher"):
        run("consistency", folder, "tiny", tmp_path / "run", dials, start=another)


def test_overrides_reach_the_model(folder: Path, tmp_path: Path) -> None:
    changed = {**QUICK, "network.depth": "1", "model.prediction": "flow", "autoencoder.model.latent": "4"}
    run("diffusion", folder, "tiny", tmp_path / "run", changed)
    config = load_model(tmp_path / "run").config
    assert (config.network.depth, config.prediction, config.encoder.autoencoder.latent) == (1, "flow", 4)


def test_the_same_model_trains_on_pixels(folder: Path, tmp_path: Path) -> None:
    small = {"steps": "2", "batch": "4", "sample_every": "0", "network.depth": "1", "network.width": "64"}
    report = run("diffusion", folder, "pixels", tmp_path / "run", {**small, "network.heads": "2"})
    assert report.step == 2 and not (tmp_path / "run" / "autoencoder").exists()
    assert load_model(tmp_path / "run").encoder.shape == (4, 64, 64)


@pytest.mark.parametrize(
    "technique,preset,overrides,told",
    [
        ("painting", "tiny", {}, "painting"),
        ("diffusion", "huge", {}, "huge"),
        ("diffusion", "tiny", {"stepz": "3"}, "stepz"),
        ("diffusion", "tiny", {"steps": "many"}, "many"),
        ("diffusion", "tiny", {"steps": "0"}, "steps"),
        ("diffusion", "tiny", {"wings.steps": "3"}, "wings"),
    ],
)
def test_mistakes_are_named(
    folder: Path, tmp_path: Path, technique: str, preset: str, overrides: dict[str, str], told: str
) -> None:
    with pytest.raises(TrainingError, match=told) as caught:
        run(technique, folder, preset, tmp_path / "run", overrides)
    assert caught.value.fix


def test_cached_latents_are_those_of_the_autoencoder(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PRESETS["autoencoder"]["tiny"].model
    pictures, encoder = CaptionedFolder(folder), KLLatents(LatentsConfig(config)).eval()
    cache = cache_latents(encoder, pictures, config.size, tmp_path)
    assert cache_latents(encoder, pictures, config.size, tmp_path) == cache
    latents = LatentSource(pictures, config.size, Tokenizer(), cache).batch(0, 1, 0, 8, 8)
    pixels = PixelSource(pictures, config.size, Tokenizer()).batch(0, 1, 0, 8, 8)
    assert latents.captions == pixels.captions
    torch.testing.assert_close(latents.latents, encoder.encode(pixels.pixels), atol=0.1, rtol=0)  # cached in bf16
    everything = encoder.encode(pictures.pixels(np.arange(len(pictures)), config.size))
    torch.testing.assert_close(everything.mean((0, 2, 3)), torch.zeros(config.latent), atol=0.05, rtol=0)
    torch.testing.assert_close(everything.std((0, 2, 3)), torch.ones(config.latent), atol=0.05, rtol=0)


def test_two_halves_of_a_batch_are_the_whole(folder: Path) -> None:
    source = PixelSource(CaptionedFolder(folder), 16, Tokenizer())
    whole, second = source.batch(3, 5, 0, 8, 8), source.batch(3, 5, 4, 8, 8)
    assert second.captions == whole.captions[4:]
    assert torch.equal(second.pixels, whole.pixels[4:])


def test_the_grid_lays_transparent_pictures_on_white() -> None:
    clear, red = torch.full((4, 8, 8), -1.0), torch.tensor([1.0, -1.0, -1.0, 1.0])[:, None, None].expand(4, 8, 8)
    sheet = grid(torch.stack([clear, red, red]), columns=2)
    assert sheet.size == (16, 16)
    assert sheet.getpixel((0, 0)) == (255, 255, 255) and sheet.getpixel((8, 0)) == (255, 0, 0)
    assert sheet.getpixel((15, 15)) == (255, 255, 255)


def test_a_finished_first_stage_is_used_as_it_is(folder: Path, tmp_path: Path) -> None:
    stage, dials = tmp_path / "stage", {"steps": "2", "batch": "4", "heldout_every": "0", "sample_every": "0"}
    run("autoencoder", folder, "tiny", stage, {**dials, "model.latent": "4"})
    for name in ("first", "second"):
        run("diffusion", folder, "tiny", tmp_path / name, dials, first_stage=stage)
    weights = load_model(stage).state_dict()
    first = load_model(tmp_path / "first")
    assert first.config.encoder.autoencoder.latent == 4
    assert all(torch.equal(first.state_dict()[f"encoder.autoencoder.{k}"], v) for k, v in weights.items())
    assert len(list(stage.glob("latents-*.safetensors"))) == 1  # shared
    assert not (tmp_path / "first/autoencoder").exists()
    facts = json.loads((tmp_path / "first/config.json").read_text())
    assert facts["first_stage"] == weights_digest(load_model(stage))
    other = tmp_path / "other"
    run("autoencoder", folder, "tiny", other, {**dials, "model.latent": "4", "seed": "1"})
    with pytest.raises(CheckpointError, match="first_stage"):
        run("diffusion", folder, "tiny", tmp_path / "first", {**dials, "steps": "3"}, first_stage=other)


@pytest.mark.parametrize("condition", ["class", "none"])
def test_a_model_can_be_told_less(folder: Path, tmp_path: Path, condition: str) -> None:
    small = {"steps": "1", "batch": "4", "sample_every": "1", "network.depth": "1", "heldout_every": "1"}
    run("diffusion", folder, "pixels", tmp_path, {**small, "model.steps": "2"}, size=16, condition=condition)
    assert json.loads((tmp_path / "config.json").read_text())["condition"] == condition
    assert (tmp_path / "samples/step-00000001.png").exists()
    batch = PixelSource(CaptionedFolder(folder), 16, Tokenizer(), condition=condition).batch(0, 0, 0, 8, 8)
    colours = {caption.split()[0] if caption else "" for caption in batch.captions}
    assert colours <= {"class": {"red", "green", "blue", "orange"}, "none": {""}}[condition]


def test_size_reaches_through_the_autoencoder(folder: Path, tmp_path: Path) -> None:
    quick = {**QUICK, "steps": "1", "autoencoder.steps": "1", "autoencoder.sample_every": "0"}
    run("diffusion", folder, "tiny", tmp_path / "run", quick, size=16, minutes=5)
    model = load_model(tmp_path / "run")
    assert model.pixels == 16 and model.encoder.shape == (8, 4, 4)
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["minutes"] == 3.75


@pytest.mark.parametrize(
    "technique,preset,options,told",
    [
        ("diffusion", "cpu", {"size": 72}, r"units of 16 pixels: 72 .*--size 64"),
        ("diffusion", "pixels", {"size": 4}, r"units of 8 pixels.*--size 8"),
        ("diffusion", "tiny", {"condition": "words"}, "words"),
        ("diffusion", "pixels", {"first_stage": Path("runs/x")}, "no first stage"),
    ],
)
def test_options_that_do_not_fit_are_told(
    folder: Path, tmp_path: Path, technique: str, preset: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(OptionError, match=told) as caught:
        run(technique, folder, preset, tmp_path / "run", {}, **options)
    assert caught.value.fix and not (tmp_path / "run").exists()


def test_codes_are_cached_as_whole_numbers(folder: Path, tmp_path: Path) -> None:
    class Codes(torch.nn.Module):
        """Stands for an encoder into codes: the mean of each cell, in steps."""

        def __init__(self) -> None:
            super().__init__()
            self.autoencoder = torch.nn.Linear(1, 1)

        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            return ((torch.nn.functional.avg_pool2d(pixels, 4).mean(1) + 1) * 100).long()

    pictures, encoder = CaptionedFolder(folder), Codes()
    cache = cache_latents(encoder, pictures, 16, tmp_path)
    assert load_file(cache)["latents"].dtype == torch.int16
    codes = LatentSource(pictures, 16, Tokenizer(), cache).batch(0, 1, 0, 8, 8).latents
    pixels = PixelSource(pictures, 16, Tokenizer()).batch(0, 1, 0, 8, 8).pixels
    assert codes is not None and codes.dtype == torch.int64 and torch.equal(codes, encoder.encode(pixels))
