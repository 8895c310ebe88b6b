"""The prompt language on the command line and in Python, and the grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import imagewright
from imagewright import cli
from imagewright.errors import ModelNotFoundError, PictureError, PromptError, RequestError
from imagewright.evaluation.grid import MAX_CELLS, Axis, axis_of, draw, fitted, sheet_of, side_of
from imagewright.evaluation.sheet import MARGIN
from imagewright.pictures import open_picture
from imagewright.provenance import metadata
from imagewright.request import ImageResult

FAKE = ("--model", "fake/blocks")
Run = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def answer(capsys: Run) -> Any:
    return json.loads(capsys.readouterr().out)


# generate


def test_a_prompt_of_several_jobs_writes_and_prints_each(tmp_path: Path, capsys: Run) -> None:
    text = "a {red,blue} fox --ar {3:2,1:1} --seed 4"
    assert cli.run(["generate", text, *FAKE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:3] for line in lines] == [
        ["a-red-fox-4.png", "40x24", "seed 4"],
        ["a-red-fox-4-2.png", "32x32", "seed 4"],
        ["a-blue-fox-4.png", "40x24", "seed 4"],
        ["a-blue-fox-4-2.png", "32x32", "seed 4"],
    ]
    record = metadata.read(open_picture(tmp_path / "a-red-fox-4.png")).record
    assert record is not None
    assert record["prompt"] == "a red fox"
    assert record["prompt_template"] == text
    assert record["prompt_choices"] == [["{red,blue}", "red"], ["{3:2,1:1}", "3:2"]]


def test_json_is_one_object_whatever_the_jobs(capsys: Run) -> None:
    assert cli.run(["generate", "a (red:1.5) {fox,owl} --fast", *FAKE, "--json", "-n", "2", "--seed", "1"]) == 0
    told = answer(capsys)
    assert [image["record"]["prompt"] for image in told["images"]] == ["a red fox"] * 2 + ["a red owl"] * 2
    assert [image["record"]["seed"] for image in told["images"]] == [1, 2, 1, 2]
    assert [adjustment["field"] for adjustment in told["adjustments"]] == ["--fast", "emphasis"]
    assert told["images"][0]["record"]["adjustments"] == told["adjustments"]


def test_options_win_over_the_prompt_and_that_is_said(capsys: Run) -> None:
    assert cli.run(["generate", "a fox --ar 3:2 --seed 4 --no cars", *FAKE, "--seed", "9", "--size", "20x20"]) == 0
    told = capsys.readouterr()
    assert "20x20  seed 9" in told.out
    assert "note: seed: 4 -> 9 (the option wins over the prompt)" in told.err
    assert "note: aspect: (3, 2) -> None (the size was asked for)" in told.err
    assert "note: negative_prompt: cars ->  (this model has no negative prompt)" in told.err


def test_plain_takes_every_sign_as_it_is(capsys: Run) -> None:
    text = "a (red:1.5) {fox,owl} --ar 3:2 __x__"
    assert cli.run(["generate", text, *FAKE, "--plain", "--json"]) == 0
    (image,) = answer(capsys)["images"]
    assert image["record"]["prompt"] == text
    assert "prompt_template" not in image["record"]


def test_repeats_and_wildcards(tmp_path: Path, capsys: Run) -> None:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "animal.txt").write_text("fox\nowl\ncat\n", "utf-8")
    told = ["generate", "a __animal__", *FAKE, "--json", "--seed", "3"]
    assert cli.run([*told, "--wildcards", "words", "--repeat", "2", "-n", "2"]) == 0
    made = [(image["record"]["seed"], image["record"]["prompt"]) for image in answer(capsys)["images"]]
    assert [seed for seed, _ in made] == [3, 4, 5, 6]
    assert cli.run(["generate", "a __animal__", *FAKE, "--json", "--seed", "5", "--wildcards", "words"]) == 0
    (image,) = answer(capsys)["images"]
    assert (5, image["record"]["prompt"]) == made[2]
    assert image["record"]["prompt_choices"] == [["__animal__", made[2][1].removeprefix("a ")]]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a fox --arr 3:2"], "Did you mean --ar?"),
        (["{a,b}", "-o", "one.png"], "2 pictures do not go into one file"),
        (["a {fox"], "never closed"),
        (["nowhere.png a fox"], "nowhere.png"),
        (["https://example.org/a.png a fox"], "on the network"),
        (["{a,b} fox", "--trace", "trace"], "A trace follows one picture"),
        (["a fox", "--repeat", "65"], "--repeat"),
        (["__no__", "--wildcards", "."], "There is no wildcard __no__"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    tmp_path: Path, capsys: Run, arguments: list[str], why: str
) -> None:
    assert cli.run(["generate", *arguments, *FAKE]) == 2
    told = capsys.readouterr()
    assert why in told.err
    assert told.out == ""
    assert list(tmp_path.glob("*.png")) == []


def test_what_was_made_before_a_failure_is_kept_and_told(
    tmp_path: Path, capsys: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imagewright.workshop import Workshop

    make = Workshop.make

    def failing(self: Workshop, request: Any, *more: Any) -> ImageResult:
        if request.prompt == "owl":
            raise ModelNotFoundError("The model went away.", "Bring it back.")
        return make(self, request, *more)

    monkeypatch.setattr(Workshop, "make", failing)
    assert cli.run(["generate", "{fox,owl,cat} --seed 1", *FAKE, "--json"]) == 2
    told = capsys.readouterr()
    assert [image["path"] for image in json.loads(told.out)["images"]] == ["fox-1.png"]
    assert "The model went away" in told.err
    assert [path.name for path in tmp_path.glob("*.png")] == ["fox-1.png"]


# Python


def test_generate_in_python_understands_the_language() -> None:
    result = imagewright.generate("a {red,blue} fox --ar 3:2", model="fake/blocks", seed=3, n=2)
    assert [image.size for image in result] == [(40, 24)] * 4
    assert [record["prompt"] for record in result.records] == ["a red fox"] * 2 + ["a blue fox"] * 2
    assert imagewright.generate("a fox --ar 3:2", model="fake/blocks", plain=True).records[0]["prompt"].endswith("3:2")
    with pytest.raises(PromptError, match="Unknown parameter"):
        imagewright.generate("a fox --nothing", model="fake/blocks")
    with pytest.raises(PictureError):
        imagewright.generate("nowhere.png a fox", model="fake/blocks")
    assert imagewright.prompt.parse("a fox")[0].prompt == "a fox"


def test_weights_and_the_rest_are_made_again_from_the_file(tmp_path: Path) -> None:
    text = "a (red:1.5) fox --chaos 40 --weird 300 --stop 60 --s 300 --seed 5"
    assert cli.run(["generate", text, "--steps", "4", "-o", "fox.png"]) == 0
    assert cli.run(["reproduce", "fox.png"]) == 0
    record = metadata.read(open_picture(tmp_path / "fox.png")).record
    assert record is not None
    told = {name: record[name] for name in ("emphasis", "variety", "weird", "stop")}
    assert told == {"emphasis": [[2, 5, 1.5]], "variety": 0.4, "weird": 0.1, "stop": 0.6}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_long_template_fits_into_every_file(tmp_path: Path, name: str) -> None:
    text = "a (red:1.5) {fox} " + "word " * 6000
    assert cli.run(["generate", text, *FAKE, "-o", name]) == 0
    record = metadata.read(open_picture(tmp_path / name)).record
    assert record is not None
    assert record["prompt"].startswith("a red fox word")
    assert ("prompt_template" in record) == ("shortened" not in record)


def test_long_labels_are_cut() -> None:
    words = "a very long label " * 50
    axes = [Axis("prompt", (words, "b"), (1, 2)), Axis("style", ("x" * 500,), (1,))]
    red = ImageResult(images=(Image.new("RGB", (8, 8), "red"),), records=({},), model="m", engine="e")
    cells = list(draw(*axes, lambda row, column: red, 64))
    page = np.asarray(sheet_of(cells, *axes, words * 9, 64))
    top = page.shape[0] - 2 * (64 + MARGIN) - MARGIN
    second = page[top + 64 + MARGIN + 20 : top + 2 * 64, :130]  # beside the second row stands nothing of the first
    assert (second > 200).all()


@pytest.mark.parametrize("parts", [[[0, 1]], [["a", 1, 2]], [0, 1, 2], [[0, 1, True]]])
def test_a_damaged_list_of_weights_is_refused(parts: list[Any]) -> None:
    from imagewright.provenance import record

    whole = {"version": 1, "prompt": "a fox", "size": [8, 8], "seed": 1}
    assert record.to_request({**whole, "emphasis": [[0, 1, 1.5]]}).emphasis == ((0, 1, 1.5),)
    with pytest.raises(PictureError, match="damaged"):
        record.to_request({**whole, "emphasis": parts})


# The grid


def test_a_grid_of_two_axes_is_one_sheet_and_tells_all(tmp_path: Path, capsys: Run) -> None:
    (tmp_path / "kept").mkdir()
    axes = ("--x", "seed=1,2,3", "--y", "model=fake/blocks,fake/nothing,fake/opaque")
    assert cli.run(["grid", "a fox", *axes, "--cell", "64", "--keep", "kept", "--json", "-o", "g.png"]) == 0
    told = capsys.readouterr()
    page = json.loads(told.out)
    assert page["x"] == {"name": "seed", "labels": ["seed 1", "seed 2", "seed 3"]}
    assert page["y"]["labels"] == ["blocks", "nothing", "opaque"]
    assert [bool(cell["problem"]) for cell in page["cells"]] == [False] * 3 + [True] * 3 + [False] * 3
    assert [cell["records"][0]["seed"] for cell in page["cells"] if not cell["problem"]] == [1, 2, 3] * 2
    assert all("nothing" in cell["problem"] for cell in page["cells"][3:6])
    assert told.err.count("note: nothing / seed 1: No model") == 1
    kept = sorted(path for cell in page["cells"] for path in cell["paths"])
    assert kept == sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "kept").iterdir())
    assert len(kept) == 6
    sheet = open_picture(tmp_path / "g.png")
    assert sheet.mode == "RGB"
    assert sheet.width == 132 + 3 * (64 + MARGIN)


def test_the_prompts_alternatives_are_an_axis_without_being_asked_for(capsys: Run) -> None:
    assert cli.run(["grid", "a fox --ar {3:2,1:1}", *FAKE, "--json", "--seed", "7"]) == 0
    page = answer(capsys)
    assert (page["x"]["name"], page["x"]["labels"], page["y"]["labels"]) == ("prompt", ["3:2", "1:1"], [""])
    assert [cell["records"][0]["size"] for cell in page["cells"]] == [[40, 24], [32, 32]]
    assert {cell["records"][0]["seed"] for cell in page["cells"]} == {7}
    assert cli.run(["grid", "{red,blue} fox", *FAKE, "--json", "--x", "steps=1,2"]) == 0
    page = answer(capsys)
    assert (page["y"]["labels"], page["x"]["labels"]) == (["red", "blue"], ["steps 1", "steps 2"])
    told = [(cell["records"][0]["prompt"], cell["records"][0]["num_inference_steps"]) for cell in page["cells"]]
    assert told == [("red fox", 1), ("red fox", 2), ("blue fox", 1), ("blue fox", 2)]
    assert len({cell["records"][0]["seed"] for cell in page["cells"]}) == 1


@pytest.mark.parametrize(
    ("arguments", "seeds"),
    [
        (["a fox --seed {4,9}"], [4, 9]),
        (["{a,b} fox --seed 4"], [4, 4]),
        (["{a,b} fox --seed 4", "--seed", "7"], [7, 7]),
        (["a fox --repeat 2 --seed 4"], [4, 5]),
        (["a fox --seed 4", "--x", "steps=1,2"], [4, 4]),
        (["a fox --seed 4", "--x", "seed=1,2"], [1, 2]),
    ],
)
def test_seeds_of_a_grid(capsys: Run, arguments: list[str], seeds: list[int]) -> None:
    assert cli.run(["grid", *arguments, *FAKE, "--json"]) == 0
    assert [cell["records"][0]["seed"] for cell in answer(capsys)["cells"]] == seeds


def test_an_interrupted_grid_is_kept(tmp_path: Path, capsys: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from imagewright.workshop import Workshop

    make = Workshop.make

    def interrupted(self: Workshop, request: Any, *more: Any) -> ImageResult:
        if request.seed == 2:
            raise KeyboardInterrupt
        return make(self, request, *more)

    monkeypatch.setattr(Workshop, "make", interrupted)
    assert cli.run(["grid", "a fox", *FAKE, "--x", "seed=1,2,3"]) == 130
    assert capsys.readouterr().out == "grid.png\n"
    assert open_picture(tmp_path / "grid.png").width > 3 * 192


def test_a_seed_axis_also_chooses_wildcards(tmp_path: Path, capsys: Run) -> None:
    (tmp_path / "animal.txt").write_text("fox\nowl\ncat\n", "utf-8")
    axis = ",".join(map(str, range(12)))
    assert cli.run(["grid", "__animal__", *FAKE, "--wildcards", ".", "--x", f"seed={axis}", "--json"]) == 0
    records = [cell["records"][0] for cell in answer(capsys)["cells"]]
    assert [record["seed"] for record in records] == list(range(12))
    assert {record["prompt"] for record in records} == {"fox", "owl", "cat"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["a fox"], "Nothing varies"),
        (["a fox", "--x", "nothing=1"], "'nothing' cannot be an axis"),
        (["a fox", "--x", "seed"], "Cannot read the axis"),
        (["a fox", "--x", "seed=a"], "whole numbers"),
        (["a fox", "--x", "guidance=a"], "Write numbers"),
        (["a fox", "--x", "seed=1", "--y", "seed=2"], "Both axes are seed"),
        (["{a,b}", "--x", "seed=1", "--y", "steps=2"], "both axes are taken"),
        (["a fox", "--x", "seed=" + ",".join(map(str, range(300)))], "300 cells"),
        (["a fox", "--x", "seed=1", "-o", "."], "is a folder"),
        (["a fox", "--x", "seed=1", "-o", "a.jpg"], "a.jpg"),
        (["a fox", "--x", "seed=1", "-o", "nowhere/a.png"], "no folder"),
        (["a fox", "--x", "seed=1", "--keep", "nowhere"], "nowhere"),
        (["a fox", "--x", "n=1,2"], "'n' cannot be an axis"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_work(
    tmp_path: Path, capsys: Run, arguments: list[str], why: str
) -> None:
    assert cli.run(["grid", *arguments, *FAKE]) == 2
    assert why in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_grid_without_any_picture_fails_and_still_says_why(tmp_path: Path, capsys: Run) -> None:
    assert cli.run(["grid", "a fox", *FAKE, "--x", "style=no,neither"]) == 1
    told = capsys.readouterr()
    assert "has no style 'no'" in told.err
    assert "No cell could be drawn" in told.err
    assert (tmp_path / "grid.png").is_file()


def test_a_value_out_of_range_is_its_cells_problem(capsys: Run) -> None:
    assert cli.run(["grid", "a fox", *FAKE, "--x", "steps=0,4", "--json"]) == 0
    assert [bool(cell["problem"]) for cell in answer(capsys)["cells"]] == [True, False]


def test_pictures_keep_their_shape_in_their_cells() -> None:
    square = fitted(Image.new("RGB", (100, 50), "red"), 40)
    assert square.size == (40, 40)
    assert square.getpixel((20, 20)) == (255, 0, 0, 255)
    assert square.getpixel((20, 5)) == (0, 0, 0, 0)


def test_failed_cells_are_marked_on_the_sheet() -> None:
    axis, one = axis_of("seed=1,2"), Axis("", ("",), ("",))
    red = ImageResult(images=(Image.new("RGB", (8, 8), "red"),), records=({},), model="m", engine="e")

    def make(row: int, column: int) -> ImageResult:
        if column:
            raise RequestError("Too much of it.", "Take less.")
        return red

    cells = list(draw(one, axis, make, 50))
    assert [cell.problem for cell in cells] == ["", "Too much of it. Take less."]
    page = np.asarray(sheet_of(cells, one, axis, "a title", 50))
    assert page.shape[1] == MARGIN + 2 * (50 + MARGIN)
    assert (page == (255, 0, 0)).all(-1).sum() > 2000
    assert (page == (253, 236, 234)).all(-1).sum() > 500


def test_large_grids_get_small_cells() -> None:
    axis = axis_of("seed=" + ",".join(map(str, range(MAX_CELLS))))
    assert side_of(axis, axis_of("steps=1"), 192) < 64
    assert side_of(axis_of("seed=1"), axis_of("steps=1"), 192) == 192
