"""An evaluation from the request to the report, of models whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from answering import Answering, One

from imagewright.data.loader import CaptionedFolder
from imagewright.errors import DataError, MissingExtraError, ModelError, ModelNotFoundError, OptionError
from imagewright.evaluation import plugins, verdicts
from imagewright.evaluation.drawing import ROWS, drawn
from imagewright.evaluation.evaluate import LEAST, evaluate, plain, save, worst
from imagewright.evaluation.prompts import HELD_OUT, SCENE, SEEN, items
from imagewright.refine.judge import Judges


def asked(judges: Judges, shapes: CaptionedFolder, out: Path, engine: Answering, **more: object):
    return evaluate("answer", shapes.path, out, n=40, judges=judges, catalog=One(engine), costs=False, **more)


def test_a_model_that_answers_with_real_pictures_beats_one_that_draws_noise(
    judges: Judges, shapes: CaptionedFolder, tmp_path: Path
) -> None:
    engine = Answering(shapes)
    good = asked(judges, shapes, tmp_path, engine)
    again = asked(judges, shapes, tmp_path, engine)
    assert engine.drawn == 40  # the second time, all pictures were there
    assert plain(again) == plain(good)
    noise = asked(judges, shapes, tmp_path / "noise", Answering(shapes, grey=True))
    for name in ("coverage", "style", f"match, {SEEN}"):
        assert good.model[name].value > noise.model[name].value, name
    assert good.model["KD"].value < noise.model["KD"].value
    assert noise.model["copies, unseen captions"].value == 0
    assert good.copycat["copies, unseen captions"].value == 1


def test_pictures_are_drawn_side_by_side_and_an_interrupted_drawing_goes_on(
    shapes: CaptionedFolder, tmp_path: Path
) -> None:
    asked, told = items("stickers", shapes, 50, ("noto", "flat")), []
    quick, slow = Answering(shapes, grey=True, concurrency=4), Answering(shapes, grey=True)
    slow.broken = 20  # the 21st picture fails
    with pytest.raises(ModelError, match="broken"):
        drawn(slow, slow.find("answer"), asked, tmp_path / "slow")
    kept = len(list((tmp_path / "slow").rglob("*.png")))
    assert 20 <= kept < ROWS
    slow.broken = None
    alone = drawn(slow, slow.find("answer"), asked, tmp_path / "slow", lambda *counts: told.append(counts))
    assert told == [("drawing", done, 50) for done in range(kept + 1, 51)]
    beside = drawn(quick, quick.find("answer"), asked, tmp_path / "quick")
    assert quick.most > 1 and slow.most == 1
    assert [p.tobytes() for p in beside] == [p.tobytes() for p in alone] and len(alone[10:20]) == 10


def test_the_report_tells_n_intervals_and_the_nearest_pictures(
    judges: Judges, shapes: CaptionedFolder, tmp_path: Path
) -> None:
    result = asked(judges, shapes, tmp_path, Answering(shapes))
    save(result, tmp_path)
    told = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert told["counts"] == {SEEN: 20, HELD_OUT: 8, SCENE: 12} and told["judges"] == judges.version
    share = told["figures"]["model"]["style"]
    assert share["low"] <= share["value"] <= share["high"] and share["n"] == 40
    assert len(told["copies"]) == 10 and (shapes.path / told["copies"][0]["nearest"]).exists()
    rows = {row.measure: row for row in verdicts.rows(result)}
    assert rows["style"].target == "≥ 95.0 %" and rows["style"].reached is (result.model["style"].value >= 0.95)
    assert any("wide" in line for line in verdicts.facts_text(result.facts))
    assert verdicts.samples(result).width > 500
    pairs = verdicts.copies(result)
    assert pairs.width == 4 * 134 + 6 and len(worst(result)) == 10


def test_a_users_folder_has_no_scenes_and_uses_held_out_captions(
    judges: Judges, shapes: CaptionedFolder, tmp_path: Path
) -> None:
    found = items("own", shapes, 40, ("noto",))
    assert {item.kind for item in found} == {HELD_OUT} and len(found) == 40
    assert {item.style for item in found} == {"noto", None}
    assert len({item.seed for item in found}) == 40
    result = asked(judges, shapes, tmp_path, Answering(shapes), suite="own")
    assert not any(name.startswith("scenes") for name in result.model)


def test_prompts_are_fixed_and_scenes_are_pairs_that_no_training_scene_shows(shapes: CaptionedFolder) -> None:
    first, second = (items("stickers", shapes, 100, ("noto", "flat")) for _ in range(2))
    assert first == second
    shown = {record["base"] for record in shapes.records if record["kind"] == "scene"}
    pairs = [item for item in first if item.truth and item.truth["relation"]]
    assert pairs and not any(item.base in shown for item in pairs)
    held = {record["file_name"] for record in shapes.records if record["split"] != "train"}
    for item in first:
        if item.kind != SCENE:
            assert (shapes.records[item.row]["file_name"] in held) is (item.kind == HELD_OUT)


def test_what_cannot_be_evaluated_is_said(judges: Judges, shapes: CaptionedFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="say nothing"):
        evaluate("answer", shapes.path, tmp_path, n=LEAST - 1, judges=judges)
    with pytest.raises(OptionError, match="no suite"):
        asked(judges, shapes, tmp_path, Answering(shapes), suite="all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no usable pictures"):
        evaluate("answer", tmp_path / "empty", tmp_path, n=50, judges=judges)
    with pytest.raises(OptionError, match="no features"):
        plugins.load("resnet")


def test_plug_ins_need_their_packages_and_local_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as missing:
        plugins.load("dinov2")
    assert "imagewright[metrics]" in missing.value.fix
    monkeypatch.setattr(plugins, "find_spec", lambda name: True)
    with pytest.raises(ModelNotFoundError, match=r"no weights"):
        plugins.load("clip", tmp_path)
