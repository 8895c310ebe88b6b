"""Weights in small files, and runs from them: half precision, written once, and nothing damaged is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training.techniques import build

from imagewright.errors import ModelCorruptError, OptionError
from imagewright.models import registry
from imagewright.models.technique import Technique
from imagewright.models.text import load_pretrained
from imagewright.training.checkpoint import load_model, write_model
from imagewright.training.shards import digests_in, read_shards, write_shards

SMALL = 250_000  # bytes


def run_of(technique: Technique, folder: Path) -> Path:
    write_model(technique, {"model": registry.to_dict(technique.config), "train": {"batch": 4}}, folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An autoencoder, and a diffusion model on its latents."""
    out = tmp_path_factory.mktemp("runs")
    autoencoder, diffusion = build("autoencoder"), build("diffusion")
    diffusion.encoder.autoencoder.load_state_dict(autoencoder.state_dict())
    diffusion.text.load_state_dict(load_pretrained().state_dict())
    with torch.no_grad():
        diffusion.network.patch_in.weight[0, 0] = 1e6  # more than half precision can hold
    return {"autoencoder": run_of(autoencoder, out / "a"), "diffusion": run_of(diffusion, out / "d")}


def test_runs_come_back_as_they_were_to_half_precision(runs: dict[str, Path], tmp_path: Path) -> None:
    assert write_shards(runs, tmp_path / "shards", largest=SMALL) == list(runs)
    files = list((tmp_path / "shards").glob("*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size <= SMALL for file in files)
    names = [name for file in files for name in load_file(str(file))]
    assert len(names) == len(set(names)), "what both hold is written once"
    assert read_shards([tmp_path / "shards"], tmp_path / "out") == list(runs)
    for name, folder in runs.items():
        ours, theirs = load_model(folder).state_dict(), load_model(tmp_path / "out" / name).state_dict()
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-7, msg=key)


def test_what_is_known_already_is_left_out(runs: dict[str, Path], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_shards({"autoencoder": runs["autoencoder"]}, first)
    write_shards({"diffusion": runs["diffusion"]}, second, known=digests_in([first]))
    with pytest.raises(ModelCorruptError, match="missing"):
        read_shards([second], tmp_path / "out")
    assert set(read_shards([first, second], tmp_path / "out")) == set(runs)


def test_as_many_runs_as_fit_are_written(runs: dict[str, Path], tmp_path: Path) -> None:
    assert write_shards(runs, tmp_path / "shards", largest=SMALL, at_most=1) == ["autoencoder"]
    with pytest.raises(OptionError, match="does not fit"):
        write_shards({"diffusion": runs["diffusion"]}, tmp_path / "more", largest=SMALL, at_most=1)


def test_damaged_files_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    write_shards({"autoencoder": runs["autoencoder"]}, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    whole, tensors = file.read_bytes(), load_file(str(file))
    file.write_bytes(whole[:-100])
    with pytest.raises(ModelCorruptError, match="cannot be read"):
        read_shards([tmp_path], tmp_path / "out")
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1
    save_file(tensors, str(file))
    with pytest.raises(ModelCorruptError, match="damaged"):
        read_shards([tmp_path], tmp_path / "out")
