"""Routes: the next target only where the operator wants it, never for the caller's own fault, and all of it is told."""

from __future__ import annotations

import re
import time
import tomllib
from base64 import b64decode, b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from gatehouse import CENT, Act, Paid, bearer, gateway, new_key, server
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagewright.config import Config
from imagewright.engines.hosted.compatible import CompatibleEngine
from imagewright.errors import (
    ConfigError,
    CredentialError,
    ImagewrightError,
    ModerationError,
    ProviderError,
    ProviderTimeoutError,
    QuotaError,
    RequestError,
    StoppedError,
    UnsupportedError,
)
from imagewright.pictures import encode
from imagewright.request import Capabilities, ImageRequest, ImageResult
from imagewright.server import routes
from imagewright.server.errors import ApiError
from imagewright.server.gateway import Gateway
from imagewright.server.jobs import Job
from imagewright.server.prices import Prices
from imagewright.server.security import EVERYBODY, Caller
from imagewright.watch import Stop, Watch

DOWN = ProviderError("alpha is down.", status=503, retryable=True)
CAN = Capabilities(size=(8, 8), seed=False)
TABLE = {"targets": ["alpha/m", "beta/m", "gamma/m"]}
GENERATE = "/v1/images/generations"


def fails(error: Exception) -> Act:
    """A service that answers with this error."""

    def act(request: ImageRequest, watch: Watch) -> dict[str, Any]:
        raise error

    return act


def waits(request: ImageRequest, watch: Watch) -> dict[str, Any]:
    """A service that never answers."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        watch.check()
        time.sleep(0.005)
    raise AssertionError("nobody stopped it")


def house(alpha: Act | None = None, beta: Act | None = None, gamma: Act | None = None, **table: Any) -> Gateway:
    """A gateway with a route over three services."""
    engines = [Paid(name, act) for name, act in (("alpha", alpha), ("beta", beta), ("gamma", gamma))]
    return gateway(*engines, routes={"best": {**TABLE, **table}})


def made(found: Gateway, request: ImageRequest | None = None, stop: Stop | None = None) -> ImageResult:
    """What comes of a request for the route."""
    request = request or ImageRequest(prompt="a fox")
    choice = found.choose(EVERYBODY, "best", request)
    job = Job(id="j", owner="local", kind="generate", asked="best", model=choice.model, order={}, plan=choice.plan)
    [done] = found.make([(job, request, Watch(stop=stop))])
    if isinstance(done, Exception):
        raise done
    return done


def used(result: ImageResult) -> list[tuple[str, str]]:
    """What was tried, and how that ended."""
    return [(one["target"], one["reason"]) for one in result.records[0]["routing"]]


def test_the_first_target_that_works_is_used() -> None:
    result = made(house())
    assert used(result) == [("alpha/m", "used")]
    assert result.engine == "alpha" and not any(one.field == "model" for one in result.adjustments)


@pytest.mark.parametrize("error", [DOWN, QuotaError("busy"), CredentialError("no key"), ProviderError("cut off")])
def test_a_failing_service_is_passed_over_and_that_is_told(error: ProviderError) -> None:
    result = made(house(alpha=fails(error)))
    assert used(result) == [("alpha/m", "error"), ("beta/m", "used")]
    [said] = [one for one in result.adjustments if one.field == "model"]
    assert (said.requested, said.used) == ("alpha/m", "beta/m")
    assert error.message in said.reason
    assert result.records[0]["adjustments"][0]["field"] == "model"


def test_when_all_fail_the_last_error_is_told() -> None:
    with pytest.raises(ProviderError, match="gamma"):
        made(house(fails(DOWN), fails(DOWN), fails(ProviderError("gamma is down.", status=500))))


@pytest.mark.parametrize(
    "error",
    [
        RequestError("no such thing"),
        StoppedError("gone"),
        *(ProviderError("bad field", status=status) for status in (400, 413, 415, 422)),
    ],
)
def test_the_callers_fault_never_falls_back(error: ImagewrightError) -> None:
    found = house(alpha=fails(error), on=list(routes.REASONS))
    with pytest.raises(type(error)):
        made(found)
    assert found.workshop.catalog.engine("beta").calls == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModerationError("not this"), "moderation"),
        (ProviderTimeoutError("late"), "timeout"),
        (UnsupportedError("no masks"), "capability"),
        (DOWN, "error"),
    ],
)
def test_only_what_the_route_lists_falls_back(error: ImagewrightError, reason: str) -> None:
    assert used(made(house(alpha=fails(error), on=[reason])))[0] == ("alpha/m", reason)
    others = [one for one in routes.REASONS if one != reason]
    with pytest.raises(type(error)):
        made(house(alpha=fails(error), on=others))


def test_a_target_that_takes_too_long_is_stopped() -> None:
    start = time.monotonic()
    result = made(house(alpha=waits, timeout=0.1))
    assert used(result) == [("alpha/m", "timeout"), ("beta/m", "used")]
    assert time.monotonic() - start < 2


def test_a_caller_that_leaves_ends_the_route() -> None:
    stop = Stop()

    def leaves(request: ImageRequest, watch: Watch) -> dict[str, Any]:
        stop.set()
        watch.check()
        return {}

    found = house(alpha=leaves, timeout=30)
    with pytest.raises(StoppedError):
        made(found, stop=stop)
    assert found.workshop.catalog.engine("beta").calls == 0  # type: ignore[attr-defined]


def test_what_cannot_do_it_is_left_out_before_any_call() -> None:
    alpha, beta, gamma = (
        Paid(name, can=can) for name, can in zip(("alpha", "beta", "gamma"), _abilities(), strict=True)
    )
    found = gateway(alpha, beta, gamma, routes={"best": {**TABLE, "on": ["capability"]}})
    photo = Image.new("RGB", (8, 8))
    result = made(found, ImageRequest(prompt="x", image=photo, mask=Image.new("RGBA", (8, 8))))
    assert [target for target, reason in used(result) if reason == "capability"] == ["alpha/m", "beta/m"]
    assert (alpha.calls, beta.calls, gamma.calls) == (0, 0, 1)
    assert "mask" in result.records[0]["routing"][0]["message"]


def _abilities() -> list[Capabilities]:
    return [CAN, replace(CAN, image=True), replace(CAN, image=True, mask=True)]


@pytest.mark.parametrize(
    ("asked", "alpha", "beta"),
    [
        ({"size": (16, 16)}, replace(CAN, any_size=False), CAN),
        ({"background": "transparent"}, CAN, replace(CAN, transparent=True)),
        ({"n": 3}, replace(CAN, max_n=1), CAN),
        ({"style": "flat"}, CAN, replace(CAN, styles=("flat",))),
        ({"negative_prompt": "cats"}, CAN, replace(CAN, negative_prompt=True)),
        ({"instruction": True, "image": Image.new("RGB", (8, 8))}, replace(CAN, image=True),
         replace(CAN, image=True, features=("instruction",))),
    ],
)  # fmt: skip
def test_what_takes_a_request_as_it_is_comes_first(asked: Any, alpha: Capabilities, beta: Capabilities) -> None:
    targets = [routes.Target("alpha/m", alpha, 0), routes.Target("beta/m", beta, 0)]
    route = routes.read({"best": {"targets": ["alpha/m", "beta/m"], "on": ["capability"]}})["best"]
    left, skipped = routes.select(route, targets, ImageRequest(prompt="x", **asked))
    assert [target.model for target in left] == ["beta/m"]
    assert [one["target"] for one in skipped] == ["alpha/m"]
    left, skipped = routes.select(replace(route, on=frozenset()), targets, ImageRequest(prompt="x", **asked))
    assert [target.model for target in left] == ["alpha/m", "beta/m"] and not skipped


def test_where_nobody_can_the_first_one_says_why() -> None:
    found = gateway(
        Paid("alpha"), Paid("beta"), routes={"best": {"targets": ["alpha/m", "beta/m"], "on": ["capability"]}}
    )
    with pytest.raises(UnsupportedError, match="picture"):
        found.choose(EVERYBODY, "best", ImageRequest(prompt="x", image=Image.new("RGB", (8, 8))))


PRICES = {"alpha/m": {"image": 0.08}, "beta/m": {"image": 0.02}, "gamma/m": {"image": 0.04}}


def priced(**table: Any) -> Gateway:
    """The route with prices."""
    return gateway(
        *(Paid(name) for name in ("alpha", "beta", "gamma")), routes={"best": {**TABLE, **table}}, prices=PRICES
    )


def test_the_cheapest_first_if_the_route_says_so() -> None:
    choice = priced(order="cheapest").choose(EVERYBODY, "best", ImageRequest(prompt="x"))
    assert choice.plan is not None and choice.plan["targets"] == ["beta/m", "gamma/m", "alpha/m"]


def test_the_estimate_is_that_of_the_dearest_target() -> None:
    assert priced().choose(EVERYBODY, "best", ImageRequest(prompt="x", n=2)).estimate == 16 * CENT


def test_a_bound_on_the_cost() -> None:
    found = priced(max_cost=0.05, on=["price"])
    choice = found.choose(EVERYBODY, "best", ImageRequest(prompt="x"))
    assert choice.plan is not None and choice.plan["targets"] == ["beta/m", "gamma/m"]
    assert choice.estimate == 4 * CENT
    for gateway_, n in ((found, 9), (priced(max_cost=0.05), 1)):
        with pytest.raises(ApiError, match=r"\$0.05") as refused:
            gateway_.choose(EVERYBODY, "best", ImageRequest(prompt="x", n=n))
        assert (refused.value.status, refused.value.code) == (400, "max_cost_exceeded")


def test_a_target_whose_price_nobody_knows_is_not_for_a_key_with_a_budget() -> None:
    found = gateway(
        Paid("alpha"),
        Paid("beta"),
        routes={"best": {"targets": ["alpha/m", "beta/m"]}},
        prices={"alpha/m": {"image": 1}},
    )
    assert found.choose(EVERYBODY, "best", ImageRequest(prompt="x")).estimate is None
    with pytest.raises(ApiError, match="not known"):
        found.choose(Caller("key_poor", budget=CENT), "best", ImageRequest(prompt="x"))


def test_a_target_that_is_not_here_is_passed_over() -> None:
    found = gateway(
        Paid("alpha"), routes={"best": {"targets": ["nowhere", "alpha/m"]}, "none": {"targets": ["nowhere"]}}
    )
    choice = found.choose(EVERYBODY, "best", ImageRequest(prompt="x"))
    assert choice.plan is not None and choice.plan["targets"] == ["alpha/m"]
    assert choice.plan["skipped"][0]["target"] == "nowhere"
    with pytest.raises(ImagewrightError):
        found.choose(EVERYBODY, "none", ImageRequest(prompt="x"))
    assert [name for name, _ in found.models()] == ["m"]


@pytest.mark.parametrize(
    ("models", "asked", "allowed"),
    [
        (("alpha/*",), "alpha/m", True),
        (("alpha/*",), "beta/m", False),
        (("alpha/*",), "best", False),
        (("best",), "best", True),
        (("best",), "alpha/m", False),
        (("*/m",), "best", True),
        (("alpha/*",), None, True),
        (("beta/*",), None, False),
        ((), "alpha/m", False),
        (("ALPHA/*",), "alpha/m", False),
    ],
)
def test_which_names_a_key_may_use(models: tuple[str, ...], asked: str | None, allowed: bool) -> None:
    caller = Caller("key_x", models=models)
    if allowed:
        assert house().choose(caller, asked, ImageRequest(prompt="x")).model
        return
    with pytest.raises(ApiError) as refused:
        house().choose(caller, asked, ImageRequest(prompt="x"))
    assert refused.value.status == 403


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        (None, {"default_model": "best"}),
        ("dall-e-3", {"default_model": "best"}),
        ("nice", {"models": {"nice": "best"}}),
        ("dall-e-3", {"models": {"dall-e-3": "best"}}),
        ("best", {"models": {"best": "alpha/m"}}),
    ],
)
def test_a_name_may_stand_for_a_route(asked: str | None, settings: dict[str, Any]) -> None:
    found = gateway(Paid("alpha"), Paid("beta"), routes={"best": {"targets": ["beta/m", "alpha/m"]}}, **settings)
    choice = found.choose(EVERYBODY, asked, ImageRequest(prompt="x"))
    assert choice.plan is not None and choice.plan["targets"] == ["beta/m", "alpha/m"]
    assert [one.used for one in choice.adjustments] == ([] if asked in (None, "best") else ["best"])
    assert {name for name, _ in found.models()} >= {"best", *settings.get("models", {})}


def test_the_documentations_configuration_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text("utf-8")
    tables = tomllib.loads("".join(re.findall(r"```toml\n(.*?)```", page, re.S)))
    assert routes.read(tables["routes"]) and Prices(tables["prices"])


def test_names_of_this_machine_are_no_models(tmp_path: Path) -> None:
    found = house()
    (tmp_path / "model.json").write_text("{}")
    for name in (
        str(tmp_path),
        f"alpha/{tmp_path}",
        "../m",
        "embedded//etc",
        "pretrained/org/name",
        "x" * 5000,
        "alpha/",
    ):
        with pytest.raises(ImagewrightError):
            found.choose(EVERYBODY, name, ImageRequest(prompt="x"))


def test_a_route_over_http(tmp_path: Path) -> None:
    engines = [Paid("alpha", fails(DOWN)), Paid("beta", lambda request, watch: {"cost": 0.01}), Paid("gamma")]
    with server(tmp_path, *engines, routes={"best": TABLE}, prices=PRICES) as client:
        _, token = new_key(client.app.state.database, models=["best"], budget=50 * CENT)  # type: ignore[attr-defined]
        done = client.post(GENERATE, json={"prompt": "x", "model": "best"}, headers=bearer(token))
        assert done.status_code == 200, done.text
        assert done.headers["x-imagewright-estimate"] == "0.08"
        assert done.headers["x-imagewright-cost"] == "0.01"
        [row] = client.get("/v1/usage", headers=bearer(token)).json()["data"]
        assert (row["asked"], row["model"], row["cost"]) == ("best", "beta/m", 0.01)
        other = client.post(GENERATE, json={"prompt": "x", "model": "beta/m"}, headers=bearer(token))
        assert other.status_code == 403


def test_a_services_own_file_is_passed_on_only_where_the_operator_says_so_and_nobody_needs_more(tmp_path: Path) -> None:
    theirs = encode(Image.new("RGB", (8, 8), "grey"), "webp", 40)
    drawn = httpx.Response(200, json={"created": 1, "data": [{"b64_json": b64encode(theirs).decode()}]})
    box = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}
    config = Config(tables={"providers": {"box": {**box, "outputs": "relay"}, "other": box}})
    engine = CompatibleEngine(config, httpx.MockTransport(lambda request: drawn))
    tables = {"passing": {"targets": ["compatible/other/m"], "outputs": "relay"}}
    with server(tmp_path, engine, default_model="compatible/box/m", routes=tables) as client:

        def sent(once: str | None = None, **more: Any) -> bytes:
            body = {"prompt": "x", "model": "compatible/box/m", "response_format": "b64_json", **more}
            headers = {} if once is None else {"Idempotency-Key": once}
            answered = client.post(GENERATE, json=body, headers=headers)
            assert answered.status_code == 200, answered.text
            return b64decode(answered.json()["data"][0]["b64_json"])

        for model in ("compatible/box/m", "passing"):
            assert sent(model=model) == theirs
        for kept in ({"model": "compatible/other/m"}, {"background": "white"}, {"best_of": 2}, {"once": "abc"}):
            file = sent(**kept)
            assert file != theirs and b"c2pa" in file
        url = {"prompt": "x", "model": "compatible/box/m", "response_format": "url"}
        assert client.post(GENERATE, json=url).json()["data"][0]["url"]
        client.app.state.hub.is_heard = lambda job: False  # type: ignore[attr-defined]  # as where another server waits
        assert b"c2pa" in sent()


@given(st.lists(st.sampled_from(["error", "timeout", "moderation", "request", "works"]), min_size=1, max_size=8))
def test_each_target_is_tried_once_at_most(fates: list[str]) -> None:
    errors = {
        "error": DOWN,
        "timeout": ProviderTimeoutError("late"),
        "moderation": ModerationError("not this"),
        "request": RequestError("no"),
    }
    tried = []

    def make(request: ImageRequest, watch: Watch) -> ImageResult:
        tried.append(request.model)
        fate = fates[int(str(request.model))]
        if fate != "works":
            raise errors[fate]
        return ImageResult(images=(), records=({},), model="m", engine="e")

    targets = [str(index) for index in range(len(fates))]
    plan = {"targets": targets, "first": "0", "skipped": [], "on": ["error", "timeout"], "timeout": None}
    ends = next((index for index, fate in enumerate(fates) if fate not in ("error", "timeout")), len(fates) - 1)
    try:
        result = routes.attempt(plan, ImageRequest(prompt="x"), Watch(), make)
    except ImagewrightError as error:
        assert fates[ends] != "works" and error is errors[fates[ends]]
    else:
        assert fates[ends] == "works" and len(result.records[0]["routing"]) == ends + 1
    assert tried == targets[: ends + 1]


@pytest.mark.parametrize(
    "table",
    [
        5,
        {},
        {"targets": []},
        {"targets": ["a", "a"]},
        {"targets": [str(index) for index in range(9)]},
        {"targets": ["a"], "on": ["bad luck"]},
        {"targets": ["a"], "on": "error"},
        {"targets": ["a"], "order": "random"},
        {"targets": ["a"], "timeout": 0},
        {"targets": ["a"], "max_cost": "1"},
        {"targets": ["a"], "outputs": "lose"},
        {"targets": ["a"], "retries": 3},
    ],
)
def test_tables_that_make_no_route(table: Any) -> None:
    with pytest.raises(ConfigError, match=r'\[routes."best"\]'):
        routes.read({"best": table})
