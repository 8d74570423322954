"""Losses are one number a sample, never averaged, in float32 (float64 for float64 logits).

Their values are those of test_rule_values.py; a few stand here by hand.
"""

from __future__ import annotations

import math

import pytest
import torch

from rltemp import Signals, Temperatures, kd_loss
from rltemp.kd.divergences import DIVERGENCES
from rltemp.kd.losses import cross_entropy
from rltemp.rules import fixed


def test_the_divergence_at_one_is_worked_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2)
    signals = Signals(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd_loss(signals, fixed(1.0)(signals)).item() == pytest.approx(by_hand, rel=1e-6)


def test_each_network_has_its_temperature_and_each_sample_its_weight() -> None:
    # Student at T = 2: logits (1, 0). Teacher at T = 4: (1, 0) too, so no divergence; at T = 2 there is one.
    signals = Signals(torch.tensor([[2.0, 0.0]] * 2), torch.tensor([[4.0, 0.0]] * 2))
    split = Temperatures(torch.tensor([2.0, 2.0]), torch.tensor([4.0, 2.0]), torch.tensor([5.0, 7.0]))
    loss = kd_loss(signals, split)
    assert loss[0].item() == pytest.approx(0.0, abs=1e-6)
    plain = kd_loss(signals, fixed(2.0)(signals))[1].item()
    assert plain > 0
    assert loss[1].item() == pytest.approx(7.0 / 4.0 * plain, rel=1e-6)


def test_another_divergence_takes_the_softened_logits_and_is_weighed() -> None:
    signals = Signals(torch.tensor([[2.0, 0.0]]), torch.tensor([[8.0, 4.0]]))
    split = Temperatures(torch.tensor([2.0]), torch.tensor([4.0]), torch.tensor([3.0]))
    # Softened (1, 0) and (2, 1): one apart in both.
    assert kd_loss(signals, split, DIVERGENCES["mse"]()).item() == 3.0


@pytest.mark.parametrize("shape", [(), (1,), (6,), (3, 6)])
def test_losses_are_never_averaged(shape: tuple[int, ...]) -> None:
    labels = torch.ones(shape, dtype=torch.long)
    signals = Signals(torch.randn(*shape, 5), torch.randn(*shape, 5), labels)
    assert kd_loss(signals, fixed()(signals)).shape == shape
    assert cross_entropy(signals).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_losses_are_float32_for_narrower_logits_and_float64_for_float64(dtype: torch.dtype) -> None:
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    student, teacher = torch.randn(2, 4, 100).to(dtype)
    signals = Signals(student, teacher, torch.zeros(4, dtype=torch.long))
    assert kd_loss(signals, fixed()(signals)).dtype == computed
    assert cross_entropy(signals).dtype == computed
