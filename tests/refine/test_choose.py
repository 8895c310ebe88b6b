"""Choosing among tries: the best is kept, every rejected one is told, and nothing happens unless asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imagewright.engines.catalog import Catalog
from imagewright.errors import RequestError, UnsupportedError
from imagewright.refine.choose import TRIES, Judge
from imagewright.request import ImageRequest, ImageResult
from imagewright.workshop import Workshop


class Scored:
    """Looks up the score of a picture of the engine `fake` by the order in which pictures are shown."""

    def __init__(self, name: str, scores: Sequence[float]) -> None:
        self.name, self.scores = name, scores
        self.seen: list[tuple[Image.Image, str]] = []

    def score(self, picture: Image.Image, prompt: str) -> float:
        self.seen.append((picture, prompt))
        return self.scores[len(self.seen) - 1]


def make(judges: Sequence[Judge], watch: dict[str, Any] | None = None, **fields: Any) -> ImageResult:
    request = ImageRequest(prompt="a red fox", model="fake/blocks", **{"seed": 5, **fields})
    return Workshop(Catalog(), lambda: judges).make(request, **(watch or {}))


def chosen(result: ImageResult, index: int = 0) -> dict[str, Any]:
    steps = [step for step in result.records[index]["refine"] if step["step"] == "choose"]
    assert len(steps) == 1
    return steps[0]


def test_the_best_of_four_is_kept_and_the_others_are_told() -> None:
    judge = Scored("match", [0.2, 0.9, 0.4, 0.7])
    result = make([judge], best_of=4)
    assert [prompt for _, prompt in judge.seen] == ["a red fox"] * 4
    assert len(result) == 1 and result.records[0]["seed"] == 6
    assert chosen(result)["tried"] == 4 and chosen(result)["scores"] == {"match": 0.9}
    assert chosen(result)["rejected"] == [
        {"seed": seed, "scores": {"match": score}, "reason": "another scores higher"}
        for seed, score in [(5, 0.2), (7, 0.4), (8, 0.7)]
    ]
    assert result.adjustments == ()


def test_the_chosen_picture_is_made_again_by_its_own_seed() -> None:
    picked = make([Scored("match", [0.2, 0.1, 0.8])], best_of=3)
    alone = make([], seed=picked.records[0]["seed"])
    assert np.array_equal(np.asarray(picked[0]), np.asarray(alone[0]))
    assert alone.records[0]["refine"] == []  # off unless asked for


def test_a_bar_is_tried_for_until_one_picture_reaches_it() -> None:
    judge = Scored("match", [0.2, 0.5, 0.8, 1.0])
    result = make([judge], min_match=0.6)
    assert len(judge.seen) == 3 and result.records[0]["seed"] == 7
    assert [one["reason"] for one in chosen(result)["rejected"]] == [
        "match 0.20 is below 0.6",
        "match 0.50 is below 0.6",
    ]
    assert result.adjustments == ()


def test_a_bar_that_nothing_reaches_is_said_and_the_best_is_returned() -> None:
    judge = Scored("match", [0.1, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.9])
    result = make([judge], min_match=0.6)
    assert len(judge.seen) == TRIES and result.records[0]["seed"] == 6
    (told,) = result.adjustments
    assert (told.field, told.requested, told.used) == ("min_match", 0.6, 0.4)
    assert "none of 8 tries" in told.reason
    assert result.records[0]["adjustments"][0]["field"] == "min_match"


def test_the_number_of_tries_is_the_users() -> None:
    judge = Scored("match", [0.1] * 9)
    assert chosen(make([judge], min_match=0.6, max_tries=3))["tried"] == 3
    assert chosen(make([judge], min_match=0.6, best_of=2, max_tries=1))["tried"] == 2


def test_one_that_reaches_both_bars_beats_a_higher_product() -> None:
    match, realism = Scored("match", [1.0, 0.7]), Scored("realism", [0.5, 0.6])
    result = make([match, realism], best_of=2, min_match=0.6, min_realism=0.55)
    assert result.records[0]["seed"] == 6
    assert chosen(result)["rejected"][0]["reason"] == "realism 0.50 is below 0.55"


def test_several_pictures_are_each_chosen_from_seeds_of_their_own() -> None:
    judge = Scored("match", [0.2, 0.9, 0.8, 0.1])
    result = make([judge], best_of=2, n=2)
    assert [record["seed"] for record in result.records] == [6, 7]
    assert [one["seed"] for i in range(2) for one in chosen(result, i)["rejected"]] == [5, 8]


def test_progress_never_goes_back_and_ends_at_the_whole() -> None:
    told: list[float] = []
    make(
        [Scored("match", [0.2, 0.9, 0.8, 0.1])], {"progress": lambda done, total: told.append(done / total)}, best_of=4
    )
    assert told == [0.25, 0.5, 0.75, 1.0]


def test_a_seed_is_drawn_where_none_is_given() -> None:
    result = make([Scored("match", [0.2, 0.9, 0.3])], best_of=3, seed=None)
    first, third = (one["seed"] for one in chosen(result)["rejected"])
    assert [first + 1, first + 2] == [result.records[0]["seed"], third]


def test_seeds_wrap_at_the_end() -> None:
    assert make([Scored("match", [0.2, 0.9])], best_of=2, seed=2**32 - 1).records[0]["seed"] == 0


def test_what_nobody_can_judge_is_an_error() -> None:
    with pytest.raises(UnsupportedError, match="realism"):
        make([Scored("match", [0.5])], min_realism=0.5)
    with pytest.raises(UnsupportedError, match="judge"):
        make([], best_of=2)


def test_a_trace_follows_one_picture() -> None:
    with pytest.raises(RequestError, match="one picture"):
        make([Scored("match", [0.5] * 2)], {"trace": lambda *shown: None}, best_of=2)


@pytest.mark.parametrize("fields", [{"best_of": 0}, {"min_match": 1.5}, {"min_realism": -0.1}, {"max_tries": 0}])
def test_impossible_numbers_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        make([Scored("match", [0.5] * 8)], **fields)
