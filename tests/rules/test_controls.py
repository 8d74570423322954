"""Controls take a part of what temperatures do away: each keeps what it says and changes the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.signals import columns, gradient_norm, uneven
from torch import Tensor

from rltemp import Method, Signals, Temperatures, load_method, load_rule
from rltemp.kd.losses import kd_loss
from rltemp.rules.controls import CONTROLS, LEAST_LENGTH, averaged, detached, shuffled, softness, weighting

every_control = pytest.mark.parametrize("name", CONTROLS)
SPECS = ("dtkd:2", "wttm", "lskd", "dkd", "random")


def lengths(method: Method, signals: Signals) -> Tensor:
    """Each sample's gradient on the student's logits, worked out by torch from the loss itself."""
    loss = kd_loss(signals, method.rule(signals), method.divergence).sum()
    return torch.autograd.grad(loss, signals.student_logits)[0].norm(dim=-1)


def given(*values: tuple[float, float, float]) -> Method:
    """A method whose rule gives these triples to the samples of any batch."""

    def rule(signals: Signals) -> Temperatures:
        table = torch.tensor(values, dtype=signals.dtype).expand(*signals.shape, 3)
        return Temperatures(*table.unbind(-1))

    return Method("given", rule)


def test_detached_answers_the_same_and_lets_no_gradient_through():
    signals, method = uneven(8), load_method("dtkd:2")
    assert method.rule(signals).student.requires_grad
    found = detached(method).rule(signals)
    assert not columns(found).requires_grad
    assert torch.equal(columns(found), columns(method.rule(signals)))


@pytest.mark.parametrize("spec", SPECS)
def test_shuffled_keeps_every_triple_and_no_sample_its_own(spec: str):
    signals, method = uneven(32), load_method(spec)
    before, after = columns(method.rule(signals)), columns(shuffled(method).rule(signals))
    assert torch.equal(before.unique(dim=0), after.unique(dim=0))
    assert torch.equal(before.sort(0).values, after.sort(0).values)
    if spec not in ("lskd", "dkd"):  # DKD has one temperature for all, LSKD one weight
        assert (before != after).any(-1).all()


def test_shuffled_is_one_cycle_through_the_batch_that_changes_over_the_run():
    signals = uneven(6)
    method = given(*[(1.0 + i, 2.0 + i, 3.0 + i) for i in range(6)])
    source = (shuffled(method).rule(signals).student - 1).long()
    visited = [0]
    while int(source[visited[-1]]) != 0:
        visited.append(int(source[visited[-1]]))
    assert sorted(visited) == [0, 1, 2, 3, 4, 5]
    later = (shuffled(method).rule(replace(signals, progress=0.5)).student - 1).long()
    assert not torch.equal(source, later)


def test_shuffled_depends_on_the_batch_alone_and_not_on_its_order():
    signals, method = uneven(16), load_method("dtkd:2")
    backwards = Signals(signals.student_logits.flip(0), signals.teacher_logits.flip(0), progress=signals.progress)
    found = columns(shuffled(method).rule(signals))
    assert torch.equal(columns(shuffled(method).rule(signals)), found)
    assert torch.equal(columns(shuffled(method).rule(backwards)).flip(0), found)


def test_averaged_is_the_geometric_mean_temperature_and_mean_weight():
    found = averaged(given((2.0, 1.0, 1.0), (8.0, 9.0, 5.0))).rule(uneven(2))
    expected = torch.tensor([[4.0, 3.0, 3.0]] * 2, dtype=torch.float64)
    torch.testing.assert_close(columns(found), expected)


@pytest.mark.parametrize("spec", SPECS)
def test_weighting_has_plain_temperatures_and_the_lengths_of_its_method(spec: str):
    signals, method = uneven(16), load_method(spec)
    found = weighting(method).rule(signals)
    assert torch.equal(found.student, signals.full(4.0))
    assert torch.equal(found.teacher, signals.full(4.0))
    torch.testing.assert_close(lengths(weighting(method), signals), lengths(method, signals))


@pytest.mark.parametrize("spec", SPECS)
def test_softness_has_the_temperatures_of_its_method_and_plain_lengths(spec: str):
    signals, method = uneven(16), load_method(spec)
    found, own = softness(method).rule(signals), method.rule(signals)
    assert torch.equal(found.student, own.student)
    assert torch.equal(found.teacher, own.teacher)
    plain = replace(load_method("fixed:4"), divergence=method.divergence)
    torch.testing.assert_close(lengths(softness(method), signals), lengths(plain, signals))


def test_the_weights_of_two_classes_worked_by_hand():
    # Student even, teacher 3 : 1 at T = 4 and 9 : 1 at T = 2. Under (2, 2, 1) the gradient is (0.4, -0.4) / 2, long
    # 0.2 sqrt 2; at T = 4 it is (0.25, -0.25) w / 4: 0.8 / 0.25 = 3.2 makes it as long. Plain is w = 16 there, 1
    # sqrt 2: at (2, 2) that takes 5.
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[4 * math.log(3), 0.0]], dtype=torch.float64)
    signals, method = Signals(student, teacher), given((2.0, 2.0, 1.0))
    torch.testing.assert_close(weighting(method).rule(signals).weight, torch.tensor([3.2], dtype=torch.float64))
    torch.testing.assert_close(softness(method).rule(signals).weight, torch.tensor([5.0], dtype=torch.float64))


@pytest.mark.parametrize("control", [weighting, softness])
def test_where_both_networks_agree_the_weight_is_finite_and_guarded(control: Callable[[Method], Method]):
    student = torch.tensor([[1.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    signals = Signals(student, torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 1.0]]))
    found = control(given((2.0, 2.0, 4.0))).rule(signals)
    assert found.weight.isfinite().all()
    assert found.weight[0] <= 1e-5 / LEAST_LENGTH
    assert found.guarded.tolist() == [True, False]


@every_control
def test_a_student_of_a_stack_gets_what_it_gets_alone(name: str):
    stack, method = uneven(3, 8, stacked=True), load_method(f"{name}:dtkd:2")
    found = columns(method.rule(stack))
    for position in range(3):
        alone = Signals(stack.student_logits[position], stack.teacher_logits[position], progress=stack.progress)
        torch.testing.assert_close(found[position], columns(method.rule(alone)))


@every_control
def test_a_mask_leaves_the_samples_what_they_get_without_the_rest(name: str):
    whole, rule = uneven(8), load_rule(f"{name}:dtkd:2")
    mask = torch.arange(8) % 3 != 0
    teacher = whole.teacher_logits.masked_fill(~mask.unsqueeze(-1), math.nan)
    masked = replace(whole, teacher_logits=teacher, mask=mask)
    kept = Signals(whole.student_logits[mask], whole.teacher_logits[mask], progress=whole.progress)
    torch.testing.assert_close(columns(rule(masked))[mask], columns(rule(kept)))
    assert torch.equal(columns(rule(masked))[~mask], torch.tensor([1.0, 1.0, 0.0]).double().expand(3, 3))
    nothing = replace(masked, mask=torch.zeros(8, dtype=torch.bool))
    assert torch.equal(rule(nothing).weight, torch.zeros(8, dtype=torch.float64))


@every_control
def test_a_control_leaves_the_rest_of_the_objective(name: str):
    method, plain = load_method(f"{name}:dtkd:2"), load_method("dtkd:2")
    assert method.name == f"{name}:dtkd:2"
    assert replace(method, rule=plain.rule, name=plain.name) == plain


@every_control
def test_names_nest(name: str):
    signals = uneven(16)
    matched = load_method(f"matched:{name}:dtkd:2")
    assert matched.matched
    assert matched.name == f"matched:{name}:dtkd:2"
    torch.testing.assert_close(gradient_norm(matched, signals), gradient_norm(load_method("fixed:4"), signals))
    assert load_method(f"{name}:shuffled:dtkd:2").rule is not None


def test_a_rule_of_ones_own_can_be_controlled():
    def rule(signals: Signals) -> Temperatures:
        student = signals.full(2.0) + torch.arange(signals.shape[0])
        return Temperatures(student, student, student)

    found = shuffled(Method("own", rule)).rule(uneven(4))
    assert sorted(found.student.tolist()) == [2.0, 3.0, 4.0, 5.0]
