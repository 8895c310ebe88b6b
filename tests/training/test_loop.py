"""The loop: it learns, its log can be read; what goes wrong is told at once and costs no checkpoint."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image
from tiny import TinyConfig, TinyDenoiser, TinyPair, TinySource, dials, tiny
from torch import Tensor

from imagewright.data.batch import Batch
from imagewright.errors import CheckpointError, DivergedError, TrainingError
from imagewright.models.technique import Cond, Technique
from imagewright.training.checkpoint import CheckpointStore, open_model
from imagewright.training.feed import Feed
from imagewright.training.journal import Event, read_log
from imagewright.training.loop import _Run, train


def _events(out: Path, name: str) -> list[Event]:
    return [e for e in read_log(out / "log.jsonl") if e["event"] == name]


@pytest.mark.parametrize("muon", [False, True])
def test_a_run_learns_and_says_so(tmp_path: Path, muon: bool) -> None:
    config = dials(steps=300, lr=3e-3, muon=muon, heldout_every=100, batch=16, ema=0.95)
    report = train(tiny(dropout=0.0), TinySource(), config, tmp_path)
    heldout = [e["loss"] for e in _events(tmp_path, "heldout")]
    losses = [e["loss"] for e in _events(tmp_path, "step")]
    assert len(heldout) == 3 and heldout[-1] < 0.6 * losses[0]
    assert losses[-1] < 0.6 * losses[0]
    assert (report.step, report.reason, report.heldout) == (300, "steps", heldout[-1])
    assert report.checkpoint == tmp_path / "checkpoints/step-00000300"


def test_each_line_of_the_log_has_what_a_reader_needs(tmp_path: Path) -> None:
    seen: list[Event] = []
    train(tiny(), TinySource(), dials(steps=40), tmp_path, on_event=seen.append)
    assert seen == list(read_log(tmp_path / "log.jsonl"))
    assert [e["event"] for e in seen if e["event"] != "step"] == ["start", "checkpoint", "stop"]
    steps = _events(tmp_path, "step")
    assert [e["step"] for e in steps] == [*range(1, 11), 20, 30, 40]
    keys = {"loss", "largest", "grad_norm", "lr", "data_seconds", "pictures_per_second", "elapsed"}
    assert all(keys <= set(e) for e in steps)
    assert steps[0]["lr"] == pytest.approx(1.5e-4) and steps[4]["lr"] == pytest.approx(3e-4)


def test_two_phases_train_their_own_parameters_at_their_own_pace(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = TinyPair(TinyConfig())
    start = {name: p.detach().clone() for name, p in pair.named_parameters()}
    grads: dict[str, list[bool]] = {"discriminator": [], "generator": []}
    loss = pair.loss

    def spying(batch: Batch, phase: str) -> dict[str, Tensor]:
        grads[phase].append(pair.D.weight.requires_grad)
        assert pair.G.weight.requires_grad != pair.D.weight.requires_grad
        return loss(batch, phase)

    pair.loss = spying  # type: ignore[method-assign]
    report = train(pair, TinySource(), dials(steps=5), tmp_path)
    assert grads == {"discriminator": [True] * 3, "generator": [False] * 5}
    assert all(p.requires_grad for p in pair.parameters())
    assert not torch.equal(start["G.weight"], pair.G.weight)
    assert not torch.equal(start["D.weight"], pair.D.weight)
    assert set(report.losses) == {f"{p}/{k}" for p in grads for k in ("loss", "grad_norm")}


def test_a_parameter_that_no_phase_trains_is_an_error(tmp_path: Path) -> None:
    class Forgetful(TinyPair):
        def param_groups(self, phase: str = "main") -> dict[str, list[torch.nn.Parameter]]:
            groups = super().param_groups(phase)
            return {**groups, "no_decay": []}

    with pytest.raises(TrainingError, match=r"No phase trains G.bias, D.bias"):
        train(Forgetful(TinyConfig()), TinySource(), dials(), tmp_path)


def test_gradients_are_clipped_and_their_norm_logged_before(tmp_path: Path) -> None:
    class Steep(TinyDenoiser):
        def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
            return {"loss": 1000 * super().loss(batch)["loss"]}

    torch.manual_seed(0)
    model = Steep(TinyConfig())
    report = train(model, TinySource(), dials(steps=1, clip=0.5), tmp_path)
    state = torch.cat([t.flatten() for t in _moments(report.checkpoint)])
    assert report.losses["grad_norm"] > 50
    assert state.norm().item() / (1 - 0.9) == pytest.approx(0.5, rel=1e-3)  # Adam's first moment of one step


def _moments(checkpoint: Path) -> list[Tensor]:
    from safetensors.torch import load_file

    saved = load_file(checkpoint / "state/optimizer.safetensors")
    return [tensor for name, tensor in saved.items() if name.endswith("|exp_avg")]


def test_previews_are_made_with_the_averaged_weights(tmp_path: Path) -> None:
    seen: list[tuple[int, bool, Tensor]] = []

    def preview(technique: Technique, step: int, path: Path) -> None:
        pixels = technique.sample(Cond(["a"], [0]), [1])
        Image.fromarray(((pixels[0] + 1) * 127.5).byte().permute(1, 2, 0).numpy(), "RGBA").save(path)
        weight = technique.get_parameter("inward.weight").detach().clone()
        seen.append((step, technique.training, weight))

    model = tiny()
    train(model, TinySource(), dials(steps=8, sample_every=4, lr=0.01), tmp_path, preview=preview)
    assert [(step, training) for step, training, _ in seen] == [(4, False), (8, False)]
    assert (tmp_path / "samples/step-00000008.png").is_file()
    assert [e["path"] for e in _events(tmp_path, "sample")][-1].endswith("step-00000008.png")
    assert model.training and not torch.equal(seen[-1][2], model.inward.weight)


class Forgetting(TinySource):
    """Held-out pictures grow stranger from the third look on."""

    def heldout(self, start: int, stop: int, seed: int) -> Batch | None:
        if start == 0:
            self.looks = getattr(self, "looks", 0) + 1
        batch = super().heldout(start, stop, seed)
        return batch and dataclasses.replace(batch, pixels=batch.pixels * max(1, self.looks - 1))


class TinyAutoregressive(TinyDenoiser):
    """Of the family that overfits first."""

    family = "autoregressive"


def test_overfitting_stops_the_family_that_is_prone_to_it_and_the_best_survives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TinyAutoregressive(TinyConfig(dropout=0.0))
    config = dials(steps=200, lr=3e-3, heldout_every=4, batch=64, keep=1, schedule="constant")
    report = train(model, Forgetting(), config, tmp_path)
    heldout = [(e["loss"], e["step"]) for e in _events(tmp_path, "heldout")]
    best = f"step-{min(heldout)[1]:08d}"
    assert report.reason == "overfitting" and report.step < 200 and min(heldout)[1] < report.step
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*")) == [best, report.checkpoint.name]
    assert (tmp_path / "checkpoints/best").read_text() == f"{best}\n"
    told = _events(tmp_path, "warning")[-1]["message"]
    assert "the held-out loss has risen" in told and best in told
    assert open_model(f"{tmp_path}@best")[1]["step"] == min(heldout)[1]
    assert train(model, Forgetting(), config, tmp_path).step == report.step  # giving the command again changes nothing


def test_a_collapse_stops_the_run_and_what_was_good_stays(tmp_path: Path) -> None:
    class TinyGAN(TinyPair):
        family = "gan"

    torch.manual_seed(0)
    looks = iter([0.8, 0.9] + [0.0] * 9)
    config = dials(steps=40, sample_every=2, checkpoint_minutes=0, keep=2)
    with pytest.raises(DivergedError, match=r"collapsed: pictures of different seeds.*last good .*step-00000005"):
        train(TinyGAN(TinyConfig()), TinySource(), config, tmp_path, checkup=lambda technique: {"spread": next(looks)})
    assert (tmp_path / "checkpoints/step-00000005").is_dir()
    assert [e["spread"] for e in _events(tmp_path, "checkup")] == [0.8, 0.9] + [0.0] * 5
    assert "hardly differ" in _events(tmp_path, "warning")[0]["message"]


def test_watching_does_not_change_the_training(tmp_path: Path) -> None:
    watched, left = tiny(), tiny()
    busy = dials(heldout_every=1, sample_every=1, checkpoint_minutes=0, keep=1)
    train(watched, TinySource(), busy, tmp_path / "a", preview=lambda technique, step, path: torch.rand(3))
    train(left, TinySource(), dials(), tmp_path / "b")
    for name, tensor in watched.state_dict().items():
        assert torch.equal(tensor, left.state_dict()[name]), name


def test_reading_a_step_late_as_on_a_gpu_changes_neither_weights_nor_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = train(tiny(), TinySource(), dials(), tmp_path / "prompt")
    original = _Run.__init__

    def lagging(self: _Run, *arguments: Any) -> None:
        original(self, *arguments)
        self.lag = 1

    monkeypatch.setattr(_Run, "__init__", lagging)
    late = train(tiny(), TinySource(), dials(), tmp_path / "late")
    assert late.losses == prompt.losses
    logs = [[e["loss"] for e in _events(tmp_path / run, "step")] for run in ("prompt", "late")]
    assert logs[0] == logs[1]
    source = TinySource(poison=5)
    with pytest.raises(DivergedError, match="loss is nan in step 6"):
        train(tiny(), source, dials(), tmp_path / "poisoned")
    assert source.asked == [*range(6), 6]


def test_a_technique_is_compiled_if_it_can_be(tmp_path: Path) -> None:
    class Compilable(TinyDenoiser):
        compiled = 0

        def compile_(self) -> None:
            self.compiled += 1

    torch.manual_seed(0)
    model = Compilable(TinyConfig())
    train(model, TinySource(), dials(compile=True), tmp_path / "can")
    train(tiny(), TinySource(), dials(compile=True), tmp_path / "cannot")
    assert model.compiled == 1 and _events(tmp_path / "can", "warning") == []
    assert "cannot be compiled" in _events(tmp_path / "cannot", "warning")[0]["message"]


# things that go wrong


class Poisoned(TinyDenoiser):
    """Goes bad in step 5: in its loss, its gradient, its weights, or a buffer that no loss looks at."""

    def __init__(self, where: str) -> None:
        super().__init__(TinyConfig())
        self.where = where
        self.inward.weight.register_hook(lambda g: g * math.nan if self._now("gradient") else g)

    def _now(self, where: str) -> bool:
        return self.where == where and self.calls.item() == 6

    def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
        losses = super().loss(batch)
        with torch.no_grad():
            if self._now("weight"):
                self.inward.weight[0, 0] = math.inf
            if self._now("buffer"):
                self.spare[1] = math.nan
        if self._now("loss"):
            losses["loss"] = losses["loss"] * math.nan
        return losses


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("data", "loss is nan in step 6"),
        ("loss", "loss is nan in step 6"),
        ("gradient", "grad_norm is nan in step 6"),
        ("weight", "not finite after step 6"),
        ("buffer", "not finite after step 6"),
    ],
)
def test_a_nan_stops_the_run_within_a_step_unsaved(tmp_path: Path, where: str, message: str) -> None:
    torch.manual_seed(0)
    model, source = Poisoned(where), TinySource(poison=5 if where == "data" else None)
    with pytest.raises(DivergedError, match=rf"{message}.*The last good checkpoint is .*step-00000005"):
        train(model, source, dials(checkpoint_minutes=0), tmp_path)
    assert source.asked == [0, 1, 2, 3, 4, 5]
    newest, faults = CheckpointStore(tmp_path).newest()
    assert newest == tmp_path / "checkpoints/step-00000005" and faults == []
    assert message in _events(tmp_path, "error")[0]["message"]
    assert (tmp_path / "model.safetensors").read_bytes() == (newest / "model.safetensors").read_bytes()


@pytest.mark.parametrize("where", ["weight", "data"])
def test_a_nan_is_never_saved_either_where_checkpoints_are_rare(tmp_path: Path, where: str) -> None:
    torch.manual_seed(0)
    model, source = Poisoned(where), TinySource(poison=5 if where == "data" else None)
    with pytest.raises(DivergedError, match=r"in step [67].*no good checkpoint yet"):
        train(model, source, dials(), tmp_path)
    assert CheckpointStore(tmp_path).newest() == (None, [])


def test_out_of_memory_is_told_in_plain_words(tmp_path: Path) -> None:
    class Hungry(TinyDenoiser):
        def loss(self, batch: Batch, phase: str = "main") -> dict[str, Tensor]:
            torch.empty(2**55)
            return super().loss(batch)

    with pytest.raises(TrainingError, match=r"Out of memory with a batch of 8. Halve the batch to 4"):
        train(Hungry(TinyConfig()), TinySource(), dials(), tmp_path)
    assert "Halve the batch" in _events(tmp_path, "error")[0]["message"]


def test_another_model_cannot_go_on_in_the_same_folder(tmp_path: Path) -> None:
    train(tiny(), TinySource(), dials(steps=2), tmp_path)
    with pytest.raises(CheckpointError, match=r"model.width: 32 -> 16; model.depth: 2 -> 3"):
        train(tiny(width=16, depth=3), TinySource(), dials(steps=4), tmp_path)
    with pytest.raises(CheckpointError, match=r"train.muon: False -> True"):
        train(tiny(), TinySource(), dials(steps=4, muon=True), tmp_path)


def test_other_dials_may_change_and_the_log_says_which(tmp_path: Path) -> None:
    train(tiny(), TinySource(), dials(steps=2), tmp_path)
    changed = dials(steps=4, lr=1e-4, batch=4, minutes=5)
    report = train(tiny(), TinySource(manifest_hash="1" * 64), changed, tmp_path)
    assert report.step == 4
    message = _events(tmp_path, "changed")[0]["message"]
    assert "train.lr: 0.0003 -> 0.0001" in message and f"manifest_hash: {'0' * 64} -> {'1' * 64}" in message
    assert train(tiny(), TinySource(manifest_hash="1" * 64), changed, tmp_path).step == 4  # nothing left to do
    assert len(_events(tmp_path, "changed")) == 1


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(TrainingError, match="Another process is training"):
        train(tiny(), TinySource(), dials(), tmp_path)
    assert train(tiny(), TinySource(), dials(), tmp_path).step == 12


# ways to stop


class Interrupting(TinySource):
    """Someone presses Ctrl-C (or sends `number`) `times` times while step 3 is on."""

    number, times = signal.SIGINT, 1

    def batch(self, seed: int, step: int, start: int, stop: int, total: int) -> Batch:
        for _ in range(self.times if step == 3 else 0):
            signal.raise_signal(self.number)
        return super().batch(seed, step, start, stop, total)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals) -> None:
    source = Interrupting()
    source.number = number
    handler = signal.getsignal(number)
    report = train(tiny(), source, dials(), tmp_path)
    assert (report.step, report.reason) == (4, "interrupted")
    assert CheckpointStore(tmp_path).newest() == (report.checkpoint, [])
    assert signal.getsignal(number) is handler
    whole = train(tiny(), TinySource(), dials(), tmp_path / "control")
    rest = train(tiny(), TinySource(), dials(), tmp_path)
    assert (rest.step, rest.reason) == (12, "steps")
    for name in ("model.safetensors", "ema.safetensors", "state/optimizer.safetensors"):
        assert (rest.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes()


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    source = Interrupting()
    source.times = 2
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), source, dials(), tmp_path)
    assert CheckpointStore(tmp_path).newest() == (None, [])


def test_minutes_are_a_budget_over_all_resumes(tmp_path: Path) -> None:
    config = dials(steps=10**6, minutes=0.01)
    first = train(tiny(), TinySource(pause=0.02), config, tmp_path)
    assert first.reason == "minutes" and 0.6 <= first.seconds < 3
    again = train(tiny(), TinySource(), config, tmp_path)
    assert (again.step, again.reason) == (first.step, "minutes")
    longer = train(tiny(), TinySource(pause=0.02), dials(steps=10**6, minutes=0.02), tmp_path)
    assert longer.step > first.step and 1.2 <= longer.seconds < 5


def test_a_budget_too_short_for_the_schedule_is_foretold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagewright.training.clock.FORECAST", 5)
    train(tiny(), TinySource(), dials(steps=10**6, minutes=0.03), tmp_path)
    assert any("the minutes end near step" in e["message"] for e in _events(tmp_path, "warning"))


def test_a_feed_that_fetches_ahead_gives_the_same_batches() -> None:
    def pixels(ahead: bool) -> list[Any]:
        with Feed(TinySource(), 3, (0, 4), 4, torch.device("cpu")) as feed:
            if ahead:
                from concurrent.futures import ThreadPoolExecutor

                feed._pool = ThreadPoolExecutor(max_workers=1)  # as for a GPU
            steps = [feed.batch(step).pixels for step in (5, 6, 7, 2)]
            return [*steps, *(batch.pixels for batch in feed.heldout())]

    for one, other in zip(pixels(False), pixels(True), strict=True):
        assert torch.equal(one, other)
