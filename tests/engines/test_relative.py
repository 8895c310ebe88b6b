"""Wishes relative to a model's own: shape, steps, guidance; and what was said on the way to a request."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagewright.engines.engine import adapt
from imagewright.errors import RequestError
from imagewright.request import Adjustment, Capabilities, ImageRequest

CAN = Capabilities(
    size=(64, 64), default_size=(256, 256), steps=True, default_steps=16, guidance=True, default_guidance=4.0
)
BARE = Capabilities(size=(64, 64), any_size=False)


def adapted(can: Capabilities = CAN, **fields: object) -> tuple[ImageRequest, dict[str, str]]:
    request, made = adapt(ImageRequest(prompt="a fox", **fields), can)  # type: ignore[arg-type]
    return request, {adjustment.field: adjustment.reason for adjustment in made}


@pytest.mark.parametrize(
    ("aspect", "size"),
    [((1, 1), (256, 256)), ((3, 2), (312, 208)), ((2, 3), (208, 312)), ((16, 9), (344, 192)), ((20, 1), (1144, 56))],
)
def test_an_aspect_keeps_the_area(aspect: tuple[int, int], size: tuple[int, int]) -> None:
    request, said = adapted(aspect=aspect)
    assert (request.size, said) == (size, {})


@given(st.integers(1, 400), st.integers(1, 400))
def test_sides_are_multiples_of_eight_near_the_area(width: int, height: int) -> None:
    if not 1 / 20 <= width / height <= 20:
        with pytest.raises(RequestError, match="aspect"):
            ImageRequest(prompt="x", aspect=(width, height))
        return
    size = adapted(aspect=(width, height))[0].size
    assert size is not None
    assert all(side % 8 == 0 or width == height for side in size)
    assert 0.9 < prod(size) / 256**2 < 1.1


def test_an_aspect_gives_way_and_that_is_said() -> None:
    assert adapted(aspect=(3, 2), size=(100, 100))[1] == {"aspect": "the size was asked for"}
    assert adapted(BARE, aspect=(3, 2))[1] == {"aspect": "this model makes one size only"}


@pytest.mark.parametrize(("quality", "steps"), [("auto", 16), ("medium", 16), ("low", 8), ("high", 32)])
def test_quality_is_a_factor_on_the_steps(quality: str, steps: int) -> None:
    request, said = adapted(quality=quality)
    assert (request.num_inference_steps, said) == (steps, {})


@pytest.mark.parametrize(("stylize", "guidance"), [(0, 2), (0.5, 3), (1, 4), (5.5, 6), (10, 8)])
def test_stylize_turns_the_guidance(stylize: float, guidance: float) -> None:
    request, said = adapted(stylize=stylize)
    assert (request.guidance_scale, said) == (guidance, {})


def test_what_was_asked_for_outright_wins_and_what_is_not_there_is_said() -> None:
    request, said = adapted(quality="high", num_inference_steps=5, stylize=2, guidance_scale=3)
    assert (request.num_inference_steps, request.guidance_scale, set(said)) == (5, 3, {"quality", "stylize"})
    assert adapted(BARE, quality="low", stylize=0)[1] == {
        "quality": "this model has no steps",
        "stylize": "this model has no guidance",
    }


def test_what_was_said_on_the_way_comes_first() -> None:
    said = Adjustment("--fast", "on", None, "there is one speed")
    assert list(adapted(BARE, adjustments=(said,), stop=0.5)[1]) == ["--fast", "stop"]


@pytest.mark.parametrize("fields", [{"aspect": (0, 1)}, {"aspect": (5000, 4000)}, {"stylize": 11}, {"quality": "best"}])
def test_values_that_cannot_be_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        adapted(**fields)
