"""The moving average: its arithmetic, its warm-up, and that borrowing it leaves the weights untouched."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny
from torch import nn

from imagewright.training.ema import Ema


def test_the_average_follows_its_formula() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema = Ema(net, decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 3.0, -2.0, 8.0, 5.0, 7.0, 1.0, 9.0, 2.0, 4.0, 6.0]):
        nn.init.constant_(net.weight, value)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert ema.tensors["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_no_decay_means_the_weights_themselves() -> None:
    net = tiny()
    ema = Ema(net, decay=0.0)
    with torch.no_grad():
        net.outward.weight.add_(1.0)
    ema.update(1000)
    assert torch.equal(ema.tensors["outward.weight"], net.outward.weight)


def test_averages_are_lent_and_taken_back_bit_for_bit() -> None:
    net = tiny()
    ema = Ema(net, decay=0.9)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for tensor in ema.tensors.values():
        tensor.fill_(0.25)
    with pytest.raises(ZeroDivisionError), ema.applied():
        assert all((p == 0.25).all() for p in net.parameters())
        raise ZeroDivisionError
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_frozen_parameters_are_left_out() -> None:
    net = tiny()
    net.inward.requires_grad_(False)
    assert not any(name.startswith("inward") for name in Ema(net, 0.9).tensors)
