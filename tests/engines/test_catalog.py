"""Names to engines, for built-in engines and strangers alike."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from imagewright.engines import catalog
from imagewright.engines.catalog import Catalog
from imagewright.errors import ConfigError, MissingExtraError, ModelError, ModelNotFoundError


@pytest.mark.parametrize("name", ["blocks", "fake/blocks"])
def test_a_strangers_model_is_found(name: str) -> None:
    engine, model = Catalog().find(name)
    assert (engine.name, model) == ("fake", "blocks")


def test_a_folder_goes_to_the_engine_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Catalog, "engine", lambda self, name: name)
    monkeypatch.setattr(Catalog, "_listed", lambda self: [])
    run = str(tmp_path)
    assert Catalog().find(run) == ("trained", run)
    (tmp_path / "decoder.onnx").touch()
    assert Catalog().find(run) == ("embedded", run)


def test_a_folder_never_hides_a_model_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocks").mkdir()
    assert Catalog().find("blocks")[0].name == "fake"


def test_engines_are_made_once() -> None:
    here = Catalog()
    assert here.engine("fake") is here.engine("fake")


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(ModelNotFoundError, match="blocks"):
        Catalog().find("nothing")
    with pytest.raises(ModelNotFoundError, match="embedded"):
        Catalog().engine("nothing")


def test_a_strangers_package_cannot_replace_a_built_in_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = metadata.EntryPoint("embedded", "imagewright_fake:FakeEngine", catalog.GROUP)
    monkeypatch.setattr(catalog, "entry_points", lambda group: [evil])
    assert Catalog()._sources["embedded"].target == "imagewright.engines.embedded:EmbeddedEngine"


def test_a_missing_extra_is_listed_with_its_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalog, "find_spec", lambda name: None)
    monkeypatch.setattr(catalog, "import_module", _no_torch)
    trained = next(listing for listing in Catalog().listings() if listing.engine == "trained")
    assert "torch" in trained.problem and "imagewright[train]" in trained.fix
    with pytest.raises(MissingExtraError, match=r"imagewright\[train\]"):
        Catalog().find(str(tmp_path))


def _no_torch(name: str) -> object:
    raise ModuleNotFoundError("No module named 'torch'", name="torch")


def test_a_broken_stranger_is_listed_and_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        metadata.EntryPoint("broken", "imagewright_no_such_module:Engine", catalog.GROUP),
        metadata.EntryPoint("fake", "imagewright_fake:FakeEngine", catalog.GROUP),
        metadata.EntryPoint("wrong", "pathlib:Path", catalog.GROUP),
    ]
    monkeypatch.setattr(catalog, "entry_points", lambda group: points)
    listings = {listing.engine: listing for listing in Catalog().listings()}
    assert "cannot be loaded" in listings["broken"].problem and listings["broken"].fix
    assert "not an imagewright Engine" in listings["wrong"].problem
    assert [model.name for model in listings["fake"].models] == ["blocks", "opaque", "painter"]
    with pytest.raises(ModelError):
        Catalog().engine("wrong")


def test_hosted_services_are_found_last_and_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [metadata.EntryPoint(name, "imagewright_fake:FakeEngine", catalog.GROUP) for name in ("fake", "openai")]
    monkeypatch.setattr(catalog, "entry_points", lambda group: points)
    names = list(Catalog()._sources)
    assert names.index("embedded") < names.index("fake") < names.index("openai")
    assert Catalog().engine("openai").__class__.__module__ == "imagewright.engines.hosted.openai"


def test_a_broken_configuration_hides_no_model_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text("[providers.openai\n")
    monkeypatch.setenv("IMAGEWRIGHT_CONFIG", str(tmp_path / "config.toml"))
    listings = {listing.engine: listing for listing in Catalog().listings()}
    assert "is no TOML" in listings["openai"].problem and listings["openai"].fix
    assert Catalog().find("blocks")[0].name == "fake"
    with pytest.raises(ConfigError):
        Catalog().find("openai/gpt-image-2")[0].find("gpt-image-2")
