"""For every test of a hosted engine: no keys of whoever runs them, closed breakers, and retries that do not wait."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagewright.config import VARIABLE, VARIABLES
from imagewright.engines.hosted import breaker, call

sys.path.insert(0, str(Path(__file__).parent))  # for the stand-ins

from example_service import ExampleEngine, ExampleService, engine_of


@pytest.fixture
def service() -> Iterator[ExampleService]:
    """The example on loopback."""
    with ExampleService() as running:
        yield running


@pytest.fixture
def engine(service: ExampleService) -> Iterator[ExampleEngine]:
    """An engine that asks it."""
    found = engine_of(service)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = {name for options in VARIABLES.values() for some in options.values() for name in some}
    for name in [one for one in os.environ if one in names or one.endswith(("_API_KEY", "_BASE_URL"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(call, "FIRST_SPAN", 0.01)
    monkeypatch.setattr(call, "LAST_SPAN", 0.02)
    breaker.forget()
    yield
    breaker.forget()
