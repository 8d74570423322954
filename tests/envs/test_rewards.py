"""Potentials worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rltemp.envs.episode import Decision
from rltemp.envs.rewards import (
    MARGIN_SLOPE,
    POTENTIALS,
    WORST,
    accuracy,
    bounded,
    log_likelihood,
    log_odds,
    margin,
)
from rltemp.policy.features import FEATURES

PROBE = torch.arange(100, 140)


def test_margin_worked_by_hand() -> None:
    # Logits (1, 0, -1): mean 0, deviation sqrt(2/3); the first leads the second by 1.
    logits = torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.0, -1.0]])
    ahead = 1 / (1 + math.exp(-MARGIN_SLOPE / math.sqrt(2 / 3)))
    behind = 1 / (1 + math.exp(MARGIN_SLOPE / math.sqrt(2 / 3)))
    assert float(margin(logits[:1], torch.tensor([0]))) == pytest.approx(ahead)
    assert float(margin(logits[:1], torch.tensor([1]))) == pytest.approx(behind, rel=1e-4)
    assert float(margin(logits, torch.tensor([0, 1]))) == pytest.approx((ahead + behind) / 2)


def test_log_likelihood_worked_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])
    assert float(log_likelihood(logits, torch.tensor([1, 0]))) == pytest.approx((math.log(0.75) + math.log(0.5)) / 2)


def test_margin_sees_neither_the_scale_nor_the_shift_of_a_samples_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 5, generator=generator)
    labels = torch.randint(0, 5, (20,), generator=generator)
    moved = logits * torch.logspace(-2, 2, 20)[:, None] + torch.linspace(-3, 3, 20)[:, None]
    torch.testing.assert_close(margin(moved, labels), margin(logits, labels), rtol=0, atol=1e-5)
    assert abs(log_likelihood(moved, labels) - log_likelihood(logits, labels)) > 0.1


@pytest.mark.parametrize("name", sorted(POTENTIALS))
def test_a_potential_gives_every_student_of_a_stack_its_own_number(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 4, generator=generator)
    labels = torch.randint(0, 4, (7,), generator=generator)
    together = POTENTIALS[name](logits, labels)
    assert together.shape == (3,)
    for student in range(3):
        torch.testing.assert_close(together[student], POTENTIALS[name](logits[student], labels))
    assert bool((together > WORST[name]).all())


@pytest.mark.parametrize("name", sorted(POTENTIALS))
def test_logits_without_a_margin_give_a_finite_potential(name: str) -> None:
    assert bool(POTENTIALS[name](torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)).isfinite())


def test_every_potential_has_its_worst_and_every_default_feature_exists() -> None:
    assert set(POTENTIALS) == set(WORST)
    assert set(Decision.make("fixed:4").features) <= set(FEATURES)


def test_log_odds_are_those_of_the_smooth_accuracy_and_bounded() -> None:
    # standardised logits (1, -1) have a margin of 2: sigmoid(40) is 1, sigmoid(-40) is 0, and their mean 1/2
    logits, labels = torch.tensor([[3.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1])
    assert log_odds(logits, labels).item() == pytest.approx(0.0, abs=1e-6)
    assert log_odds(logits[:1], labels[:1]).item() == pytest.approx(math.log(999), rel=1e-3)
    assert log_odds(logits[1:], labels[1:]).item() == pytest.approx(WORST["log_odds"], rel=2e-3)


def test_accuracy_is_the_share_that_is_predicted_right() -> None:
    logits = torch.tensor([[3.0, 1.0], [0.0, 1.0], [2.0, 1.0], [0.5, 0.4]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 0])).item() == 0.75


def test_log_odds_pay_more_for_a_point_near_the_top() -> None:
    def value(right: int) -> float:
        logits = torch.tensor([[3.0, 1.0]]).expand(100, 2)
        return float(log_odds(logits, (torch.arange(100) >= right).long()))

    assert value(98) - value(97) > 5 * (value(51) - value(50))


@pytest.mark.parametrize("name", sorted(POTENTIALS))
@pytest.mark.parametrize("own", [True, False])
def test_a_potential_under_a_mask_is_that_of_the_samples_left(name: str, own: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 9, 4, generator=generator)
    mask = torch.rand(3 if own else 1, 9, generator=generator) < 0.6
    labels = torch.randint(0, 4, mask.shape, generator=generator).masked_fill(~mask, -100)
    garbage = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
    seen = torch.where(mask[..., None], logits, garbage).requires_grad_()
    given = (labels, mask) if own else (labels[0], mask[0])
    together = POTENTIALS[name](seen, *given)
    assert together.shape == (3,)
    for student, (kept, wanted) in enumerate(zip(mask.expand(3, 9), labels.expand(3, 9), strict=True)):
        alone = POTENTIALS[name](logits[student][kept], wanted[kept])
        torch.testing.assert_close(together[student], alone)


@pytest.mark.parametrize("name", sorted(POTENTIALS))
def test_a_mask_of_trues_changes_no_potential_an_empty_one_gives_none(name: str) -> None:
    logits, labels = torch.randn(2, 9, 4), torch.zeros(9, dtype=torch.int64)
    every = torch.ones(9, dtype=torch.bool)
    torch.testing.assert_close(POTENTIALS[name](logits, labels, every), POTENTIALS[name](logits, labels))
    assert POTENTIALS[name](logits, labels, ~every).isnan().all()


def test_a_lost_student_counts_as_the_worst_and_no_less() -> None:
    found = bounded(torch.tensor([-3.0, -1e30, -torch.inf, torch.nan]), "log_likelihood")
    assert found.tolist() == [-3.0, -20.0, -20.0, -20.0]
