"""No hosted service is used, and paid, unless somebody names it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from imagewright import verbs
from imagewright.engines.catalog import Catalog, Listing

EDITS = ("image", "instruction")


class Elsewhere(Catalog):
    """As if no model of this machine were here."""

    def listings(self) -> Sequence[Listing]:
        return [listing for listing in super().listings() if any(model.is_hosted for model in listing.models)]


def test_a_key_alone_sends_no_edit_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    assert [listing.engine for listing in Elsewhere().listings()] == ["openai"]
    assert verbs.able(Elsewhere(), {}, *EDITS) is None
    assert verbs.able(Elsewhere(), {"model": "openai/gpt-image-2"}, *EDITS) == "openai/gpt-image-2"
    assert verbs.able(Catalog(), {}, *EDITS) == "embedded/stickers-diffusion"
