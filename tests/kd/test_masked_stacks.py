"""A stack with masks: a student's answers are those of its own samples alone, whatever stands in the other places."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.masks import assert_each_is_as_alone, masked_stack
from support.policies import random_policy
from support.signals import columns, started
from torch import Tensor

from rltemp import Method, Signals, Temperatures, kd_loss, load_method, load_rule
from rltemp.kd.checks import unlawful
from rltemp.kd.divergences import DIVERGENCES
from rltemp.kd.losses import batch_mean, cross_entropy
from rltemp.policy.features import FEATURES, featurize
from rltemp.rules import RULES
from rltemp.rules.controls import CONTROLS
from rltemp.rules.published_methods import METHODS

CLASSES = 7
MASK = torch.tensor(
    [[1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0], [0] * 12, [1] * 12], dtype=torch.bool
)
"""Of four students: eight samples, one, none, all."""
SEEDS = [3, 4, 5, 6]

every_method = pytest.mark.parametrize(
    "name",
    [
        *sorted(METHODS),
        *(f"matched:{name}" for name in sorted(METHODS) if name != "none"),
        *(f"{control}:{inner}" for control in CONTROLS for inner in ("dtkd", "idts", "universal")),
        "matched:shuffled:dtkd",
        "universal",
        "fixed:ce_weight=0,divergence=reverse_kl",
    ],
)
# torch's, of a median, a mean or a deviation of no sample at all
quiet = pytest.mark.filterwarnings("ignore:(var|std|mean)\\(\\):UserWarning")


@quiet
@every_method
@pytest.mark.parametrize("axes", [(12,), (3, 4)])
def test_a_masked_stacks_loss_is_each_students_own(name: str, axes: tuple[int, ...]) -> None:
    signals = masked_stack(MASK.view(4, *axes), CLASSES)
    found = started(load_method(name), CLASSES, SEEDS).loss(signals)
    assert_each_is_as_alone(
        signals, found, lambda place, own: started(load_method(name), CLASSES, SEEDS[place]).loss(own)
    )


@quiet
@pytest.mark.parametrize("reference", ["fixed:4", "idts", "dtkd"])
@pytest.mark.parametrize("balanced", [False, True])
def test_a_masked_stacks_loss_under_a_policy_is_each_students_own(
    tmp_path: Path, reference: str, balanced: bool
) -> None:
    path = random_policy(tmp_path / "policy.safetensors", 8, reference=reference, balanced=balanced)
    signals, method = masked_stack(MASK, CLASSES), load_method(str(path))
    assert_each_is_as_alone(signals, method.loss(signals), lambda _, own: method.loss(own))


@quiet
@pytest.mark.parametrize("name", [*sorted(RULES), "universal"])
def test_a_masked_stacks_temperatures_are_each_students_own(name: str) -> None:
    signals = masked_stack(MASK, CLASSES)
    found = started(load_rule(name), CLASSES, SEEDS)(signals)
    for field, elsewhere in (("student", 1.0), ("teacher", 1.0), ("weight", 0.0)):
        assert (getattr(found, field)[~MASK] == elsewhere).all()
    for place, own in enumerate(signals.students()):
        alone = started(load_rule(name), CLASSES, SEEDS[place])(own)
        torch.testing.assert_close(columns(found)[place], columns(alone))
        assert (found.guarded is None) == (alone.guarded is None) or name in ("idts", "cswt")


@pytest.mark.parametrize("name", sorted(DIVERGENCES))
def test_a_masked_stacks_divergences_are_each_students_own(name: str) -> None:
    signals, divergence, rule = masked_stack(MASK, CLASSES), DIVERGENCES[name](), load_rule("normkd")
    found = kd_loss(signals, rule(signals), divergence)
    assert_each_is_as_alone(signals, found, lambda _, own: kd_loss(own, rule(own), divergence))
    assert_each_is_as_alone(signals, cross_entropy(signals), lambda _, own: cross_entropy(own))


def test_the_features_of_a_masked_stack_are_each_students_own() -> None:
    signals = masked_stack(MASK, CLASSES)
    found = featurize(signals, list(FEATURES))
    assert (found[~MASK] == 0).all()
    for place, own in enumerate(signals.students()):
        torch.testing.assert_close(found[place][MASK[place]], featurize(own.samples(), list(FEATURES)))


@every_method
def test_a_masked_stack_of_which_nothing_is_left_costs_nothing(name: str) -> None:
    signals = masked_stack(torch.zeros(3, 12, dtype=torch.bool), CLASSES)
    loss = started(load_method(name), CLASSES, SEEDS[:3]).loss(signals)
    mean = batch_mean(loss, signals.mask)
    assert mean.tolist() == [0.0, 0.0, 0.0]
    mean.sum().backward()
    assert (signals.student_logits.grad == 0).all()


def test_the_mean_of_a_batch_is_over_the_samples_that_its_mask_leaves() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [4.0, torch.nan, 10.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert batch_mean(values, mask).tolist() == [3.0, 4.0]
    assert (batch_mean(values[1], mask[1]).shape, batch_mean(values[1], mask[1]).item()) == ((), 4.0)


@pytest.mark.parametrize("shape", [(129,), (5, 67)])
def test_the_mean_of_a_batch_without_a_mask_is_its_mean_to_the_bit(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    assert torch.equal(batch_mean(values, None), values.mean(-1))


@pytest.mark.parametrize("alone", [True, False])
def test_bounds_that_leave_out_one_are_kept_where_a_mask_has_no_sample(alone: bool) -> None:
    def rule(signals: Signals) -> Temperatures:
        return Temperatures(signals.full(2.5), signals.full(3.0), signals.full(7.5))

    rule.bounds, rule.per_sample = (2, 8), alone
    method, signals = Method("mine", rule), masked_stack(MASK, CLASSES)
    assert method.loss(signals).isfinite().all()
    found = method.step_loss(signals).temperatures
    assert not unlawful(found, method.rule.bounds).any()
    assert (found.student[~MASK] == 2).all()


def test_a_rule_of_ones_own_is_asked_for_each_student_of_a_masked_stack() -> None:
    seen: list[Tensor] = []

    def rule(signals: Signals) -> Temperatures:
        seen.append(signals.student_logits)
        assert (signals.mask, signals.stacked) == (None, False)
        mean = signals.student_logits.detach().std(-1).mean().expand(signals.shape)
        return Temperatures(mean, mean, mean)

    signals = masked_stack(MASK[[0, 3]], CLASSES)
    found = Method("mine", rule, ce_weight=0.0).loss(signals)
    assert [len(logits) for logits in seen] == [8, 12]
    assert_each_is_as_alone(signals, found, lambda _, own: Method("mine", rule, ce_weight=0.0).loss(own))
