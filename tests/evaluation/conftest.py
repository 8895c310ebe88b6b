"""The shapes and their judges, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shapes import shapes_folder, tiny_judges

from imagewright.data.loader import CaptionedFolder
from imagewright.refine.judge import Judges


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> CaptionedFolder:
    return CaptionedFolder(shapes_folder(tmp_path_factory.mktemp("shapes")))


@pytest.fixture(scope="session")
def judges_folder(shapes: CaptionedFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return tiny_judges(shapes.path, tmp_path_factory.mktemp("judges"))
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def judges(judges_folder: Path) -> Judges:
    return Judges(judges_folder)
