"""The measures of edits: the truth passes, doing nothing fails, and harm to the rest is seen."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from imagewright.evaluation.edits import Triple, measured, shown, triples
from imagewright.refine.judge import Judges

sys.path.append(str(Path(__file__).parents[1] / "data"))
from sticker_fixtures import small_set, tarballs

__all__ = ["small_set", "tarballs"]
RULES = ("colour", "background", "remove")  # judged by pixels alone


@pytest.fixture
def asked(small_set: Path) -> list[Triple]:
    return triples(small_set, 40)


def test_the_truth_passes_and_doing_nothing_does_not(asked: list[Triple]) -> None:
    judges = Judges()
    truth = measured([one.after for one in asked], asked, judges)
    unchanged = measured([one.before for one in asked], asked, judges)
    for kind in RULES:
        assert truth[f"done: {kind}"].value == 1, kind
        assert unchanged[f"done: {kind}"].value <= 0.2, kind
    assert truth["kept"].value == unchanged["kept"].value == 1
    assert truth["PSNR to the truth"].value > unchanged["PSNR to the truth"].value + 10


def test_a_picture_that_was_spoilt_is_not_kept(asked: list[Triple]) -> None:
    spoilt = [Image.new("RGBA", one.after.size, "#10c060") for one in asked]
    assert measured(spoilt, asked, Judges())["kept"].value < 0.2


def test_the_sheet_shows_before_model_and_truth(asked: list[Triple]) -> None:
    page = shown(asked, [one.after for one in asked], count=8)
    assert page.width > page.height > 0
