"""The picture tools on the command line and in Python: files, records, credentials, errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from editing.scenes import alpha, over, ring
from PIL import Image

from imagewright import chain, tools, verbs
from imagewright.cli import run
from imagewright.editing.stack import Stack
from imagewright.pictures import open_picture
from imagewright.provenance import credentials, metadata
from imagewright.workshop import Workshop

Out = pytest.CaptureFixture[str]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red ring on blue, of no model."""
    over(ring(64), "#3060d0").save(tmp_path / "ring.png")
    return tmp_path / "ring.png"


def record(path: Path) -> dict:
    found = metadata.read_svg(path.read_bytes()) if path.suffix == ".svg" else metadata.read(open_picture(path))
    assert found.record is not None
    return found.record


def test_a_background_goes_and_the_record_says_so(picture: Path, capsys: Out) -> None:
    assert run(["remove-background", str(picture)]) == 0
    made = picture.with_name("ring-cutout.png")
    assert capsys.readouterr().out == f"{made}  64x64\n"
    assert np.abs(alpha(open_picture(made)) - alpha(ring(64))).mean() < 0.01
    told = record(made)
    assert told["refine"][0]["step"] == "remove background" and told["model"] is None
    found = credentials.read(made.read_bytes(), "png")
    assert found.state == "trusted" and found.digital_source_type == "algorithmicallyEnhanced"
    assert run(["remove-background", str(made), "-o", str(picture.with_name("b.webp"))]) == 0
    assert "already" in capsys.readouterr().err
    assert np.array_equal(np.asarray(open_picture(picture.with_name("b.webp"))), np.asarray(open_picture(made)))


def test_a_part_takes_a_colour_and_the_rest_keeps_its_bytes(picture: Path) -> None:
    assert run(["recolor", str(picture), "green", "--region", "0,0,32,64"]) == 0
    old, new = (np.asarray(open_picture(path)) for path in (picture, picture.with_name("ring-recolor.png")))
    assert np.array_equal(old[:, 32:], new[:, 32:]) and not np.array_equal(old, new)
    whole = tools.recolor(picture, "#00ff00", region="0,0,32,64", invert=True)
    assert np.array_equal(old[:, :32], np.asarray(whole[0])[:, :32])
    assert whole.records[0]["refine"] == [{"step": "recolour", "colour": "#00ff00"}]


def test_words_select_what_is_recoloured(picture: Path) -> None:
    made = tools.recolor(picture, "green", select="the red circle")
    red = alpha(ring(64)) > 0.99
    pixels = np.asarray(made[0]).astype(int)
    assert (pixels[red][:, 1] > pixels[red][:, 0]).mean() > 0.8
    corner = np.asarray(open_picture(picture))[:8, :8]
    assert np.array_equal(pixels[:8, :8], corner)


def test_a_selection_prints_its_box_and_writes_a_mask(picture: Path, capsys: Out) -> None:
    mask = picture.with_name("m.png")
    assert run(["select", str(picture), "the red circle", "-o", str(mask), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["mask"] == str(mask) and 0.3 <= told["score"] <= 1
    left, top, width, height = told["box"]
    assert (left, top) == pytest.approx((13, 16), abs=2) and (width, height) == pytest.approx((38, 38), abs=3)
    hole = np.asarray(open_picture(mask).convert("RGBA"))[..., 3] == 0
    assert hole.any() and hole.sum() <= width * height
    assert run(["select", str(picture), "the red circle"]) == 0
    assert capsys.readouterr().out.startswith(f"{left},{top},{width},{height}  score ")


def test_what_is_not_found_exits_with_2_and_writes_nothing(picture: Path, capsys: Out) -> None:
    before = set(os.listdir(picture.parent))
    assert run(["select", str(picture), "the flag of France", "-o", str(picture.with_name("m.png"))]) == 2
    assert "was not found: the best candidate fits with 0." in capsys.readouterr().err
    assert run(["select", str(picture), " "]) == 2
    assert run(["select", str(picture), "x", "-o", str(picture.with_name("m.jpg"))]) == 2
    assert run(["select", str(picture), "x", "-o", str(picture)]) == 2
    assert run(["recolor", str(picture), "mauve"]) == 2
    assert run(["remove-background", str(picture.with_name("none.png"))]) == 2
    assert set(os.listdir(picture.parent)) == before
    assert "Unknown colour 'mauve'" in capsys.readouterr().err


def test_a_drawing_is_written_inspected_and_told_apart(picture: Path, capsys: Out) -> None:
    pytest.importorskip("vtracer")
    assert run(["vectorise", str(picture)]) == 0
    made = picture.with_name("ring-drawing.svg")
    said = capsys.readouterr()
    assert said.out == f"{made}  64x64\n" and "of 255 off the picture" in said.err
    assert record(made)["refine"][0]["step"] == "vectorise"
    assert run(["inspect", str(made)]) == 0
    told = capsys.readouterr().out
    assert "SVG 64x64" in told and "credential: trusted" in told and "no other metadata" in told
    assert run(["inspect", str(made), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metadata"]["record"] == record(made)
    assert run(["vectorise", str(picture), "--no-metadata", "-o", str(picture.with_name("b.svg"))]) == 0
    assert run(["inspect", str(picture.with_name("b.svg"))]) == 0
    assert "record: none" in capsys.readouterr().out
    assert run(["vectorise", str(made)]) == 2
    assert "is an SVG" in capsys.readouterr().err


def test_generate_writes_svg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vtracer")
    monkeypatch.chdir(tmp_path)
    assert run(["generate", "x", "--model", "fake/blocks", "--seed", "3", "--format", "svg", "-q"]) == 0
    assert record(tmp_path / "x-3.svg")["seed"] == 3


def test_a_picture_with_a_record_is_described_by_it_first(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["generate", "a blue whale", "--model", "fake/blocks", "--seed", "1", "-q"]) == 0
    capsys.readouterr()
    assert run(["describe", "a-blue-whale-1.png", "-n", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "made with the words: a blue whale" and len(lines) == 3
    assert run(["describe", str(picture), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prompt"] is None and len(told["captions"]) == 4
    cut = tools.remove_background(picture)
    assert isinstance(cut[0], Image.Image) and cut.records[0]["prompt"] == ""


def test_a_tool_of_another_kind_can_write_a_drawing_too(picture: Path) -> None:
    pytest.importorskip("vtracer")
    assert run(["upscale", str(picture), "2", "--format", "svg"]) == 0
    steps = [step["step"] for step in record(picture.with_name("ring-upscale.svg"))["refine"]]
    assert steps[-1] == "vectorise" and len(steps) == 2


def test_what_tools_did_can_be_made_again_from_the_original(picture: Path) -> None:
    green = tools.recolor(picture, "green", select="the red circle")
    clear = tools.remove_background(green[0])
    blue = tools.set_background(tools.recolor(clear[0], "blue", region="0,0,32,64")[0], "yellow")
    told = blue.records[0]["edits"]
    assert [step["verb"] for step in told["steps"]] == ["recolor", "remove_background", "recolor", "set_background"]
    assert blue[0].getpixel((1, 1)) == (252, 216, 40)
    stack = Stack.of(json.loads(json.dumps(blue.records[0])))
    assert stack is not None and stack.steps[0].told() == "recolor the red circle green"
    again = chain.replayed(stack, Workshop(), [picture.parent])
    assert np.array_equal(np.asarray(again), np.asarray(blue[0]))
    back = verbs.undo(blue[0], 3, original=picture)
    assert np.array_equal(np.asarray(back[0]), np.asarray(green[0]))
