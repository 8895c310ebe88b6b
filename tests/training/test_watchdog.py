"""The watchdog: what stops a run, what only warns, and what it must let pass."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from imagewright.errors import DivergedError, TrainingError
from imagewright.training.watchdog import FACTOR, PATIENCE, STOP, STOP_OVERFIT, Watchdog, memory_errors


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm", "generator/loss"])
def test_a_number_that_is_not_finite_stops_at_once(name: str, bad: float) -> None:
    with pytest.raises(DivergedError, match=rf"{name} is .* in step 7.*checkpoints/step-5.*lower lr"):
        Watchdog("checkpoints/step-5").observe(7, {name: bad})


def test_a_loss_that_ran_away_stops_the_run() -> None:
    dog = Watchdog()
    for step in range(100):
        dog.observe(step, {"loss": 1.0 - step / 200})
    with pytest.raises(DivergedError, match="no good checkpoint yet"):
        for step in range(100, 100 + PATIENCE):
            dog.observe(step, {"loss": 2 * FACTOR})
    assert dog.tracks["loss"].high == PATIENCE


def test_spikes_noise_and_tiny_losses_pass() -> None:
    dog = Watchdog()
    for step in range(400):
        spike = 100.0 if step % 3 == 0 and step > 10 else 1.0
        dog.observe(step, {"loss": spike})
    converged = Watchdog()
    converged.observe(0, {"loss": 1.0})
    for step in range(1, 300):
        converged.observe(step, {"loss": 1e-7 if step < 200 else 1e-5})
    rising = Watchdog()
    for step in range(1000):  # a KL warm-up
        rising.observe(step, {"loss": 1.0 + step})


def test_weights_are_looked_through() -> None:
    good = [
        torch.ones(3),
        torch.ones(2, dtype=torch.bfloat16),
        torch.zeros(0),
        torch.ones(2, dtype=torch.int8),
    ]
    dog = Watchdog()
    dog.check_tensors(1, good)
    for bad in (math.nan, math.inf, -math.inf):
        for position in (0, 17, 99):
            poisoned = torch.ones(100)
            poisoned[position] = bad
            with pytest.raises(DivergedError, match="not finite"):
                dog.check_tensors(1, [*good, poisoned])


def test_overfitting_is_counted_from_the_best() -> None:
    dog = Watchdog()
    told = []
    for round_ in range(12):
        for step in range(50):
            dog.observe(50 * round_ + step, {"loss": 1.0 / (1 + round_)})
        assert dog.improves(1.0 + 0.1 * abs(round_ - 4)) == (round_ <= 4)
        told.append(dog.overfitting)
    assert told == [0] * 5 + list(range(1, 8))


def test_overfitting_ends_the_run_of_a_family_that_is_prone_to_it() -> None:
    dogs = {family: Watchdog(family=family) for family in ("autoregressive", "diffusion")}
    for dog in dogs.values():
        for round_ in range(1 + STOP_OVERFIT):
            assert dog.overfit == ""
            dog.observe(round_, {"loss": 1.0 / (1 + round_)})
            dog.improves(1.0 + round_)
    assert f"risen {STOP_OVERFIT} times" in dogs["autoregressive"].overfit
    assert dogs["diffusion"].overfit == ""


@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_the_losses_of_opponents_are_watched_but_may_swing(phase: str) -> None:
    dog = Watchdog("step-3")
    for step in range(600):
        dog.observe(step, {f"{phase}/loss": 0.7 if step < 300 else 0.01 if step < 500 else 6.0})
    with pytest.raises(DivergedError, match=f"the {phase}'s loss has been above .*step-3"):
        for step in range(PATIENCE):
            dog.observe(600 + step, {f"{phase}/loss": 500.0})


def test_a_loss_that_crosses_zero_is_no_divergence() -> None:
    dog = Watchdog()
    for step in range(3000):
        dog.observe(step, {"loss": 2.0 - 4.0 * min(step, 1000) / 1000 + max(0, step - 1500) / 1000})
    with pytest.raises(DivergedError):
        for step in range(PATIENCE):
            dog.observe(3000 + step, {"loss": 100.0})


@pytest.mark.parametrize(
    "family,findings,means",
    [
        ("gan", {"spread": 0.01}, "pictures of different seeds hardly differ"),
        ("vae", {"kl": 1e-6}, "the KL is zero"),
        ("", {"perplexity": 3.0}, "most codes are no longer used"),
    ],
)
def test_a_collapse_is_doubted_then_stops_the_run(family: str, findings: dict[str, float], means: str) -> None:
    dog = Watchdog("step-5", family)
    dog.best = "step-4"
    healthy = {name: 400.0 for name in findings}
    assert dog.examine(1, healthy) == [] and dog.well
    told = [dog.examine(2 + i, findings) for i in range(STOP - 1)]
    assert [len(warnings) for warnings in told] == [0, 1, 0, 0] and means in told[1][0] and not dog.well
    twin = Watchdog(family=family)
    twin.load(json.loads(json.dumps(dog.state())), Path())
    assert Watchdog(family=family).examine(2, findings) == []
    with pytest.raises(DivergedError, match=rf"collapsed: {means}.*last good .* step-5.*best held-out .* step-4"):
        dog.examine(9, findings)
    with pytest.raises(DivergedError, match="collapsed"):
        twin.examine(9, findings)


def test_one_good_look_ends_the_doubt_and_copies_only_warn() -> None:
    dog = Watchdog(family="gan")
    for i in range(20):
        dog.examine(i, {"spread": 0.9 if i % STOP == 0 else 0.0})
    warnings = [w for i in range(20) for w in dog.examine(i, {"copies": 0.9})]
    assert len(warnings) == 1 and "memorisation" in warnings[0] and dog.examine(21, {"copies": 0.1}) == []


def test_its_state_is_json_and_is_taken_up_again(tmp_path: Path) -> None:
    dog, twin = Watchdog(str(tmp_path / "step-7")), Watchdog()
    (tmp_path / "step-7").mkdir()
    for step in range(20):
        dog.observe(step, {"loss": 1.0 + step})
    dog.improves(3.0)
    dog.examine(3, {"copies": 1.0, "perplexity": 7.0})
    twin.load(json.loads(json.dumps(dog.state())), tmp_path)
    assert twin.state() == dog.state() and twin.last_good == dog.last_good


@pytest.mark.parametrize(
    "error",
    [RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
     RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()],
)  # fmt: skip
def test_out_of_memory_says_to_halve_the_batch(error: Exception) -> None:
    with pytest.raises(TrainingError, match=r"batch of 64.*Halve the batch to 32"), memory_errors(64):
        raise error


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(64):
        raise RuntimeError("shapes do not match")
