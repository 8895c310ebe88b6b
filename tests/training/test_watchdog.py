"""The watchdog: what stops a run, what only warns, and what it must let pass."""

from __future__ import annotations

import json
import math

import pytest
import torch

from imagewright.errors import DivergedError, TrainingError
from imagewright.training.watchdog import FACTOR, PATIENCE, Watchdog, memory_errors


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
    assert dog.high == PATIENCE


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


def test_overfitting_is_told_once_in_a_while() -> None:
    dog = Watchdog()
    told = []
    for round_ in range(12):
        for step in range(50):
            dog.observe(50 * round_ + step, {"loss": 1.0 / (1 + round_)})
        told.append(dog.overfitting(1.0 + 0.1 * abs(round_ - 4)))
    assert [i for i, yes in enumerate(told) if yes] == [7, 10]


def test_its_state_is_json_and_is_taken_up_again() -> None:
    dog, twin = Watchdog(), Watchdog()
    for step in range(20):
        dog.observe(step, {"loss": 1.0 + step})
    dog.overfitting(3.0)
    twin.load(json.loads(json.dumps(dog.state())))
    assert twin.state() == dog.state()


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
