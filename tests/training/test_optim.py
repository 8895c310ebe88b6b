"""Optimisers: which parameter goes where, what Muon does to a matrix, and the schedule's values."""

from __future__ import annotations

import pytest
import torch
from tiny import dials, tiny
from torch import nn

from imagewright.models.technique import sort_parameters
from imagewright.training.optim import Muon, Optimizers, lr_scale, orthogonalise


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.positions = nn.Parameter(torch.zeros(3, 4))
        self.inward = nn.Linear(4, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6)) for _ in range(2))
        self.blocks[0].offset = nn.Parameter(torch.zeros(2, 6))
        self.conv = nn.Conv2d(2, 2, 3)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_parameters_are_sorted_by_name_and_shape() -> None:
    net = Net()
    names = {id(p): name for name, p in net.named_parameters()}
    found = {group: {names[id(p)] for p in members} for group, members in sort_parameters(net).items()}
    assert found["hidden"] == {"blocks.0.0.weight", "blocks.1.0.weight"}
    assert found["decay"] == {"inward.weight", "conv.weight"}
    rest = {"words.weight", "positions", "inward.bias", "conv.bias", "blocks.0.offset"}
    rest |= {f"blocks.{i}.{p}" for i in (0, 1) for p in ("0.bias", "1.weight", "1.bias")}
    assert found["no_decay"] == rest


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16), (3, 32, 64)])
def test_muon_makes_singular_values_about_one(shape: tuple[int, ...]) -> None:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before = torch.linalg.svdvals(g)
    after = torch.linalg.svdvals(orthogonalise(g).float())
    assert before.max() / before.min() > 2
    assert after.min() > 0.3 and after.max() < 1.3
    assert (after - 1).abs().mean() < 0.25


def test_orthogonalised_keeps_the_singular_vectors() -> None:
    g = torch.randn(24, 24, generator=torch.Generator().manual_seed(2))
    u, _, vt = torch.linalg.svd(g)
    inner = u.mT @ orthogonalise(g, steps=5).float() @ vt.mT  # diagonal if the vectors are kept
    off = inner - torch.diag(inner.diagonal())
    assert inner.diagonal().min() > 0.3
    assert off.abs().max() < 0.05


def _matrices() -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(3)
    shapes = [(8, 8), (8, 16), (8, 8), (16, 8), (8, 8)]
    params = [nn.Parameter(torch.randn(shape, generator=rng)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=rng)
    return params


def test_muon_in_stacks_equals_muon_one_at_a_time() -> None:
    together, alone = _matrices(), _matrices()
    stacked = Muon(together, lr=0.1, weight_decay=0.1)
    single = [Muon([p], lr=0.1, weight_decay=0.1) for p in alone]
    for _ in range(3):
        stacked.step()
        for member in single:
            member.step()
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)  # bfloat16 products may round differently


def test_muon_scales_tall_matrices_and_decays() -> None:
    p = nn.Parameter(torch.ones(32, 8))
    p.grad = torch.zeros(32, 8)
    Muon([p], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(p.detach(), torch.full((32, 8), 0.95))
    q = nn.Parameter(torch.zeros(32, 8))
    q.grad = torch.randn(32, 8, generator=torch.Generator().manual_seed(4))
    Muon([q], lr=0.5).step()
    assert torch.linalg.svdvals(q.detach()).mean() == pytest.approx(0.5 * 2, rel=0.25)


def test_muon_sees_a_convolution_as_a_matrix() -> None:
    rng = torch.Generator().manual_seed(5)
    kernel, gradient = torch.randn(6, 4, 3, 3, generator=rng), torch.randn(6, 4, 3, 3, generator=rng)
    conv = nn.Parameter(kernel.clone(memory_format=torch.channels_last))
    matrix = nn.Parameter(kernel.flatten(1).clone())
    conv.grad, matrix.grad = gradient.clone(), gradient.flatten(1).clone()
    for p in (conv, matrix):
        Muon([p], lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(conv.detach().flatten(1), matrix.detach(), rtol=0, atol=2e-3)
    assert not torch.equal(conv.detach(), kernel)


def test_muon_takes_hidden_matrices_only_if_asked() -> None:
    model = tiny()
    with_muon = Optimizers(model.param_groups(), dials(muon=True))
    without = Optimizers(model.param_groups(), dials(muon=False))
    assert [type(m).__name__ for m in with_muon.members] == ["Muon", "AdamW"]
    assert [type(m).__name__ for m in without.members] == ["AdamW"]
    assert set(with_muon.parameters) == set(without.parameters) == set(model.parameters())


def test_schedule_values() -> None:
    wsd = dials(steps=100, warmup=10, schedule="wsd", cooldown=0.2)
    assert [lr_scale(s, wsd) for s in (0, 4, 9, 10, 79, 80)] == [0.1, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert [lr_scale(s, wsd) for s in (90, 99, 100, 500)] == pytest.approx([0.5, 0.05, 0.0, 0.0])
    cosine = dials(steps=110, warmup=10, schedule="cosine")
    assert [lr_scale(s, cosine) for s in (10, 60, 110)] == pytest.approx([1.0, 0.5, 0.0])
    constant = dials(steps=10, warmup=0, schedule="constant")
    assert {lr_scale(s, constant) for s in (0, 5, 9, 99)} == {1.0}


@pytest.mark.parametrize("schedule", ["constant", "cosine", "wsd"])
@pytest.mark.parametrize(("steps", "warmup", "cooldown"), [(1, 0, 0.0), (5, 5, 1.0), (3, 50, 0.5), (40, 3, 0.0)])
def test_a_schedule_never_stops_or_explodes(schedule: str, steps: int, warmup: int, cooldown: float) -> None:
    config = dials(schedule=schedule, steps=steps, warmup=warmup, cooldown=cooldown)
    assert all(0 < lr_scale(s, config) <= 1 for s in range(steps))
