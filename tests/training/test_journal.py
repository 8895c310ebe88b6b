"""The journal: lines that can always be read, also after a crash, and TensorBoard where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagewright.errors import TrainingError
from imagewright.training.journal import Journal, read_log


def test_numbers_are_means_since_the_last_line(tmp_path: Path) -> None:
    with Journal(tmp_path, None) as journal:
        for step in range(11, 21):
            journal.step(step, 4, 1.0, 0.5, {"loss": float(step)} | ({"rare": 3.0} if step == 14 else {}))
    (line,) = read_log(tmp_path / "log.jsonl")
    assert (line["event"], line["step"], line["loss"], line["rare"]) == ("step", 20, 15.5, 3.0)
    assert line["pictures_per_second"] > 0


def test_a_torn_last_line_is_cut_off_and_the_rest_kept(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"event": "start", "step": 0}\n{"event": "step", "ste')
    with Journal(tmp_path, None) as journal:
        journal.event("start", 3)
    assert [e["step"] for e in read_log(log)] == [0, 3]


def test_the_error_that_ends_a_run_is_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError), Journal(tmp_path, None) as journal:
        journal.event("start", 7)
        raise TrainingError("It broke.", "Mend it.")
    assert list(read_log(tmp_path / "log.jsonl"))[-1] == {
        "event": "error",
        "step": 7,
        "message": "It broke. Mend it.",
    }


def test_a_silent_journal_writes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path, None, silent=True) as journal:
        journal.event("start", 0)
        journal.step(1, 1, 0.1, 0.1, {"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_numbers_and_the_samples(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    picture = tmp_path / "grid.png"
    Image.fromarray(np.zeros((4, 4, 4), dtype=np.uint8), "RGBA").save(picture)
    with Journal(tmp_path, None) as journal:
        journal.step(1, 1, 0.1, 0.1, {"loss": 0.25})
        journal.picture(1, picture)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"step/loss" in events.read_bytes() and b"samples" in events.read_bytes()
