"""`imagewright chat` from a pipe: turns, commands, files with their records, errors, Ctrl-C."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from imagewright.cli import run
from imagewright.pictures import open_picture
from imagewright.provenance import credentials, metadata
from imagewright.workshop import Workshop

Out = pytest.CaptureFixture[str]


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> Any:
    """Says lines to a new conversation; gives the exit code, and what was said on both streams."""

    def said(*lines: str, options: tuple[str, ...] = ()) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = run(["chat", "--planner", "local", "--out", str(tmp_path), *options])
        told = capsys.readouterr()
        return code, told.out.splitlines(), told.err

    return said


def test_turns_write_files_with_records_and_credentials(chat: Any, tmp_path: Path) -> None:
    code, out, _ = chat("a cat, 64x64, seed 3", "add a tree on the left", "undo", "", "/list")
    assert code == 0 and "A new picture: a cat (size 64x64, seed 3)." in out
    names = ["01-a-cat.png", "02-add-a-tree-on-the-left.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names
    assert out[-3].split() == ["NO", "FROM", "SIZE", "FILE", "WHAT"] and out[-2].startswith(">  1")
    record = metadata.read(open_picture(tmp_path / names[1])).record
    assert record is not None and record["edits"]["steps"][0]["prompt"] == "add a tree on the left"
    found = credentials.read((tmp_path / names[1]).read_bytes(), "png")
    assert found.state == "trusted" and "Back to picture 1." in out


def test_a_file_is_opened_changed_and_saved_under_another_name(chat: Any, tmp_path: Path) -> None:
    chat("a cat, 64x64, seed 3")
    code, out, err = chat("wider", f"/save {tmp_path}/x.jpg", "/open 1", options=(str(tmp_path / "01-a-cat.png"),))
    assert (code, err) == (0, "")
    assert out[0] == f"1  {tmp_path}/01-a-cat.png  64x64" and out[1].startswith("Picture 1 on a larger canvas")
    assert open_picture(tmp_path / "02-expand.png").size == (96, 64) and out[-1] == out[0]
    saved = open_picture(tmp_path / "x.jpg")
    record = metadata.read(saved).record
    assert saved.size == (96, 64) and saved.format == "JPEG" and record is not None
    assert [step["verb"] for step in record["edits"]["steps"]] == ["expand"]


def test_what_cannot_be_done_is_said_and_the_next_line_is_taken(chat: Any, tmp_path: Path) -> None:
    lines = (
        "/open 7",
        "/open nothing.png",
        "/fly",
        "/save x.png",
        "/model nothing",
        "make it blue",
        "a cat, 64x64",
        "/quit",
        "a dog",
    )
    code, out, err = chat(*lines)
    assert code == 1 and err.count("error:") == 5 and "fix: See /help." in err
    assert "There is no picture yet. Say what to draw, for example: a red fox in the snow" in out
    assert [path.name for path in tmp_path.iterdir()] == ["01-a-cat.png"]


def test_another_model_draws_and_quiet_prints_paths_only(chat: Any, tmp_path: Path) -> None:
    code, out, _ = chat("a cat, 64x64", "two more", options=("--model", "stickers-vae", "-q", "--no-metadata"))
    assert code == 0 and out[0] == str(tmp_path / "01-a-cat.png") and len(out) == 3
    assert metadata.read(open_picture(Path(out[0]))).record is None
    code, out, _ = chat("/model stickers-gan", "a cat, 64x64")
    assert out[0] == "drawing with stickers-gan" and code == 0


def test_ctrl_c_stops_the_picture_and_not_the_program(
    chat: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make = Workshop._make

    def interrupted(self: Workshop, request: Any, *others: Any) -> Any:
        if request.prompt == "a dog":
            signal.raise_signal(signal.SIGINT)
        return make(self, request, *others)

    monkeypatch.setattr(Workshop, "_make", interrupted)
    before = signal.getsignal(signal.SIGINT)
    code, _, err = chat("a dog, 64x64", "a cat, 64x64")
    assert code == 0 and "stopped; nothing was changed" in err
    assert [path.name for path in tmp_path.iterdir()] == ["01-a-cat.png"]
    assert signal.getsignal(signal.SIGINT) is before


def test_no_folder_is_an_error_before_anything_is_made(chat: Any, tmp_path: Path) -> None:
    code, _, err = chat("a cat", options=("--out", str(tmp_path / "none")))
    assert code == 2 and "There is no folder" in err
