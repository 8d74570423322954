"""An action of zero is the reference itself; any other is a factor of it, within bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rltemp import BadInputError, Signals, Temperatures, kd_loss
from rltemp.policy.actions import ActionScale
from rltemp.policy.gradient_matching import matching_factor
from rltemp.rules import RULES, dtkd, fixed


def signals_of(*shape: int) -> Signals:
    return Signals(torch.zeros(*shape, 3), torch.zeros(*shape, 3))


def reference_of(temperature: float = 4.0, *shape: int) -> Temperatures:
    return fixed(temperature)(signals_of(*shape))


@pytest.mark.parametrize("name", sorted(RULES))
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 0.1, 3.0, 1e3]), ratio=st.floats(1.01, 100))
@settings(max_examples=30)
def test_an_action_of_zero_is_every_rule_to_the_last_bit(name: str, seed: int, scale: float, ratio: float) -> None:
    student, teacher = torch.randn(2, 2, 16, 10, generator=torch.Generator().manual_seed(seed)) * scale
    signals = Signals(student, teacher, torch.zeros(2, 16, dtype=torch.long), 0.5)
    reference = RULES[name]()(signals)
    same = ActionScale(ratio, 1.0, 5.0).apply(signals, reference, torch.zeros(2, 16, 2))
    for field in ("student", "teacher", "weight"):
        assert torch.equal(getattr(same, field), getattr(reference, field)), field


@pytest.mark.parametrize("temperature", [1e-3, 0.2, 0.5, 20.0, 50.0, 1e6])
def test_an_action_of_zero_is_the_reference_even_outside_the_bounds(temperature: float) -> None:
    reference = reference_of(temperature, 5)
    same = ActionScale(5.0, 0.5, 20.0).apply(signals_of(5), reference, torch.zeros(5, 2))
    assert torch.equal(same.student, reference.student)
    assert torch.equal(same.weight, reference.weight)


@pytest.mark.parametrize(
    ("scale", "temperature", "action", "wanted"),
    [
        # ratio 4: an action of 1/2 doubles, one of -1/4 divides by the square root of 2
        (ActionScale(4.0), 4.0, (0.5, -0.25), (8.0, 4.0 / math.sqrt(2), 16.0 * 2 / math.sqrt(2))),
        # a bound is hit, and the weight stays the product
        (ActionScale(), 8.0, (1.0, -1.0), (20.0, 1.6, 20.0 * 1.6)),
        # outside the bounds an action can only lead back
        (ActionScale(), 50.0, (1.0, 1.0), (50.0, 50.0, 2500.0)),
        (ActionScale(), 50.0, (-1.0, -1.0), (10.0, 10.0, 100.0)),
        (ActionScale(), 0.2, (-1.0, -1.0), (0.2, 0.2, 0.04)),
        (ActionScale(), 0.2, (1.0, 1.0), (1.0, 1.0, 1.0)),
        # actions are clipped to the box
        (ActionScale(2.0), 4.0, (7.0, -7.0), (8.0, 2.0, 16.0)),
        (ActionScale(2.0), 4.0, (1e30, -math.inf), (8.0, 2.0, 16.0)),
        # a third number moves the weight alone
        (ActionScale(weight_ratio=4.0), 4.0, (0.0, 0.0, 0.5), (4.0, 4.0, 32.0)),
    ],
)
def test_an_action_worked_by_hand(
    scale: ActionScale, temperature: float, action: tuple[float, ...], wanted: tuple[float, ...]
) -> None:
    moved = scale.apply(signals_of(1), reference_of(temperature, 1), torch.tensor([action]))
    assert (moved.student.item(), moved.teacher.item(), moved.weight.item()) == pytest.approx(wanted)


@given(seed=st.integers(0, 10**6), ratio=st.floats(1.01, 1e3))
@settings(max_examples=30)
def test_temperatures_stay_within_the_bounds_and_positive(seed: int, ratio: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 30, 10, generator=generator) * 3
    signals = Signals(student, teacher)
    moved = ActionScale(ratio, 0.5, 20.0).apply(signals, dtkd()(signals), 3 * torch.randn(30, 2, generator=generator))
    for values in (moved.student, moved.teacher):
        assert ((values >= 0.5) & (values <= 20.0)).all()
    torch.testing.assert_close(moved.weight, moved.student * moved.teacher)


def test_gradient_reaches_the_action_as_worked_by_hand() -> None:
    # d/da 4 * 2^a = 4 * log 2 * 2^a: 4 log 2 at a = 0; nothing beyond the box
    action = torch.tensor([[0.0, 3.0]], requires_grad=True)
    moved = ActionScale(2.0, 0.5, 20.0).apply(signals_of(1), reference_of(4.0, 1), action)
    (moved.student + moved.teacher).sum().backward()
    assert action.grad.tolist() == [[pytest.approx(4 * math.log(2)), 0.0]]


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (1, 2), (1, 5, 2), (2, 5)])
def test_actions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInputError, match=r"actions have shape .* needed: \(5, 2\)"):
        ActionScale().apply(signals_of(5), reference_of(4.0, 5), torch.zeros(shape))


@pytest.mark.parametrize(
    "fields",
    [(1.0, 0.5, 20.0), (5.0, 0.0, 20.0), (5.0, 2.0, 2.0), (math.inf, 0.5, 20.0), (5.0, 0.5, math.nan)],
)
def test_a_scale_that_moves_nothing_or_has_no_bounds_is_refused(fields: tuple[float, ...]) -> None:
    with pytest.raises(BadInputError, match=r"ratio must be above 1, at most 1000, and 0\.01 <= minimum < maximum"):
        ActionScale(*fields)


def test_a_weight_ratio_of_none_gives_two_numbers_and_below_one_is_refused() -> None:
    assert (ActionScale().size, ActionScale(weight_ratio=2.0).size) == (2, 3)
    with pytest.raises(BadInputError, match=r"weight_ratio must be at least 1, at most 1000; got 0\.5"):
        ActionScale(weight_ratio=0.5)


def test_a_balanced_batch_pulls_as_hard_as_plain_distillation() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 20, 7, generator=generator).requires_grad_()
    signals = Signals(student, 4 * torch.randn(3, 20, 7, generator=generator), stacked=True)
    action = torch.randn(3, 20, 2, generator=generator)
    lengths = []
    for scale, chosen in ((ActionScale(), 0 * action), (ActionScale(balanced=True), action)):
        loss = kd_loss(signals, scale.apply(signals, fixed(4.0)(signals), chosen))
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        lengths.append(gradient.norm(dim=-1).mean(-1))
    torch.testing.assert_close(lengths[1], lengths[0])


def test_the_third_number_comes_on_top_of_a_balance() -> None:
    signals = Signals(torch.randn(6, 5), torch.randn(6, 5))
    scale = ActionScale(weight_ratio=4.0, balanced=True)
    still, moved = (
        scale.apply(signals, fixed(4.0)(signals), torch.tensor([0.3, -0.2, a]).expand(6, 3)) for a in (0.0, 1.0)
    )
    torch.testing.assert_close(moved.weight, 4 * still.weight)


def test_a_balance_at_plain_distillations_temperature_changes_nothing() -> None:
    signals = Signals(torch.randn(6, 5), torch.randn(6, 5))
    torch.testing.assert_close(matching_factor(signals, fixed(4.0)(signals)), torch.ones(6))


def test_a_balance_leaves_out_what_the_mask_leaves_out() -> None:
    student, teacher = torch.randn(2, 2, 8, 5)
    mask = torch.arange(8).expand(2, 8) < 5
    masked = Signals(student.masked_fill(~mask[..., None], math.nan), teacher, mask=mask)
    ones = torch.ones(2, 8)
    found = matching_factor(masked, Temperatures(ones, ones, ones))
    alone = matching_factor(masked.samples(), Temperatures(*torch.ones(3, 10)))
    torch.testing.assert_close(found[mask], alone)


def test_where_nothing_pulls_there_is_nothing_to_balance() -> None:
    logits = torch.randn(4, 3)
    assert matching_factor(Signals(logits, logits), Temperatures(*torch.full((3, 4), 2.0))).tolist() == [0.0] * 4


def test_a_matched_batch_has_plain_distillations_mean_gradient_norm() -> None:
    student = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    signals = Signals(student, 3 * torch.randn(9, 6, dtype=torch.float64))
    temperatures = Temperatures(*(0.5 + 5 * torch.rand(3, 9, dtype=torch.float64)))
    plain, own = (
        torch.autograd.grad(kd_loss(signals, each).sum(), student)[0].norm(dim=-1).mean()
        for each in (fixed(4.0)(signals), temperatures)
    )
    torch.testing.assert_close(matching_factor(signals, temperatures), (plain / own).expand(9))
