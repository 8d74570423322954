"""Losses are one number a sample, in float32, and have the values of the note's section (c)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rltemp import BadInputError, Signals, Temperatures, kd_loss
from rltemp.losses import cross_entropy
from rltemp.rules import fixed

Vector = tuple[Tensor, Tensor, Tensor]


def batch(*vectors: Vector, dtype: torch.dtype = torch.float32) -> Signals:
    teacher, student, label = (torch.stack(column) for column in zip(*vectors, strict=True))
    return Signals(student.to(dtype), teacher.to(dtype), label)


# T^2 KL of vectors A and B: temperature-methods.md, section 15.1.
@pytest.mark.parametrize(
    ("temperature", "a", "b"),
    [
        (0.1, 0.000000, 0.001269),
        (0.5, 0.039335, 0.120613),
        (1.0, 0.275230, 0.363458),
        (2.0, 0.557829, 0.658431),
        (4.0, 0.588278, 0.853351),
        (8.0, 0.540373, 0.943296),
        (20.0, 0.495355, 0.987643),
        (100.0, 0.468024, 1.006965),
    ],
)
def test_squared_temperature_times_divergence_has_the_golden_values(
    vector_a: Vector, vector_b: Vector, temperature: float, a: float, b: float
) -> None:
    signals = batch(vector_a, vector_b)
    loss = kd_loss(signals, fixed(temperature)(signals))
    # Six digits are given; float32 leaves about 1e-7 nats in the divergence, which the weight multiplies.
    tolerance = 1e-6 + 1.5e-7 * temperature**2
    torch.testing.assert_close(loss, torch.tensor([a, b]), rtol=0, atol=tolerance)


def test_the_divergence_at_one_is_worked_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2)
    signals = Signals(torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]]))
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert kd_loss(signals, fixed(1.0)(signals)).item() == pytest.approx(by_hand, rel=1e-6)


def test_each_network_has_its_own_temperature_and_each_sample_its_own_weight() -> None:
    # Student at T = 2: logits (1, 0). Teacher at T = 4: (1, 0) too, so no divergence; at T = 2 there is one.
    signals = Signals(torch.tensor([[2.0, 0.0]] * 2), torch.tensor([[4.0, 0.0]] * 2))
    split = Temperatures(torch.tensor([2.0, 2.0]), torch.tensor([4.0, 2.0]), torch.tensor([5.0, 7.0]))
    loss = kd_loss(signals, split)
    assert loss[0].item() == pytest.approx(0.0, abs=1e-6)
    plain = kd_loss(signals, fixed(2.0)(signals))[1].item()
    same_student = Signals(signals.student_logits, signals.teacher_logits)
    assert plain > 0
    assert kd_loss(same_student, split)[1].item() == pytest.approx(7.0 / 4.0 * plain, rel=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (6,), (3, 6)])
def test_losses_are_never_averaged(shape: tuple[int, ...]) -> None:
    labels = torch.ones(shape, dtype=torch.long)
    signals = Signals(torch.randn(*shape, 5), torch.randn(*shape, 5), labels)
    assert kd_loss(signals, fixed()(signals)).shape == shape
    assert cross_entropy(signals).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_losses_are_float32_whatever_the_logits_are(dtype: torch.dtype) -> None:
    signals = Signals(torch.randn(4, 100).to(dtype), torch.randn(4, 100).to(dtype), torch.zeros(4, dtype=torch.long))
    assert kd_loss(signals, fixed()(signals)).dtype == torch.float32
    assert cross_entropy(signals).dtype == torch.float32


def test_a_divergence_is_zero_only_between_equals_and_never_negative() -> None:
    student, teacher = torch.randn(2, 200, 10) * 5
    signals = Signals(student, teacher)
    assert (kd_loss(signals, fixed(1.0)(signals)) > 0).all()
    same = Signals(student, student + 3)
    assert kd_loss(same, fixed(1.0)(same)).abs().max() < 1e-5


def test_extreme_logits_stay_finite_with_their_gradient() -> None:
    student = (torch.randn(8, 10) * 1e4).requires_grad_()
    signals = Signals(student, torch.randn(8, 10) * 1e4)
    loss = kd_loss(signals, fixed(0.5)(signals))
    loss.sum().backward()
    assert student.grad is not None
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


def test_cross_entropy_has_the_golden_values(vector_a: Vector, vector_b: Vector) -> None:
    loss = cross_entropy(batch(vector_a, vector_b))
    torch.testing.assert_close(loss, torch.tensor([0.49518190, 0.86488459]), rtol=1e-6, atol=0)


def test_cross_entropy_without_labels_says_so() -> None:
    with pytest.raises(BadInputError, match="needs labels"):
        cross_entropy(Signals(torch.zeros(2, 3), torch.zeros(2, 3)))
