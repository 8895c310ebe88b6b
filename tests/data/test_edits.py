"""Instruction edits: the two pictures differ in what the instruction names and in nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sticker_fixtures import read_records

from imagewright.data import stickers
from imagewright.data.edits import KINDS, compose
from imagewright.data.loader import CaptionedFolder, before_rows
from imagewright.data.recolour import named_share
from imagewright.data.scenes import Studio, credits_of, things
from imagewright.data.splits import unseen_pair
from imagewright.errors import DataError
from imagewright.text import Tokenizer
from imagewright.training.sources import PixelSource

Pair = tuple[dict[str, Any], dict[str, Any]]


def studio_of(small_set: Path, out: Path, unseen: bool = False) -> Studio:
    stickers = [record for record in read_records(small_set) if record["kind"] == "sticker"]
    (out / "images" / "edits").mkdir(parents=True, exist_ok=True)
    return Studio(small_set, out, 48, 0, things(stickers), credits_of(stickers), unseen)


@pytest.fixture
def edits(small_set: Path, tmp_path: Path) -> tuple[Path, list[Pair]]:
    studio = studio_of(small_set, tmp_path / "edits")
    return studio.out, [compose(studio, index) for index in range(80)]


def pixels(out: Path, record: dict[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(out / record["file_name"], formats=("PNG",)))


def kind(edits: tuple[Path, list[Pair]], name: str) -> list[Pair]:
    return [pair for pair in edits[1] if pair[1]["edit"]["kind"] == name]


def test_every_kind_of_edit_is_there(edits: tuple[Path, list[Pair]]) -> None:
    assert {after["edit"]["kind"] for _, after in edits[1]} == set(KINDS)


@pytest.mark.parametrize("name", ["colour", "add", "remove", "replace"])
def test_what_is_not_named_stays_pixel_by_pixel(edits: tuple[Path, list[Pair]], name: str) -> None:
    for before, after in kind(edits, name):
        changed = np.zeros((48, 48), bool)
        for record in (before, after):
            others = {tuple(o["box"]) for o in (after if record is before else before)["objects"]}
            for i, o in enumerate(record["objects"]):
                touched = tuple(o["box"]) not in others or (record is after and i in after["edit"]["changed"])
                left, top, right, bottom = o["box"]
                changed[top:bottom, left:right] |= touched
        same = (pixels(edits[0], before) == pixels(edits[0], after)).all(-1)
        assert same[~changed].all()
        assert not same.all(), after["edit"]


def test_a_new_colour_is_what_the_words_say(edits: tuple[Path, list[Pair]]) -> None:
    assert kind(edits, "colour")
    for _, after in kind(edits, "colour"):
        (which,) = after["edit"]["changed"]
        one = after["objects"][which]
        assert one["colour"] in after["edit"]["instruction"] and one["colour"] in after["text"]
        left, top, right, bottom = one["box"]
        cut = pixels(edits[0], after)[top:bottom, left:right]
        if after["background"] is None:
            assert named_share(cut, one["colour"]) > 0.3


def test_objects_come_and_go_as_said(edits: tuple[Path, list[Pair]]) -> None:
    for before, after in kind(edits, "add"):
        (new,) = {o["label"] for o in after["objects"]} - {o["label"] for o in before["objects"]}
        assert new in after["edit"]["instruction"] and len(after["objects"]) == 2
    for before, after in kind(edits, "remove"):
        (gone,) = {o["label"] for o in before["objects"]} - {o["label"] for o in after["objects"]}
        assert gone in after["edit"]["instruction"] and len(after["objects"]) == 1


def test_the_background_and_the_style_change_alone(edits: tuple[Path, list[Pair]]) -> None:
    for before, after in kind(edits, "background"):
        assert before["background"] != after["background"] and before["objects"] == after["objects"]
        opaque = pixels(edits[0], after)[0, 0, 3] == 255
        assert opaque == (after["background"] is not None)
    for before, after in kind(edits, "style"):
        assert before["style"] != after["style"] and before["text"] == after["text"]
        assert before["background"] == after["background"]


def test_pairs_that_are_held_out_meet_in_the_test_alone(edits: tuple[Path, list[Pair]], small_set: Path) -> None:
    def met(pair: Pair) -> list[tuple[str, str]]:
        bases = [[o["base"] for o in record["objects"]] for record in pair]
        found = [(b[0], b[1]) for b in bases if len(b) == 2]
        if pair[1]["edit"]["kind"] == "replace":
            (which,) = pair[1]["edit"]["changed"]
            found.append((bases[0][which], bases[1][which]))
        return found

    assert any(met(pair) for pair in edits[1])
    assert not any(unseen_pair(a, b) for pair in edits[1] for a, b in met(pair))
    unseen = studio_of(small_set, edits[0] / "unseen", unseen=True)
    tests = [compose(unseen, index) for index in range(10)]
    assert all(met(pair) and all(unseen_pair(a, b) for a, b in met(pair)) for pair in tests)
    assert all(record["split"] == "unseen_pairs" for pair in tests for record in pair)


def test_an_edit_is_a_function_of_its_index(edits: tuple[Path, list[Pair]], small_set: Path, tmp_path: Path) -> None:
    again = compose(studio_of(small_set, tmp_path), 3)
    assert again == edits[1][3]


def test_a_set_with_edits_gives_pairs_to_train_on(tarballs: Path, tmp_path: Path) -> None:
    stickers.build(tmp_path / "set", source=tarballs, size=48, scenes=5, edits=20, workers=1)
    folder = CaptionedFolder(tmp_path / "set")
    rows = folder.indices(0, 0, 400, edits_share=0.5)
    edited = folder.before[rows] != rows
    assert 0.4 < edited.mean() < 0.6
    assert all(folder.records[i]["kind"] == "edit" for i in rows[edited])
    told = folder.captions(0, 0, rows)
    assert all(
        text.lower() == folder.records[i]["edit"]["instruction"].lower()
        for i, text, one in zip(rows, told, edited, strict=True)
        if one
    )
    plain = folder.indices(0, 0, 400)
    assert (folder.before[plain] == plain).all(), "without a share for edits there are none"
    source = PixelSource(folder, 16, Tokenizer(), edits_share=0.5)
    batch = source.batch(0, 0, 0, 40, 40)
    assert batch.before is not None and batch.edited is not None and batch.pixels is not None
    same = (batch.before == batch.pixels).flatten(1).all(1)
    assert (same == ~batch.edited).all() and (batch.style[batch.edited] == 0).all()


def test_a_missing_picture_before_is_said(small_set: Path) -> None:
    records = [*read_records(small_set), {"file_name": "images/x.png", "before": "images/gone.png"}]
    with pytest.raises(DataError, match="gone"):
        before_rows(records)
