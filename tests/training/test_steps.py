"""What a step does with numbers that are not finite, in one student of a stack."""

from __future__ import annotations

import math

import pytest
import torch

from rltemp.kd.signals import Signals
from rltemp.training.steps import shielded

LARGE = torch.finfo(torch.float32).max


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sample_whose_logits_are_not_finite_is_shown_as_zeros(value: float) -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    logits[1, 2, 3] = value
    seen = shielded(Signals(logits, torch.zeros(2, 3, 4), stacked=True)).student_logits
    assert torch.equal(seen[1, 2], torch.zeros(4))
    logits[1, 2], expected = 0.0, logits
    assert torch.equal(seen, expected)


def test_logits_whose_sum_is_not_finite_are_shown_as_they_are() -> None:
    logits = torch.tensor([[[LARGE, LARGE, -LARGE], [-LARGE, -LARGE, 0.0]]])
    assert torch.equal(shielded(Signals(logits, torch.zeros(1, 2, 3), stacked=True)).student_logits, logits)


def test_no_gradient_reaches_a_sample_that_is_not_finite() -> None:
    logits = torch.tensor([[[1.0, math.nan], [2.0, 3.0]]], requires_grad=True)
    shielded(Signals(logits, torch.zeros(1, 2, 2), stacked=True)).student_logits.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[[0.0, 0.0], [1.0, 1.0]]]
