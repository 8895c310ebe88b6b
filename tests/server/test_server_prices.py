"""Prices: an upper bound before the call, the true cost after it, and no price is not a price of nothing."""

from __future__ import annotations

from typing import Any

import pytest
from gatehouse import CENT, Paid, gateway
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagewright.errors import ConfigError
from imagewright.request import ImageRequest, ImageResult
from imagewright.server.errors import ApiError
from imagewright.server.prices import Price, Prices, usage_of
from imagewright.server.security import Caller

GPT = "openai/gpt-image-2"


def result(*records: dict[str, Any], size: tuple[int, int] = (1024, 1024), seconds: float = 1.0) -> ImageResult:
    """Pictures that came with these records."""
    images = tuple(Image.new("L", size) for _ in records)
    return ImageResult(images=images, records=records, model="m", engine="e", seconds=seconds)


def used(text: int, image: int, output: int) -> dict[str, Any]:
    """Usage as OpenAI tells it."""
    details = {"text_tokens": text, "image_tokens": image}
    total = text + image
    return {"input_tokens": total, "output_tokens": output, "input_tokens_details": details}


def test_tokens_are_charged_by_kind() -> None:
    record = {"request_id": "a", "usage": used(100, 1000, 4160)}
    cost = Prices({}).cost(GPT, True, ImageRequest(prompt="x", quality="high"), result(record))
    assert cost == 100 * 5 + 1000 * 8 + 4160 * 30


def test_what_a_call_did_cost_stands_with_its_first_picture() -> None:
    request, first = ImageRequest(prompt="x", n=3), {"usage": used(10, 0, 272)}
    assert Prices({}).cost(GPT, True, request, result(first, {}, {})) == 50 + 272 * 30
    assert Prices({}).cost(GPT, True, request, result(first, {}, first)) == 2 * (50 + 272 * 30)
    assert usage_of(result(first, {}, first)) == (20, 544)
    assert Prices({}).cost(GPT, True, request, result({"cost": 0.0341}, {}, {"cost": 0.02})) == 54_100


def test_what_the_service_says_comes_first() -> None:
    prices = Prices({"e/m": {"image": 0.5}})
    assert prices.cost("e/m", True, ImageRequest(prompt="x"), result({"cost": 0.0000011})) == 2  # rounded up
    assert prices.cost("e/m", True, ImageRequest(prompt="x"), result({})) == 500_000


def test_every_try_is_paid_for() -> None:
    request = ImageRequest(prompt="x", n=2, best_of=3, quality="low")
    chosen = {"refine": [{"step": "choose", "tried": 3}], "usage": used(1, 0, 272), "cost": 0.01}
    prices = Prices({"e/m": {"image": 0.01}})
    assert prices.estimate("e/m", True, request) == prices.cost("e/m", True, request, result(chosen, chosen)) == 60_000
    assert prices.estimate("e/m", True, ImageRequest(prompt="x", min_match=0.5)) == 80_000
    assert prices.estimate("e/m", True, ImageRequest(prompt="x", min_match=0.5, max_tries=3)) == 30_000
    told = {**chosen, "cost": None}
    assert Prices({}).cost(GPT, True, request, result(told, told)) == 6 * (5 + 272 * 30)
    estimate = Prices({}).estimate(GPT, True, request)
    assert estimate is not None and estimate >= 6 * (5 + 272 * 30)


def test_local_models_cost_nothing_unless_the_operator_says_so() -> None:
    request = ImageRequest(prompt="x", n=2)
    assert Prices({}).estimate("embedded/mini", False, request) == 0
    prices = Prices({"embedded/*": {"second": 0.01, "most": 0.05}})
    assert prices.estimate("embedded/mini", False, request) == 100_000
    assert prices.cost("embedded/mini", False, request, result({}, {}, seconds=1.5)) == 15_000
    assert prices.cost("embedded/mini", False, request, result({}, {}, seconds=60)) == 100_000


def test_a_hosted_model_without_a_price_has_none() -> None:
    assert Prices({}).estimate("stability/core", True, ImageRequest(prompt="x")) is None
    assert Prices({}).cost("stability/core", True, ImageRequest(prompt="x"), result({})) is None
    found = gateway(Paid("alpha"))
    assert found.choose(Caller("key_rich"), None, ImageRequest(prompt="x")).estimate is None
    with pytest.raises(ApiError, match=r'\[prices."alpha/m"\]') as refused:
        found.choose(Caller("key_poor", budget=CENT), None, ImageRequest(prompt="x"))
    assert refused.value.code == "price_unknown"


@pytest.mark.parametrize(
    ("image", "request_", "bound", "cost"),
    [
        (0.04, {}, 40_000, 40_000),
        ({"low": 0.01, "high": 0.2}, {"quality": "low"}, 10_000, 10_000),
        ({"low": 0.01, "high": 0.2}, {"quality": "auto"}, 200_000, 200_000),
        ({"low": 0.01, "1024x1024": 0.03}, {"quality": "medium"}, 30_000, 30_000),
        ({"low": 0.01, "low 1536x1024": 0.02}, {"quality": "low", "size": (1024, 1024)}, 20_000, 10_000),
        ({"low 1024x1024": 0.01, "low 1536x1024": 0.02}, {"quality": "low", "size": (1024, 1024)}, 10_000, 10_000),
        ({"1024x1024": 0.03, "1536x1024": 0.05}, {"n": 2}, 100_000, 60_000),
    ],
)
def test_prices_by_picture(image: Any, request_: dict[str, Any], bound: int, cost: int) -> None:
    prices, request = Prices({"e/m": {"image": image}}), ImageRequest(prompt="x", **request_)
    assert prices.estimate("e/m", True, request) == bound
    assert prices.cost("e/m", True, request, result(*[{}] * request.n)) == cost


SIDES = st.sampled_from([1024, 1536, 2048])


@given(
    quality=st.sampled_from(["low", "medium", "high", "auto"]),
    size=st.none() | st.tuples(SIDES, SIDES),
    prompt=st.text(st.characters(categories=["L", "N", "S"]), min_size=1),
    brought=st.booleans(),
    n=st.integers(1, 4),
)
def test_the_estimate_bounds_what_tokens_can_cost(
    quality: str, size: tuple[int, int] | None, prompt: str, brought: bool, n: int
) -> None:
    image = Image.new("L", (8, 8)) if brought else None
    request = ImageRequest(prompt=prompt, quality=quality, size=size, n=n, image=image)
    chosen = "high" if quality == "auto" else quality
    square = {"low": 272, "medium": 1056, "high": 4160}[chosen]
    width, height = size or (1536, 1024)
    output = n * square * width * height // 1024**2
    record = {"request_id": "a", "usage": used(len(prompt.encode()), 6240 if brought else 0, output)}
    estimate = Prices({}).estimate(GPT, True, request)
    cost = Prices({}).cost(GPT, True, request, result(record, *[{}] * (n - 1)))
    assert estimate is not None and cost is not None and cost <= estimate


def test_the_operators_price_wins_also_by_pattern() -> None:
    prices = Prices({"openai/*": {"image": 1}, GPT: {"image": 2}})
    assert prices.of(GPT, True) == Price(image={"": 2_000_000})
    assert prices.of("openai/new", True) == Price(image={"": 1_000_000})


@pytest.mark.parametrize(
    "usage", [None, 5, {}, {"input_tokens": "many"}, {"input_tokens": -5, "output_tokens": None}, {"input_tokens": 3}]
)
def test_usage_that_makes_no_sense_is_survived(usage: Any) -> None:
    cost = Prices({}).cost(GPT, True, ImageRequest(prompt="x", quality="low"), result({"usage": usage, "cost": "x"}))
    assert cost is not None and cost >= 0


@pytest.mark.parametrize(
    "table",
    [
        {},
        5,
        {"image": -1},
        {"image": "0.04"},
        {"image": True},
        {"image": {"huge": 1}},
        {"image": 1, "tokens": {"text": 1, "image": 1, "output": 1}},
        {"tokens": {"text": 1}},
        {"second": 0.01},
        {"each": 1},
    ],
)
def test_tables_that_make_no_sense_are_refused(table: Any) -> None:
    with pytest.raises(ConfigError, match=r'\[prices."e/m"\]'):
        Prices({"e/m": table})
