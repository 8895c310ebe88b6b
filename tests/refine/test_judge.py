"""The torch-free runner of the judges: clear errors, and pictures made ready."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagewright.errors import ModelCorruptError, ModelNotFoundError
from imagewright.refine import judge
from imagewright.refine.judge import KEYS, Judges


def described(folder: Path, **changes: object) -> Path:
    """A folder with a judges.json that says little."""
    plain = {key: {} for key in KEYS}
    told = {**plain, "format": 1, "version": "v", "size": 64, "files": {"encoder.onnx": {"sha256": "0"}}, **changes}
    (folder / "judges.json").write_text(json.dumps(told), "utf-8")
    return folder


def test_missing_other_and_damaged_judges_are_said(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no judges"):
        Judges(tmp_path)
    with pytest.raises(ModelCorruptError, match="another format"):
        Judges(described(tmp_path, format=99))
    (described(tmp_path) / "encoder.onnx").write_bytes(b"not a network")
    with pytest.raises(ModelCorruptError, match="damaged"):
        Judges(tmp_path).embed(np.zeros((1, 64, 64, 4), np.uint8))


def test_pictures_of_any_size_and_mode_are_put_into_the_middle() -> None:
    wide = Image.new("RGB", (100, 50), "red")
    made = judge.fitted(wide, 64)
    assert made.shape == (64, 64, 4)
    assert tuple(made[32, 32]) == (255, 0, 0, 255) and made[5, 32, 3] == 0
    assert judge.fitted(Image.new("L", (8, 8), 128), 64)[0, 0].tolist() == [128, 128, 128, 255]


def test_transparent_pixels_show_the_ground_whatever_colour_they_hide(tmp_path: Path) -> None:
    hidden = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    rgb = judge.over_grey(judge.fitted(hidden, 64)[None])
    assert rgb.shape == (1, 3, 64, 64)
    assert rgb == pytest.approx(judge.GROUND / 127.5 - 1)
    assert judge.border_alpha(judge.fitted(hidden, 64)[None]) == 0
    with pytest.raises(ValueError, match="the judges see"):
        Judges(described(tmp_path)).prepared(np.zeros((1, 32, 32, 4), np.uint8))


def test_softmax_and_sigmoid_stay_finite() -> None:
    assert judge.softmax(np.array([[1e4, 0, -1e4]], np.float32)).tolist() == [[1, 0, 0]]
    assert judge.sigmoid(np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0, 0.5, 1]
