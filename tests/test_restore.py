"""An exported model becomes a model to train on again, with the weights that it holds."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests_support import discs_and_squares

import imagewright
from imagewright.errors import ModelCorruptError, ModelError, OptionError
from imagewright.export import export
from imagewright.models import registry
from imagewright.models.text import load_pretrained
from imagewright.restore import as_run, is_exported, located, restore
from imagewright.training.checkpoint import load_model, write_model
from imagewright.training.command import run
from imagewright.training.presets import PRESETS

TECHNIQUES = ("diffusion", "gan", "autoregressive", "vae")
BITS = (32, 8, 4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """An untrained model of each technique, every number of it another, in 32, 8 and 4 bits, beside its run."""
    folder, made = tmp_path_factory.mktemp("exported"), {}
    for technique in TECHNIQUES:
        torch.manual_seed(0)
        model = registry.build(PRESETS[technique]["tiny"].model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
            for name, buffer in model.named_buffers():
                if name.endswith(("mean", "std")):
                    buffer.add_(0.1 * torch.rand(buffer.shape))
        model.text.load_state_dict(load_pretrained().state_dict())  # type: ignore[union-attr]
        config = {"model": registry.to_dict(model.config), "train": {"batch": 1}, "manifest_hash": None}
        write_model(model, config, folder / technique)
        for bits in BITS:
            made[technique, bits] = export(folder / technique, folder / f"{technique}-{bits}", name="x", bits=bits)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return discs_and_squares(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_all_weights_come_back(technique: str, exported: dict[tuple[str, int], Path]) -> None:
    made = exported[technique, 32]
    found, true = restore(made), load_model(made.with_name(technique))
    assert found.config == true.config
    for name, tensor in true.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=2e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("bits,off", [(8, 0.02), (4, 0.2)])
def test_weights_of_few_bits_come_back_as_they_are(
    technique: str, bits: int, off: float, exported: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    made = exported[technique, bits]
    found, true = restore(made), load_model(made.with_name(technique))
    for name, tensor in true.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() > 1:
            error = (found.state_dict()[name] - tensor).norm() / tensor.norm()
            assert error < off, name
    config = {"model": registry.to_dict(found.config), "train": {"batch": 1}, "manifest_hash": None}
    write_model(found.requires_grad_(True), config, tmp_path / "run")
    again = restore(export(tmp_path / "run", tmp_path / "again", name="x", bits=bits))
    for name, tensor in found.state_dict().items():  # rounding what is round already changes next to nothing
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=2e-3, atol=1e-4, msg=name)


def test_a_model_that_lacks_a_part_or_a_word_on_how_it_was_built_is_refused(
    exported: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(exported["diffusion", 4], model)
    description: dict[str, Any] = json.loads((model / "model.json").read_text())
    del description["files"]["encoder.onnx"]
    (model / "model.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match=r"exported without encoder\.autoencoder\.encoder"):
        restore(model)
    description = json.loads((exported["diffusion", 4] / "model.json").read_text())
    description["model"]["network"]["depth"] += 1
    (model / "model.json").write_text(json.dumps(description))
    with pytest.raises(ModelCorruptError, match="not as this version makes it"):
        restore(model)
    del description["model"]
    (model / "model.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match="does not say how"):
        restore(model)


def test_what_ships_says_how_it_is_built_and_is_found_by_name(tmp_path: Path) -> None:
    assert is_exported(located("stickers-diffusion")) and located(tmp_path) == tmp_path
    assert located("no-such-run") == Path("no-such-run")
    for path in (Path(imagewright.__file__).parent / "assets").glob("*/model.json"):
        description = json.loads(path.read_text())
        assert registry.from_dict(description["model"])


def test_an_exported_model_is_tuned_and_lends_its_first_stage(
    folder: Path, exported: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    dials = {"steps": "1", "batch": "8", "sample_every": "0", "heldout_every": "0", "warmup": "0", "lr": "1e-9"}
    made = as_run(exported["diffusion", 32], tmp_path / "restored")
    assert as_run(exported["diffusion", 32], tmp_path / "restored") == made and as_run(made, tmp_path / "x") == made
    run("diffusion", folder, "cpu", tmp_path / "tuned", dials | {"muon_lr": "1e-9"}, start=made, minutes=9)
    told = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert told["train"]["minutes"] == 9, "there is no first stage to give a part of them to"
    tuned, true = load_model(tmp_path / "tuned"), load_model(exported["diffusion", 32].with_name("diffusion"))
    assert replace(tuned.config, edit_share=0.3) == true.config, "its own network, not the preset's"
    for name, tensor in true.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    run("gan", folder, "tiny", tmp_path / "gan", dials, first_stage=made)
    gan = load_model(tmp_path / "gan")
    for name, tensor in true.encoder.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(gan.encoder.state_dict()[name], tensor, msg=name)  # type: ignore[union-attr]
    with pytest.raises(OptionError, match="is of the technique diffusion"):
        run("vae", folder, "tiny", tmp_path / "other", dials, start=made)
    with pytest.raises(OptionError, match="has a first stage of its own"):
        run("diffusion", folder, "tiny", tmp_path / "other", dials, start=made, first_stage=made)
    with pytest.raises(OptionError, match="works on 32 pixels"):
        run("diffusion", folder, "tiny", tmp_path / "other", dials, start=made, size=64)
