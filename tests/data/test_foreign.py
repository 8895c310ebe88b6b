"""Parquet and WebDataset become captioned folders; rows that cannot be used are left out."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from sticker_fixtures import read_records

from imagewright.data.folder import read_folder
from imagewright.data.foreign import load_source
from imagewright.errors import DataError


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pictures = [png("red"), png("blue"), b"bad", png("green")]
    table = {
        "image": [{"bytes": data, "path": "a.png"} for data in pictures],
        "text": ["red", "blue", "bad", None],
    }
    parquet.write_table(arrow.table(table), tmp_path / "a.parquet")
    assert load_source(str(tmp_path / "a.parquet"), tmp_path / "out") == 2
    assert [record["text"] for record in read_folder(tmp_path / "out").records] == ["red", "blue"]
    assert load_source(str(tmp_path / "a.parquet"), tmp_path / "one", limit=1) == 1
    with pytest.raises(DataError, match="exists already"):
        load_source(str(tmp_path / "a.parquet"), tmp_path / "out")


def test_webdataset(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for index, colour in enumerate(("red", "green")):
            for name, data in ((f"{index}.png", png(colour)), (f"{index}.txt", f"a {colour} box".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    assert load_source(str(tmp_path / "shard.tar"), tmp_path / "out") == 2
    assert [record["text"] for record in read_records(tmp_path / "out")] == ["a red box", "a green box"]


def test_what_is_no_data_set_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.parquet"):
        load_source(str(tmp_path / "empty"), tmp_path / "out")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match="cannot be read"):
        load_source(str(tmp_path / "broken.parquet"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.parquet", "empty"]
