"""The commands of docs/editing.md, one after the other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from imagewright import cli
from imagewright.pictures import open_picture

PAGE = Path(__file__).parents[2] / "docs" / "editing.md"
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.S) for line in block.splitlines()
]


@pytest.mark.slow
def test_every_command_of_the_page_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) > 15
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        draws = arguments[0] in ("generate", "edit", "fill", "expand", "vary", "blend", "restyle")
        fast = ["--steps", "2"] if draws and "--select" not in arguments else []
        assert program == "imagewright" and cli.run([*arguments, *fast]) == 0, command
    again, first = (np.asarray(open_picture(name)) for name in ("apple-again.png", "apple.png"))
    assert np.array_equal(again, first)
