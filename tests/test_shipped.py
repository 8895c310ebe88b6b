"""The model that ships, from the prompt to the file and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagewright import cli
from imagewright.engines.catalog import DEFAULT_ENGINE, Catalog

MODELS = Catalog().engine(DEFAULT_ENGINE).models()


@pytest.mark.skipif(not MODELS, reason="no model ships in this checkout")
def test_a_picture_with_nothing_but_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["generate", "a red fox", "--seed", "1", "--size", "200x150", "--json"]) == 0
    image = json.loads(capsys.readouterr().out)["images"][0]
    assert image["path"] == "a-red-fox-1.png"
    assert image["record"]["model"] == MODELS[0].name == "stickers-diffusion"
    assert image["record"]["size"] == [200, 150]
    assert cli.run(["reproduce", "a-red-fox-1.png"]) == 0
    assert capsys.readouterr().out.endswith("identical\n")
