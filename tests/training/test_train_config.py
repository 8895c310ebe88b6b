"""The dials: JSON round trip, and mistakes named with the nearest right word."""

from __future__ import annotations

import json

import pytest

from imagewright.errors import TrainingError
from imagewright.training.config import TrainConfig


def test_a_config_survives_json() -> None:
    config = TrainConfig(batch=7, minutes=1.5, muon=True, schedule="cosine")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(TrainingError, match=r"'warmpu'.*Did you mean 'warmup'"):
        TrainConfig.from_dict({"warmpu": 3})
    with pytest.raises(TrainingError, match=r"There are: batch, .*weight_decay"):
        TrainConfig.from_dict({"zzzz": 3})


BAD = {
    "batch": 0,
    "steps": 0,
    "lr": float("nan"),
    "ema": 1.0,
    "schedule": "step",
    "precision": "fp16",
    "minutes": 0,
    "cooldown": 1.1,
    "seed": -1,
    "clip": -1,
    "keep": 0,
}


@pytest.mark.parametrize(("key", "value"), BAD.items())
def test_values_that_cannot_work_are_refused(key: str, value: object) -> None:
    with pytest.raises(TrainingError, match=key):
        TrainConfig.from_dict({key: value})
