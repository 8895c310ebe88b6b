"""The judges' networks and losses."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from imagewright.data.batch import Draws
from imagewright.models import registry
from imagewright.models.judge import (
    ATTRIBUTES,
    AttributeJudgeConfig,
    EncoderJudge,
    EncoderJudgeConfig,
    JudgeBatch,
    Labels,
    Palette,
    contrast,
    jittered,
    known_entropy,
    laid_over,
)

COLOURS = [(0, 0, 0), (0, 0, 1), (1, 0, 0)]
SMALL = {"size": 32, "widths": (16, 32), "blocks": (1, 1)}


def batch_of(rows: int = 8) -> JudgeBatch:
    """Plain colours as concepts: red, green, blue, yellow, and their styles."""
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]).float()
    concept = torch.arange(rows) % 4
    rgb = colours[concept][:, :, None, None].expand(-1, 3, 32, 32) * 2 - 1
    names = [f.name for f in dataclasses.fields(Labels)]
    labels = Labels(**{name: concept.clone() % 3 if name != "concept" else concept for name in names})
    return JudgeBatch(Draws(0, 0, 0, rows, rows), torch.cat([rgb, torch.ones(rows, 1, 32, 32)], 1), labels=labels)


@pytest.mark.parametrize(
    "config",
    [
        EncoderJudgeConfig(**SMALL, concepts=4, groups=3, features=16),
        EncoderJudgeConfig(**SMALL, concepts=4, groups=3, features=16, palette=3),
        AttributeJudgeConfig(**SMALL, things=4, colours=3, slot=16, palette=3),
    ],
)
def test_a_judge_learns_a_batch_by_heart(config: object) -> None:
    torch.manual_seed(0)
    judge = registry.build(registry.to_dict(config))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=5e-3)
    for step in range(60):
        batch = dataclasses.replace(batch_of(), draws=Draws(0, step, 0, 8, 8))
        losses = judge.loss(batch)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert judge.eval().loss(batch_of())["right"] >= 0.9
    with pytest.raises(NotImplementedError, match="makes none"):
        judge.sample(None, [0])


def test_a_transparent_picture_is_judged_over_any_ground() -> None:
    clear = torch.full((2, 4, 8, 8), -1.0)
    grounds = torch.tensor([[1.0, 0, 0], [0, 0.5, 1]])
    assert torch.allclose((laid_over(clear, grounds)[:, :, 3, 3] + 1) / 2, grounds)
    opaque = torch.ones(2, 4, 8, 8)
    assert (laid_over(opaque, grounds) == 1).all()


def test_jitter_keeps_colours_below_alpha_and_depends_on_the_draws_alone() -> None:
    pixels = torch.rand(4, 4, 16, 16) * 2 - 1
    pixels[:, :3] = pixels[:, :3].minimum(pixels[:, 3:])
    one, two = (jittered(pixels, Draws(0, 1, 0, 4, 4)) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, jittered(pixels, Draws(0, 2, 0, 4, 4)))
    assert (one[:, :3] <= one[:, 3:] + 1e-6).all()


def test_a_palette_says_how_much_there_is_of_each_colour() -> None:
    rgb = torch.full((1, 3, 4, 4), -1.0)  # black
    rgb[:, 0, :, 2:] = 1  # its right half is red
    rgb[:, 2, 0, 0] = -0.5  # a pixel of sixteen, a quarter of the way from black to blue: it is one of four that count
    shares = Palette(2)(rgb)[0].square() / 8
    found = {tuple(colour): round(float(shares[4 * colour[0] + 2 * colour[1] + colour[2]]), 4) for colour in COLOURS}
    assert found == {(0, 0, 0): 0.4375, (0, 0, 1): 0.0625, (1, 0, 0): 0.5}
    assert torch.isclose(shares.sum(), torch.tensor(1.0))


def test_convolutions_inside_the_trunk_are_for_muon() -> None:
    groups = registry.build(EncoderJudgeConfig(**SMALL, palette=3)).param_groups()
    assert {p.ndim for p in groups["hidden"]} == {4} and len(groups["hidden"]) == 5
    assert sum(p.ndim == 4 for p in groups["decay"]) == 1  # the first one, which sees the pixels


def test_unknown_labels_cost_nothing() -> None:
    logits = torch.randn(3, 5)
    assert known_entropy(logits, torch.full((3,), -1)) == 0
    known = known_entropy(logits[:1], torch.tensor([2]))
    assert torch.isclose(known_entropy(logits, torch.tensor([2, -1, -1])), known)


def test_the_contrast_is_least_where_concepts_lie_together() -> None:
    apart = torch.eye(4)[[0, 0, 1, 1]] * 5
    assert contrast(apart, torch.tensor([0, 0, 1, 1])) < 0.01 < contrast(apart, torch.tensor([0, 1, 0, 1]))
    assert contrast(apart, torch.tensor([0, 1, 2, -1])) == 0


def test_the_exported_heads_are_those_of_the_network() -> None:
    judge = registry.build(EncoderJudgeConfig(**SMALL, concepts=7, groups=3, features=16)).eval()
    assert isinstance(judge, EncoderJudge)
    graph = judge.graphs()["encoder"]
    for one, other in zip(graph.module(*graph.example), judge(*graph.example), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert len(registry.build(AttributeJudgeConfig(**SMALL)).graphs()["attributes"].outputs) == len(ATTRIBUTES)
