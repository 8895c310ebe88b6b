"""TensorBoard takes seconds to import, so only the test that is about it does."""

from __future__ import annotations

import pytest

from imagewright.training import journal


@pytest.fixture(autouse=True)
def no_board(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "tensorboard" not in request.node.name:
        monkeypatch.setattr(journal, "_tensorboard", lambda folder: None)
