"""The measures follow when real pictures are spoilt: with judges trained here, and with those that ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imagewright.data.loader import CaptionedFolder
from imagewright.evaluation.copies import CopyFinder
from imagewright.evaluation.features import JudgeSpace, Reals, training_pictures
from imagewright.evaluation.ladder import LADDER, climb, monotone
from imagewright.evaluation.prompts import training_rows
from imagewright.refine import judge
from imagewright.refine.judge import Judges

SHIPPED = Path(judge.__file__).parents[1] / "assets" / "judges"


def materials(judges: Judges, folder: CaptionedFolder) -> tuple[np.ndarray, Reals, CopyFinder]:
    training = training_pictures(folder, JudgeSpace(judges), judges.size)
    held = folder.heldout(10**6, 0)
    held_rgba = np.asarray(folder.packed(judges.size)[held])
    stickers = training_rows(folder, 10**6, 0)[: len(held)]
    return held_rgba, training.of(stickers), CopyFinder(training, held_rgba, judges.embed(held_rgba))


@pytest.fixture(scope="module", params=["trained here", "shipped"])
def ready(
    request: pytest.FixtureRequest, shapes: CaptionedFolder
) -> tuple[Judges, tuple[np.ndarray, Reals, CopyFinder]]:
    if request.param == "shipped" and not (SHIPPED / "judges.json").exists():
        pytest.skip("no judges ship")
    judges = Judges(SHIPPED) if request.param == "shipped" else request.getfixturevalue("judges")
    return judges, materials(judges, shapes)


@pytest.mark.parametrize("name", LADDER)
def test_each_way_to_spoil_pictures_moves_its_measure(ready: tuple, name: str) -> None:
    judges, parts = ready
    values = climb(LADDER[name], judges, *parts)
    assert monotone(LADDER[name], values), values


def test_a_measure_that_does_not_follow_is_noticed() -> None:
    assert not monotone(LADDER["blur"], [0.0, 0.1, 0.1, 0.2])
    assert not monotone(LADDER["dropped modes"], [0.9, 0.5, 0.6, 0.1])


def test_at_most_a_hundredth_of_the_held_out_pictures_is_called_a_copy(ready: tuple) -> None:
    held, _, finder = ready[1]
    features = ready[0].embed(held)
    assert finder.copied(finder.nearest(held, features)).mean() <= 0.02
    training = finder.training
    assert finder.copied(finder.nearest(training.rgba(slice(50)), training.features[:50])).mean() == 1
