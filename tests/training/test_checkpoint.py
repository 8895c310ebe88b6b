"""Checkpoints: no crash and no flipped bit costs more than the newest; a run folder loads like a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TinySource, build, dials, tiny

from imagewright.errors import CheckpointError, ModelCorruptError, ModelNotFoundError
from imagewright.models import registry
from imagewright.models.autoencoder import AutoencoderConfig
from imagewright.training import checkpoint as module
from imagewright.training.checkpoint import CheckpointStore, load_model, open_model, read_config
from imagewright.training.loop import train
from imagewright.training.state import TrainState, describe

FILES = (*module.HASHED, module.HASHES)
OFTEN = {"checkpoint_minutes": 0, "muon": True, "schedule": "constant"}
ALLOWED = {".json", ".jsonl", ".safetensors", ".png"}


class Crash(BaseException):
    """The power goes out."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps with a checkpoint at each, of which 3 are kept."""
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagewright.training.journal._tensorboard", lambda folder: None)
        train(tiny(), TinySource(), dials(steps=6, **OFTEN), out)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def _flip(position: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(position * (len(data) - 1))] ^= 0xFF
        path.write_bytes(data)

    return damage


def _truncate(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return damage


DAMAGES = [_flip(at) for at in (0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.77, 0.99, 1)]
DAMAGES += [_truncate(share) for share in (0, 0.001, 0.5, 0.99)]
DAMAGES += [lambda path: path.write_bytes(path.read_bytes() + b"\0"), Path.unlink]


def test_the_folder_holds_what_it_should_and_no_pickle(finished: Path) -> None:
    store = CheckpointStore(finished)
    assert [p.name for p in store.steps()] == ["step-00000006", "step-00000005", "step-00000004"]
    assert (store.folder / "latest").read_text() == "step-00000006\n"
    for path in (p for p in finished.rglob("*") if p.is_file()):
        assert path.suffix in ALLOWED or path.name in ("latest", ".lock"), path
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path  # a pickle, or a zip of one
    for name in ("config.json", "model.safetensors", "ema.safetensors", "hashes.json"):
        assert (finished / name).read_bytes() == (store.steps()[0] / name).read_bytes()


def test_the_config_tells_where_the_weights_come_from(finished: Path) -> None:
    config = read_config(finished)
    assert config["model"] == {"type": "TinyConfig", "width": 32, "depth": 2, "dropout": 0.1}
    assert config["train"] == dials(steps=6, **OFTEN).to_dict()
    assert config["step"] == 6
    assert config["manifest_hash"] == "0" * 64
    assert config["software"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_the_newest_falls_back_to_the_one_before(run: Path, name: str) -> None:
    store = CheckpointStore(run)
    newest, before, _ = store.steps()
    for number, damage in enumerate(DAMAGES):
        whole = (newest / name).read_bytes()
        damage(newest / name)
        found, faults = store.newest()
        assert found == before, (name, number)
        assert len(faults) == 1 and faults[0].startswith("step-00000006: ")
        (newest / name).write_bytes(whole)
    assert store.newest() == (newest, [])


def test_resuming_from_a_damaged_newest_ends_where_an_undamaged_run_ends(run: Path, tmp_path: Path) -> None:
    _flip(0.5)(run / "checkpoints/step-00000006/model.safetensors")
    events: list[dict[str, Any]] = []
    config = dials(steps=8, **OFTEN)
    train(tiny(), TinySource(), config, run, on_event=events.append)
    assert [e["step"] for e in events if e["event"] == "start"] == [5]
    assert any("model.safetensors has changed" in e.get("message", "") for e in events)
    assert (run / "checkpoints/step-00000006.corrupt").is_dir()
    control = tmp_path / "control"
    train(tiny(), TinySource(), dials(steps=6, **OFTEN), control)
    train(tiny(), TinySource(), config, control)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (run / name).read_bytes() == (control / name).read_bytes()


def test_no_intact_checkpoint_is_an_error_and_not_a_fresh_start(run: Path) -> None:
    for path in CheckpointStore(run).steps():
        _truncate(0.5)(path / module.STATE)
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is intact"):
        train(tiny(), TinySource(), dials(steps=8), run)
    with pytest.raises(ModelCorruptError, match="is intact"):
        load_model(run, build=build)


def test_a_crash_at_any_moment_of_saving_loses_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crash before each file operation in turn: what is found then is whole, the old one or the new one."""
    state = TrainState(tiny(seed=5), dials(muon=True))
    state.step = 7
    config = describe(state.technique, dials(muon=True), {})
    calls, limit = 0, 0

    def crashing(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > limit:
                raise Crash
            return original(*args, **options)

        return wrapped

    for name in (
        "save_model",
        "save_file",
        "_write_json",
        "_sync",
        "_replace_text",
        "_link_or_copy",
        "_remove",
    ):
        monkeypatch.setattr(module, name, crashing(getattr(module, name)))
    monkeypatch.setattr(Path, "rename", crashing(Path.rename))
    monkeypatch.setattr(Path, "replace", crashing(Path.replace))
    seen = set()
    while True:
        calls = 0
        try:
            CheckpointStore(run).save(state.snapshot(config, {}))
            break
        except Crash:
            found, faults = CheckpointStore(run).newest()
            assert found is not None and faults == []
            seen.add(found.name)
            limit += 1
    assert limit > 20
    assert seen == {"step-00000006", "step-00000007"}
    calls = -(10**6)
    CheckpointStore(run).tidy(run / "checkpoints/step-00000007")
    assert not list(run.rglob("*.partial"))
    assert json.loads((run / "config.json").read_text())["step"] == 7


def test_a_full_disk_is_told_and_the_old_checkpoint_stays(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left.*Free some disk space"):
        train(tiny(), TinySource(), dials(steps=8, muon=True), run)
    assert CheckpointStore(run).newest() == (run / "checkpoints/step-00000006", [])
    assert not list(run.rglob("*.partial"))


def test_a_run_folder_a_checkpoint_and_a_copy_load_alike(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "log.jsonl"))
    folders = [run, run / "checkpoints/step-00000006", tmp_path / "copy"]
    weights = [load_model(folder, ema=False, build=build).state_dict() for folder in folders]
    averages = [load_model(folder, build=build).state_dict() for folder in folders]
    for name, tensor in weights[0].items():
        assert all(torch.equal(other[name], tensor) for other in weights)
        assert all(torch.equal(other[name], averages[0][name]) for other in averages)
    assert not torch.equal(weights[0]["inward.weight"], averages[0]["inward.weight"])
    assert torch.equal(weights[0]["calls"], averages[0]["calls"])  # a buffer has no average
    assert not load_model(run, build=build).training


def test_models_that_are_not_there_or_not_whole_are_told_apart(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no model in"):
        open_model(tmp_path / "nowhere")
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "log.jsonl"))
    _flip(0.5)(copy / "ema.safetensors")
    with pytest.raises(ModelCorruptError, match=r"ema.safetensors has changed"):
        load_model(copy, build=build)
    with pytest.raises(ModelCorruptError, match="do not fit"):
        load_model(run, build=lambda config: build({**config, "width": 48}))


def test_a_technique_of_the_registry_comes_back_by_its_config(tmp_path: Path) -> None:
    config = AutoencoderConfig(size=8, widths=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1), latent=4)
    model = registry.build(config)
    train(model, TinySource(), dials(steps=2, ema=0.0), tmp_path)
    for ema in (True, False):
        loaded = load_model(tmp_path, ema=ema)
        assert loaded.config == config
        assert all(torch.equal(loaded.state_dict()[k], v) for k, v in model.state_dict().items())
