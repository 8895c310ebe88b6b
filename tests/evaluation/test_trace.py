"""The folder that shows how one picture came about."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagewright.errors import OutputError
from imagewright.evaluation.trace import CELL, MOST, Trace, overlaid
from imagewright.pictures import open_picture
from imagewright.watch import Watch

FINISHED = Image.new("RGBA", (16, 16), (255, 255, 255, 255))


def plain(level: float) -> np.ndarray:
    return np.full((4, 8, 8), level, np.float32)


def test_everything_shown_becomes_a_file_and_a_fact(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "new" / "trace")
    watch = Watch(trace=trace)
    watch.shown("step", 1, plain(-1), t=np.float32(0.5))
    watch.shown("attention", 1, np.ones((2, 4, 4)), words=["red", "fox"])
    watch.shown("step", 2, plain(1), t=0.25)
    trace.finish(FINISHED, {"seed": 7})
    names = ["00-step-001.png", "00-step-002.png", "01-attention-001.png", "overview.png", "trace.json"]
    assert sorted(path.name for path in trace.folder.iterdir()) == names
    told = json.loads((trace.folder / "trace.json").read_text("utf-8"))
    assert told["record"] == {"seed": 7}
    assert [(one["file"], one["kind"], one["index"]) for one in told["shown"]] == [
        ("00-step-001.png", "step", 1),
        ("01-attention-001.png", "attention", 1),
        ("00-step-002.png", "step", 2),
    ]
    assert [one["facts"] for one in told["shown"]] == [{"t": 0.5}, {"words": ["red", "fox"]}, {"t": 0.25}]
    assert open_picture(trace.folder / "00-step-001.png").getpixel((0, 0)) == (0, 0, 0, 0)
    assert open_picture(trace.folder / "00-step-002.png").getpixel((0, 0)) == (255, 255, 255, 255)


def test_heat_lies_where_the_word_was_read_and_shares_are_told() -> None:
    maps = np.zeros((2, 2, 2), np.float32)
    maps[0, 0, 0], maps[1, 1, 1] = 3, 1
    (fox, label), (tree, other) = overlaid(FINISHED, maps, ["fox", "tree"])
    assert (label, other) == ("fox 75%", "tree 25%")
    corner, opposite = (8, 8), (CELL - 8, CELL - 8)
    for tile, hot, cold in ((fox, corner, opposite), (tree, opposite, corner)):
        red, green, _ = tile.getpixel(hot)
        assert red > 2 * green
        assert len(set(tile.getpixel(cold))) == 1


def test_the_overview_of_many_steps_is_short_and_ends_with_the_last_and_the_finished(tmp_path: Path) -> None:
    trace = Trace(tmp_path)
    for index in range(100):
        trace("token", index, plain(1 if index == 99 else -1), {})
    trace.finish(Image.new("RGBA", (8, 8), (0, 0, 255, 255)), {})
    overview = open_picture(tmp_path / "overview.png").convert("RGB")
    colours = {colour: count for count, colour in overview.getcolors(1 << 20)}
    assert colours[(0, 0, 255)] == CELL**2
    assert overview.height < (MOST // 8 + 2) * (CELL + 40)
    assert (tmp_path / "00-token-099.png").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="holds something"):
        Trace(tmp_path)
    with pytest.raises(OutputError, match="cannot go to"):
        Trace(tmp_path / "mine.txt" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
