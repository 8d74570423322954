"""An action of zero is the reference itself; any other is a factor of it, within bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rltemp import BadInputError, Signals, Temperatures
from rltemp.actions import ActionScale
from rltemp.rules import RULES, dtkd, fixed


def reference_of(temperature: float = 4.0, *shape: int) -> Temperatures:
    return fixed(temperature)(Signals(torch.zeros(*shape, 3), torch.zeros(*shape, 3)))


@pytest.mark.parametrize("name", sorted(RULES))
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 0.1, 3.0, 1e3]), ratio=st.floats(1.01, 100))
@settings(max_examples=30)
def test_an_action_of_zero_is_every_rule_to_the_last_bit(name: str, seed: int, scale: float, ratio: float) -> None:
    student, teacher = torch.randn(2, 2, 16, 10, generator=torch.Generator().manual_seed(seed)) * scale
    reference = RULES[name]()(Signals(student, teacher, torch.zeros(2, 16, dtype=torch.long)))
    same = ActionScale(ratio, 1.0, 5.0).apply(reference, torch.zeros(2, 16, 2))
    for field in ("student", "teacher", "weight"):
        assert torch.equal(getattr(same, field), getattr(reference, field)), field


@pytest.mark.parametrize("temperature", [1e-3, 0.2, 0.5, 20.0, 50.0, 1e6])
def test_an_action_of_zero_is_the_reference_even_outside_the_bounds(temperature: float) -> None:
    reference = reference_of(temperature, 5)
    same = ActionScale(5.0, 0.5, 20.0).apply(reference, torch.zeros(5, 2))
    assert torch.equal(same.student, reference.student)
    assert torch.equal(same.weight, reference.weight)


def test_outside_the_bounds_an_action_can_only_lead_back() -> None:
    scale = ActionScale(5.0, 0.5, 20.0)
    up, down = torch.ones(1, 2), -torch.ones(1, 2)
    assert scale.apply(reference_of(50.0, 1), up).student.item() == 50.0
    assert scale.apply(reference_of(50.0, 1), down).student.item() == pytest.approx(10.0)
    assert scale.apply(reference_of(0.2, 1), down).student.item() == pytest.approx(0.2)
    assert scale.apply(reference_of(0.2, 1), up).student.item() == pytest.approx(1.0)


def test_student_and_teacher_move_apart_and_the_weight_moves_with_both() -> None:
    # ratio 4: an action of 1/2 doubles, one of -1/4 divides by the square root of 2
    moved = ActionScale(4.0, 0.5, 20.0).apply(reference_of(4.0, 1), torch.tensor([[0.5, -0.25]]))
    assert moved.student.item() == pytest.approx(8.0)
    assert moved.teacher.item() == pytest.approx(4.0 / math.sqrt(2))
    assert moved.weight.item() == pytest.approx(16.0 * 2 / math.sqrt(2))


def test_the_weight_stays_the_product_where_the_reference_has_it_and_a_bound_is_hit() -> None:
    moved = ActionScale(5.0, 0.5, 20.0).apply(reference_of(8.0, 1), torch.tensor([[1.0, -1.0]]))
    assert (moved.student.item(), moved.teacher.item()) == pytest.approx((20.0, 1.6))
    assert moved.weight.item() == pytest.approx(20.0 * 1.6)


def test_actions_are_clipped_to_the_box() -> None:
    scale, reference = ActionScale(2.0, 0.5, 20.0), reference_of(4.0, 2)
    wild = scale.apply(reference, torch.tensor([[7.0, -7.0], [1e30, -math.inf]]))
    assert wild.student.tolist() == [8.0, 8.0]
    assert wild.teacher.tolist() == [2.0, 2.0]


@given(seed=st.integers(0, 10**6), ratio=st.floats(1.01, 1e3))
@settings(max_examples=30)
def test_temperatures_stay_within_the_bounds_and_positive(seed: int, ratio: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 30, 10, generator=generator) * 3
    reference = dtkd()(Signals(student, teacher))
    moved = ActionScale(ratio, 0.5, 20.0).apply(reference, 3 * torch.randn(30, 2, generator=generator))
    for values in (moved.student, moved.teacher):
        assert ((values >= 0.5) & (values <= 20.0)).all()
    torch.testing.assert_close(moved.weight, moved.student * moved.teacher)


def test_gradient_reaches_the_action_as_worked_by_hand() -> None:
    # d/da 4 * 2^a = 4 * log 2 * 2^a: 4 log 2 at a = 0; nothing beyond the box
    action = torch.tensor([[0.0, 3.0]], requires_grad=True)
    moved = ActionScale(2.0, 0.5, 20.0).apply(reference_of(4.0, 1), action)
    (moved.student + moved.teacher).sum().backward()
    assert action.grad is not None
    assert action.grad.tolist() == [[pytest.approx(4 * math.log(2)), 0.0]]


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (1, 2), (1, 5, 2), (2, 5)])
def test_actions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match=r"actions have shape .* needed: \(5, 2\)"):
        ActionScale().apply(reference_of(4.0, 5), torch.zeros(shape))


@pytest.mark.parametrize(
    "fields",
    [(1.0, 0.5, 20.0), (5.0, 0.0, 20.0), (5.0, 2.0, 2.0), (math.inf, 0.5, 20.0), (5.0, 0.5, math.nan)],
)
def test_a_scale_that_moves_nothing_or_has_no_bounds_is_refused(fields: tuple[float, ...]) -> None:
    with pytest.raises(BadInputError, match="ratio must be above 1 and 0 < minimum < maximum"):
        ActionScale(*fields)
