"""An evaluation from the request to the report, of models whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagewright.data.loader import CaptionedFolder
from imagewright.engines.catalog import Catalog
from imagewright.engines.engine import Engine, ModelInfo
from imagewright.errors import DataError, MissingExtraError, ModelNotFoundError, OptionError
from imagewright.evaluation import plugins, verdicts
from imagewright.evaluation.evaluate import LEAST, evaluate, plain, save, worst
from imagewright.evaluation.prompts import HELD_OUT, SCENE, SEEN, items
from imagewright.refine.judge import Judges
from imagewright.request import Adjustment, Capabilities, ImageRequest
from imagewright.watch import Watch


class Answering(Engine):
    """Draws the real picture of a caption, of any split; `grey` draws grey noise instead."""

    name = "answering"

    def __init__(self, folder: CaptionedFolder, grey: bool = False) -> None:
        self.folder, self.grey, self.drawn = folder, grey, 0

    def models(self) -> Sequence[ModelInfo]:
        can = Capabilities(size=(64, 64), styles=("noto", "flat"), transparent=True)
        digest = "grey" if self.grey else "real"
        info = {"summary": "", "licence": "", "digest": digest}
        return [ModelInfo(name="answer", engine=self.name, technique="gan", capabilities=can, **info)]

    def _generate(
        self, request: ImageRequest, model: ModelInfo, watch: Watch
    ) -> tuple[list[Image.Image], list[Adjustment]]:
        self.drawn += 1
        rng = np.random.default_rng(request.seed)
        if self.grey:
            return [Image.fromarray(rng.integers(0, 255, (64, 64, 4), np.uint8), "RGBA")], []
        fitting = [r for r in self.folder.records if (r["text"], r["style"]) == (request.prompt, request.style)]
        record = (fitting or self.folder.records)[-1]
        return [Image.open(self.folder.path / record["file_name"]).convert("RGBA")], []


class One(Catalog):
    """A catalogue of one engine."""

    def __init__(self, only: Engine) -> None:
        super().__init__()
        self.only = only

    def find(self, name: str | None, technique: str | None = None) -> tuple[Engine, str | None]:
        return self.only, name


def asked(judges: Judges, shapes: CaptionedFolder, out: Path, engine: Engine, **more: object):
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
