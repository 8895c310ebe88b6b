"""Digits as a captioned folder: from scikit-learn, from idx files, and as training data of 28 grey pixels."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imagewright.data import digits
from imagewright.data.loader import CaptionedFolder
from imagewright.errors import DataError, MissingExtraError
from imagewright.text import Tokenizer
from imagewright.training.sources import PixelSource


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 28, 28)).astype(np.uint8)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Twenty training and five test pictures, half of the files gzipped."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for prefix, count in (("train", 20), ("t10k", 5)):
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pictures(count))))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    return folder


def test_idx_files_become_a_captioned_folder(mnist: Path, tmp_path: Path) -> None:
    out = digits.build(tmp_path / "digits", mnist)
    folder = CaptionedFolder(out)
    assert len(folder) == 25
    assert folder.records[3]["text"] == "the digit three" and "style" not in folder.records[3]
    assert [r["split"] for r in folder.records] == ["train"] * 20 + ["holdout"] * 5
    with Image.open(out / folder.records[7]["file_name"], formats=("PNG",)) as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), pictures(20)[7])
    assert digits.build(out, mnist) == out  # made already
    assert {r["licence"] for r in folder.records} == {"user-supplied"}


def test_twenty_eight_grey_pixels_without_a_style_are_training_data(mnist: Path, tmp_path: Path) -> None:
    source = PixelSource(CaptionedFolder(digits.build(tmp_path / "digits", mnist)), 28, Tokenizer(), 0.0)
    batch = source.batch(0, 0, 0, 6, 6)
    assert batch.pixels.shape == (6, 4, 28, 28) and source.styles == {}
    assert torch.equal(batch.pixels[:, 0], batch.pixels[:, 2]) and batch.pixels[:, 3].eq(1).all()
    assert batch.style.tolist() == [0] * 6
    assert all(caption.startswith("the digit ") for caption in batch.captions)
    assert len(source.heldout(0, 9, 0)) == 5


def test_a_plain_folder_of_small_grey_pictures_is_training_data(tmp_path: Path) -> None:
    for name, pixels in zip(("one", "two"), pictures(2), strict=True):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    folder = CaptionedFolder(tmp_path)
    assert folder.pixels([0, 1], 20).shape == (2, 4, 20, 20)
    assert folder.styles([0, 1]).tolist() == [0, 0]


def test_the_bundled_digits_are_enlarged_and_their_authors_named(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    out = digits.build(tmp_path / "digits", size=16)
    folder = CaptionedFolder(out)
    assert len(folder) == 1797
    assert {r["licence"] for r in folder.records} == {"CC-BY-4.0"} and "Alpaydin" in folder.records[0]["author"]
    assert 50 < sum(r["split"] == "holdout" for r in folder.records) < 130
    assert sum(json.loads((out / "manifest.json").read_text())["counts"].values()) == 1797
    small = np.asarray(Image.open(out / folder.records[0]["file_name"], formats=("PNG",)).resize((8, 8)), float)
    assert np.corrcoef(small.ravel(), digits.bundled()[0][0].ravel())[0, 1] > 0.9


def test_without_scikit_learn_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"imagewright\[digits\]"):
        digits.build(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(mnist: Path, tmp_path: Path) -> None:
    labels, images = mnist / "train-labels-idx1-ubyte", mnist / "train-images-idx3-ubyte.gz"
    whole, packed = labels.read_bytes(), images.read_bytes()
    for damaged, said in ((whole[:-1], "has 27 bytes and should have 28"), (b"", "no idx"), (b"\0\0\x0d\1", "no idx")):
        labels.write_bytes(damaged)
        with pytest.raises(DataError, match=said):
            digits.build(tmp_path / "digits", mnist)
    labels.write_bytes(idx(np.zeros(19, np.uint8)))
    with pytest.raises(DataError, match="20 train pictures and 19 labels"):
        digits.build(tmp_path / "digits", mnist)
    labels.write_bytes(idx(np.full(20, 10, np.uint8)))
    with pytest.raises(DataError, match="labels up to 10"):
        digits.build(tmp_path / "digits", mnist)
    labels.write_bytes(whole)
    for damaged in (packed[:-9], b"PK" + packed):
        images.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            digits.build(tmp_path / "digits", mnist)
    images.unlink()
    with pytest.raises(DataError, match="There is no train-images-idx file"):
        digits.build(tmp_path / "digits", mnist)
    assert not (tmp_path / "digits").exists()


def test_a_header_cannot_promise_more_than_there_is(tmp_path: Path) -> None:
    liar = tmp_path / "train-images-idx3-ubyte"
    liar.write_bytes(bytes((0, 0, 8, 3)) + b"\xff" * 12)
    with pytest.raises(DataError, match="should have"):
        digits.read_idx(liar, axes=3)


def test_a_folder_of_something_else_is_left_alone(mnist: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds something else"):
        digits.build(mnist, mnist)
    out = digits.build(tmp_path / "digits", mnist)
    with pytest.raises(DataError, match="made in another way"):
        digits.build(out, mnist, size=32)
