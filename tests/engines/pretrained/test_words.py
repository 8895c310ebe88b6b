"""Weights of words and prompts of any length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_verbs import make, pixels

from imagewright.engines.pretrained import PretrainedEngine, describe, loading, sources, words
from imagewright.request import ImageRequest

Get = Callable[[str], Path]
LONG = "red fox, " * 30  # the tiny tokenizer reads letters: about 210 of them


@pytest.fixture(scope="module")
def pipes(tiny: Get) -> dict[str, Any]:
    return {
        name: loading.open_pipeline(describe.describe(sources.locate(str(tiny(name)))), torch.float32)
        for name in ("sd", "sdxl")
    }


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_our_reading_of_a_short_prompt_is_diffusers_own(pipes: dict[str, Any], family: str) -> None:
    pipe = pipes[family]
    found = words.embedded(pipe, ImageRequest(prompt="A red fox!", negative_prompt="grey"))
    with torch.no_grad():
        own = pipe.encode_prompt("A red fox!", device="cpu", num_images_per_prompt=1,
                                 do_classifier_free_guidance=True, negative_prompt="grey")  # fmt: skip
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    for name, value in zip(names, own, strict=False):
        assert torch.allclose(found[name], value, atol=1e-5), name


def test_an_empty_negative_prompt_is_zero_in_sdxl(pipes: dict[str, Any]) -> None:
    found = words.embedded(pipes["sdxl"], ImageRequest(prompt="a fox"))
    assert not found["negative_prompt_embeds"].any() and found["prompt_embeds"].any()


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_long_prompt_is_read_to_its_end(pipes: dict[str, Any], family: str) -> None:
    one, other = (words.embedded(pipes[family], ImageRequest(prompt=LONG + end)) for end in ("blue", "grey"))
    assert one["prompt_embeds"].shape[1] == 77 * 3 == one["negative_prompt_embeds"].shape[1]
    assert torch.equal(one["prompt_embeds"][:, :154], other["prompt_embeds"][:, :154])
    assert not torch.equal(one["prompt_embeds"], other["prompt_embeds"])


def test_a_weight_moves_its_words_and_no_others(pipes: dict[str, Any]) -> None:
    pipe = pipes["sd"]
    plain, full, none = (
        words.embedded(pipe, ImageRequest(prompt="a red fox", emphasis=((2, 5, weight),)))["prompt_embeds"]
        for weight in (1.0, 1.5, 0.0)
    )
    moved = (plain != full).any(-1)[0].nonzero().flatten().tolist()
    assert moved == [2, 3, 4]  # after the start: "a", then the letters of "red"
    assert torch.allclose(full - plain, 0.5 * (plain - none), atol=1e-5)


def test_overlapping_weights_multiply() -> None:
    assert words.pieces("a red fox", [(2, 9, 2.0), (6, 9, 1.5)]) == [("a ", 1.0), ("red ", 2.0), ("fox", 3.0)]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_weights_and_length_reach_the_picture(tiny: Get, shared: PretrainedEngine, family: str) -> None:
    plain = make(shared, tiny(family))
    stressed = make(shared, tiny(family), emphasis=((2, 5, 1.6),))
    assert not np.array_equal(pixels(plain[0]), pixels(stressed[0]))
    one, other = (make(shared, tiny(family), LONG + end) for end in ("blue", "grey"))
    assert not np.array_equal(pixels(one[0]), pixels(other[0])) and not one.adjustments


def test_what_t5_does_not_read_is_said(tiny: Get, shared: PretrainedEngine) -> None:
    made = make(shared, tiny("sd3"), LONG * 2)
    assert [(a.field, a.used) for a in made.adjustments] == [("prompt", "256 tokens")]
    weighted = make(shared, tiny("sd3"), emphasis=((2, 5, 1.6),))
    assert [a.field for a in weighted.adjustments] == ["emphasis"]
