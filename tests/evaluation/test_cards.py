"""The tables of the model cards, from a measured model to the text between the markers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from answering import Answering, One

from imagewright.data.loader import CaptionedFolder
from imagewright.errors import DataError
from imagewright.evaluation import cards
from imagewright.refine.judge import Judges

MARKED = "before\n<!-- measured: {} -->\nold figures\n<!-- end -->\nafter\n"


def measuring(engine: Answering, judges: Judges, shapes: CaptionedFolder, work: Path, n: int = 40) -> cards.Measuring:
    return cards.Measuring(shapes.path, work, n, 10, judges, One(engine))


def test_cards_are_written_from_what_was_measured_and_measured_once(
    judges: Judges, shapes: CaptionedFolder, tmp_path: Path
) -> None:
    engine = Answering(shapes)
    for folder in ("recipes", "assets/answer"):
        (tmp_path / folder).mkdir(parents=True)
    places = cards.Places(tmp_path / "recipes", tmp_path / "assets", tmp_path / "page.md")
    (places.recipes / "answer.md").write_text(MARKED.format("card"), "utf-8")
    (tmp_path / "page.md").write_text(MARKED.format("side by side"), "utf-8")
    asked = measuring(engine, judges, shapes, tmp_path / "work")
    changed = cards.refresh(["answer"], asked, places, lambda model: None)
    told = [path.read_text("utf-8") for path in changed]
    assert [path.name for path in changed] == ["answer.md", "README.md", "page.md"] and told[0] == told[1]
    assert all(text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") for text in told)
    assert not any("old figures" in text for text in told)
    report = json.loads((tmp_path / "work" / "answer" / "report.json").read_text("utf-8"))
    style = report["figures"]["model"]["style"]
    percent = [f"{100 * style[name]:.1f}" for name in ("value", "low", "high")]
    line = next(line for line in told[0].splitlines() if line.startswith("| style |"))
    verdict = "reached" if style["value"] >= 0.95 else "missed"
    assert f"{percent[0]} % [{percent[1]} %, {percent[2]} %]" in line and line.endswith(f"≥ 95.0 % {verdict} |")
    assert f"{percent[0]} % [" in told[2] and "| measure | gan | real |" in told[2]
    assert "(40 pictures, judges " in told[0] and "The judges on real pictures" in told[0]
    assert (tmp_path / "work" / "answer" / "copies.png").exists()
    drawn = engine.drawn
    assert cards.refresh(["answer"], asked, places, lambda model: None) == changed
    assert [path.read_text("utf-8") for path in changed] == told and engine.drawn == drawn
    assert cards.reported("answer", measuring(engine, judges, shapes, tmp_path / "work", 20))["n"] == 20
    assert engine.drawn > drawn  # another N is another list of pictures


def test_a_table_needs_its_place_and_a_place_its_table() -> None:
    with pytest.raises(DataError, match="no place"):
        cards.written("no marks here", {"card": "| a |"}, "x.md")
    with pytest.raises(DataError, match="asks for 'edits'"):
        cards.written(MARKED.format("edits"), {"card": "| a |"}, "x.md")
    both = MARKED.format("card") + MARKED.format("edits")
    filled = cards.written(both, {"card": "one", "edits": "two"}, "x.md")
    assert re.findall(r"-->\n(\w+)\n<!-- end", filled) == ["one", "two"]


def test_instructions_stand_beside_the_truth_and_doing_nothing() -> None:
    share = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 10}
    sides = {
        side: {"done": share, "PSNR to the truth": {**share, "value": 18.25}}
        for side in ("model", "truth", "unchanged")
    }
    table = cards.edits_table({"figures": sides, "of": {"n": 10}}).splitlines()
    assert table[0].startswith("| 10 instructions |")
    assert table[2] == "| done | 50.0 % [25.0 %, 75.0 %] | 50.0 % | 50.0 % |"
    assert table[3].startswith("| PSNR to the truth | 18.2 dB [")


def test_the_cards_that_ship_have_places_for_their_tables() -> None:
    root = Path(__file__).parents[2]
    names = [path.stem for path in (root / "recipes").glob("stickers-*.md")]
    assert len(names) == 4
    for name in names:
        card = (root / "recipes" / f"{name}.md").read_text("utf-8")
        assert card == (root / "src/imagewright/assets" / name / "README.md").read_text("utf-8")
        assert cards.MARKED.search(card) and (("measured: edits" in card) is (name == "stickers-diffusion"))
    assert cards.MARKED.search((root / "docs" / "four-techniques.md").read_text("utf-8"))
