"""Servers of OpenAI's form that the user has named."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hosting import hole, photo
from standin import Asked, Reply, StandIn, as_json, drawn, route

from imagewright.config import Config, Secret
from imagewright.engines.catalog import Catalog
from imagewright.engines.hosted import compatible
from imagewright.engines.hosted.compatible import CompatibleEngine
from imagewright.errors import ConfigError, ModelNotFoundError, ProviderError
from imagewright.request import ImageRequest


class PlainService(StandIn):
    """A server that knows a few fields, and wants a key if it was given one."""

    def __init__(self, key: str | None = None) -> None:
        super().__init__()
        self.key = key

    def _answer(self, asked: Asked, body: Mapping[str, Any]) -> Reply:
        sent = asked.headers.get("authorization")
        self.demand(sent == (f"Bearer {self.key}" if self.key else None), 401, f"key {sent}")
        width, _, height = body["size"].partition("x")
        self.demand(body["response_format"] == "b64_json", 400, "response_format")
        one = {"b64_json": b64encode(drawn((int(width), int(height)))).decode()}
        return as_json({"data": [one] * int(body["n"])})

    @route("POST", "/v1/images/generations")
    def generations(self, asked: Asked) -> Reply:
        return self._answer(asked, asked.json())

    @route("POST", "/v1/images/edits")
    def edits(self, asked: Asked) -> Reply:
        return self._answer(asked, asked.texts())


@pytest.fixture
def box() -> Iterator[PlainService]:
    with PlainService() as running:
        yield running


@pytest.fixture
def keyed() -> Iterator[PlainService]:
    with PlainService("sk-canary-box") as running:
        yield running


@pytest.fixture
def engine(box: PlainService, keyed: PlainService) -> Iterator[CompatibleEngine]:
    tables = {
        "box": {"kind": "openai", "base_url": f"{box.url}/v1", "models": ["flux", "org/deep/model"]},
        "keyed": {"kind": "compatible", "base_url": f"{keyed.url}/v1", "key": Secret("sk-canary-box")},
        "openai": {"key": Secret("sk-other")},
        "far": {"kind": "openai", "base_url": "http://far.invalid/v1", "key": Secret("sk-far")},
        "nowhere": {"kind": "openai"},
    }
    found = CompatibleEngine(Config(tables={"providers": tables}))
    yield found
    found.close()


def test_each_server_gets_its_own_requests(engine: CompatibleEngine, box: PlainService, keyed: PlainService) -> None:
    for name, service in (("box/flux", box), ("box/org/deep/model", box), ("keyed/anything", keyed)):
        result = engine.generate(ImageRequest(prompt="x", model=name, size=(333, 222)))
        assert result.images[0].size == (333, 222)
        assert result.records[0]["provider"] == name.partition("/")[0]
        assert (result.model, result.engine) == (name, "compatible")
        assert service.asked[-1].json()["model"] == name.partition("/")[2]
    assert result.adjustments == ()


def test_options_of_its_own_are_passed_on(engine: CompatibleEngine, box: PlainService) -> None:
    options = {"steps": 20, "model": "other", "lora": [{"name": "a"}]}
    engine.generate(ImageRequest(prompt="x", model="box/flux", provider_options=options))
    body = box.asked[0].json()
    assert (body["steps"], body["lora"], body["model"]) == (20, [{"name": "a"}], "flux")


def test_edits_keep_what_the_mask_keeps(engine: CompatibleEngine, box: PlainService) -> None:
    result = engine.generate(ImageRequest(prompt="x", model="box/flux", image=photo(), mask=hole()))
    assert result.images[0].size == (96, 64)
    assert result.records[0]["changed_outside_mask"] == 0
    assert set(box.asked[0].files()) == {"image", "mask"}


def test_those_with_a_list_are_listed(engine: CompatibleEngine) -> None:
    assert [model.name for model in engine.models()] == ["box/flux", "box/org/deep/model"]
    for name in ("elsewhere/x", "openai/gpt-image-2", "box", "box/"):
        with pytest.raises(ModelNotFoundError, match="No server of the configuration") as caught:
            engine.find(name)
        assert "[providers.NAME]" in caught.value.fix


def test_a_key_goes_nowhere_unprotected(engine: CompatibleEngine) -> None:
    with pytest.raises(ConfigError, match="unprotected") as caught:
        engine.generate(ImageRequest(prompt="x", model="far/m"))
    assert "sk-far" not in str(caught.value)
    with pytest.raises(ConfigError, match="no base_url"):
        engine.generate(ImageRequest(prompt="x", model="nowhere/m"))


def test_what_the_server_says_is_passed_on(engine: CompatibleEngine, box: PlainService) -> None:
    box.next.append(Reply(404, b'{"detail": "Not Found"}'))
    with pytest.raises(ProviderError) as caught:
        engine.generate(ImageRequest(prompt="x", model="box/flux"))
    assert (caught.value.status, caught.value.provider) == (404, "box")


def test_the_catalog_finds_it_by_name(engine: CompatibleEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatible, "CompatibleEngine", lambda: engine)
    assert Catalog().find("compatible/box/flux") == (engine, "box/flux")


def test_without_servers_it_says_how_to_name_one() -> None:
    with pytest.raises(ModelNotFoundError, match="No server is named"):
        CompatibleEngine(Config()).models()
