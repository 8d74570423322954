"""CTKD: a temperature that is learned in the run, up the loss, by each student for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from support.signals import started
from torch import Tensor

from rltemp import BadInputError, Signals, kd_loss, load_method, load_rule
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.rules import RULES
from rltemp.rules.curriculum import Ctkd, CtkdInstance, LearnedRule
from rltemp.training.distill import Distillation

SHORT = Recipe(epochs=1, batch_size=100, learning_rate=0.1, momentum=0.9, weight_decay=0.01)
LEARNED = ("ctkd", "ctkd_instance")


def drawn(*shape: int, classes: int = 6, progress: float = 1.0, stacked: bool = False) -> Signals:
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, *shape, classes, generator=generator, dtype=torch.float64)
    return Signals(student.requires_grad_(), teacher, progress=progress, stacked=stacked)


def learned(name: str, classes: int = 6, seeds: int | Sequence[int] = 0) -> LearnedRule:
    return started(RULES[name](), classes, seeds)


def parameters(rule: LearnedRule) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in rule.named_parameters()}


def trained(
    problem: Problem, seeds: int | Sequence[int], spec: str, steps: int | None = None, recipe: Recipe = SHORT
) -> tuple[Distillation, LearnedRule]:
    """A run of some steps, and the rule that it learned."""
    run = Distillation(problem, seeds, recipe=recipe)
    method = run.attach(load_method(spec))
    while run.step < (run.steps if steps is None else steps):
        run.update(method.loss(run.observe()))
    return run, method.rule


@pytest.mark.parametrize("name", LEARNED)
def test_the_temperature_goes_up_the_loss_while_the_student_goes_down(name: str) -> None:
    signals, rule = drawn(8), learned(name)
    loss = kd_loss(signals, rule(signals)).mean()
    arrived = torch.autograd.grad(loss, list(rule.parameters()), retain_graph=True)
    student = torch.autograd.grad(loss, signals.student_logits)[0]
    before = loss.item()
    with torch.no_grad():
        for parameter, gradient in zip(rule.parameters(), arrived, strict=True):
            parameter -= 0.01 * gradient  # what an optimizer that lowers the loss does
    assert kd_loss(signals, rule(signals)).mean().item() > before
    learned_part = kd_loss(signals, rule(signals)).mean().item()
    moved = replace(signals, student_logits=signals.student_logits - student)
    assert kd_loss(moved, rule(moved)).mean().item() < learned_part


def test_thetas_gradient_is_the_losss_times_the_factor_of_the_ramp() -> None:
    def loss_at(theta: float) -> float:
        rule = Ctkd(1.0, 20.0, 0.5, theta).double()
        signals = drawn(8)
        return kd_loss(signals, rule(signals)).mean().item()

    slope = (loss_at(1.001) - loss_at(0.999)) / 0.002
    for progress, factor in ((0.0, 0.0), (0.25, -0.5), (0.5, -1.0), (0.9, -1.0)):
        rule = Ctkd(1.0, 20.0, 0.5, 1.0)
        signals = drawn(8, progress=progress)
        kd_loss(signals, rule(signals)).mean().backward()
        assert rule.theta.grad.item() == pytest.approx(factor * slope, rel=1e-4, abs=1e-9)
    assert learned("ctkd").reversal(0.0) == 0.0
    assert RULES["ctkd"](ramp=0)(drawn(2)).student.requires_grad


def test_the_students_gradient_knows_nothing_of_the_ramp() -> None:
    rule = learned("ctkd_instance")
    early, late = (
        torch.autograd.grad(kd_loss(signals, rule(signals)).sum(), signals.student_logits)[0]
        for signals in (drawn(8, progress=0.0), drawn(8, progress=1.0))
    )
    assert torch.equal(early, late)


@pytest.mark.parametrize("name", LEARNED)
def test_a_run_learns_the_temperature_with_the_students_own_optimizer(digits: Problem, name: str) -> None:
    run, rule = trained(digits, 0, name)
    start, end = parameters(rule.fresh(digits.dataset.num_classes, 0)), parameters(rule)
    owned = [value for group in run.optimization.param_groups for value in group["params"]]
    for key, value in rule.named_parameters():
        assert any(value is other for other in owned), key
        assert (end[key] - start[key]).abs().max() > 1e-5, key
    assert {group["weight_decay"] for group in run.optimization.param_groups} == {SHORT.weight_decay}
    assert {group["momentum"] for group in run.optimization.param_groups} == {SHORT.momentum}


def test_a_factor_of_zero_leaves_theta_to_its_weight_decay(digits: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    _, learning = trained(digits, 0, "ctkd")
    monkeypatch.setattr(LearnedRule, "reversal", lambda self, progress: 0.0)
    run, twin = trained(digits, 0, "ctkd")
    alone = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([alone], lr=0.1, momentum=SHORT.momentum, weight_decay=SHORT.weight_decay)
    for step in range(run.steps):
        optimizer.param_groups[0]["lr"] = SHORT.rate(step, run.steps)
        alone.grad = torch.zeros(())
        optimizer.step()
    assert twin.theta.item() == pytest.approx(alone.item(), rel=1e-6)
    assert abs(learning.theta.item() - alone.item()) > 1e-3


@pytest.mark.parametrize("name", LEARNED)
def test_each_student_of_a_stack_learns_what_it_learns_alone(digits: Problem, name: str) -> None:
    _, stack = trained(digits, [3, 5], name)
    found = parameters(stack)
    for place, seed in enumerate((3, 5)):
        for key, value in parameters(trained(digits, seed, name)[1]).items():
            torch.testing.assert_close(found[key][place], value, rtol=1e-4, atol=1e-5)
    assert all((value[0] - value[1]).abs().max() > 1e-6 for value in found.values())


@pytest.mark.parametrize("name", LEARNED)
def test_restarting_one_student_restarts_what_it_learned_and_no_others(digits: Problem, name: str) -> None:
    run, rule = trained(digits, [3, 5], name, steps=6)
    before, fresh = parameters(rule), parameters(rule.fresh(digits.dataset.num_classes, [3, 5]))
    run.restart(torch.tensor([True, False]))
    for key, value in parameters(rule).items():
        assert torch.equal(value[0], fresh[key][0]), key
        assert torch.equal(value[1], before[key][1]), key
        assert not torch.equal(value[0], before[key][0]), key
    for value in rule.parameters():
        momentum = run.optimization.optimizers[0].state[value]["momentum_buffer"]
        assert (momentum[0] == 0).all()
        assert (momentum[1] != 0).any()


@pytest.mark.parametrize("name", LEARNED)
def test_two_runs_of_one_method_share_nothing(digits: Problem, name: str) -> None:
    method, ends = load_method(name), []
    for _ in range(2):
        run = Distillation(digits, 0, recipe=SHORT)
        own = run.attach(method)
        assert own.rule is not method.rule
        while not run.done:
            run.update(own.loss(run.observe()))
        ends.append(parameters(own.rule))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert all(not value.grad_fn and value.grad is None for value in method.rule.parameters())


def test_instances_get_temperatures_of_their_own_once_it_is_trained(digits: Problem) -> None:
    run, rule = trained(digits, 0, "ctkd_instance", recipe=replace(SHORT, epochs=4, weight_decay=0.0))
    signals = replace(run.signals_at(0), progress=1.0)
    start = rule.fresh(digits.dataset.num_classes, 0)(signals).student
    end = rule(signals).student
    assert end.std() > 2 * start.std()
    assert end.std() > 0.05
    assert ((end > 1) & (end < 21)).all()


def test_a_network_is_made_for_its_number_of_classes_and_refuses_another() -> None:
    rule = CtkdInstance(1.0, 20.0, 0.1)
    rule(drawn(4, classes=3))
    with pytest.raises(BadInputError, match="ctkd_instance was made for 3 classes; got 5"):
        rule(drawn(4, classes=5))


def test_students_of_a_stack_start_from_their_own_seeds() -> None:
    stack = parameters(learned("ctkd_instance", seeds=[4, 9, 4]))
    for place, seed in enumerate((4, 9, 4)):
        alone = parameters(learned("ctkd_instance", seeds=seed))
        assert all(torch.equal(stack[key][place], alone[key]) for key in alone)
    assert not torch.equal(stack["inner"][0], stack["inner"][1])
    answer = learned("ctkd_instance", seeds=[4, 9])(drawn(2, 3, 5, stacked=True))
    assert answer.student.shape == (2, 3, 5)
    start = learned("ctkd_instance", seeds=0)(drawn(100)).student
    assert start.tolist() == pytest.approx([11.0] * 100, abs=3.0)  # near the middle of the range


def test_a_loop_of_ones_own_trains_a_loaded_rule() -> None:
    rule = load_rule("ctkd:ramp=0,initial=0")
    student = torch.nn.Linear(4, 6)
    optimizer = torch.optim.SGD([*student.parameters(), *rule.parameters()], lr=0.05)
    inputs, teacher = torch.randn(2, 20, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        signals = Signals(student(inputs[:, :4]), teacher)
        optimizer.zero_grad()
        kd_loss(signals, rule(signals)).mean().backward()
        optimizer.step()
    assert rule.theta.item() != 0.0
    assert 11 - rule(signals).student[0].item() == pytest.approx(-5 * rule.theta.item(), rel=1e-2)  # 20 sigmoid'(0)
