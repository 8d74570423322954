"""MKD: a look ahead moves the temperatures to where the student's next step lowers the probe's loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from support.signals import started
from torch import Tensor

from rltemp import BadInputError, Method, Signals, load_method, load_rule
from rltemp.compiling.step import why_not
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.integrations.contract import controller_of
from rltemp.rules.meta import Mkd
from rltemp.training.distill import Distillation
from rltemp.training.look_ahead import _probe_loss, look_ahead, probe_slope
from rltemp.training.steps import train

SHORT = Recipe(epochs=1, batch_size=100, learning_rate=0.1, momentum=0.9)


def begun(problem: Problem, seeds: int | Sequence[int], spec: str = "mkd") -> tuple[Distillation, Method, Mkd]:
    run = Distillation(problem, seeds, recipe=SHORT)
    method = run.attach(load_method(spec))
    assert isinstance(method, Method)
    assert isinstance(method.rule, Mkd)
    return run, method, method.rule


def after_a_step(run: Distillation, method: Method, rule: Mkd, theta: Tensor) -> float:
    """The probe's loss after one plain step of the student at these temperatures."""
    kept, rule.theta = rule.theta, theta
    weights = dict(run.student.named_parameters())
    loss = method.loss(run.signals_at(run.step, weights)).mean()
    gradients = torch.autograd.grad(loss, list(weights.values()))
    rule.theta = kept
    pairs = zip(weights.items(), gradients, strict=True)
    return float(_probe_loss(run, {name: value.detach() - 0.1 * by for (name, value), by in pairs}))


def test_the_slope_is_the_change_of_the_probes_loss_by_temperature(digits: Problem) -> None:
    run, method, rule = begun(digits, 0)
    found = probe_slope(run, method, rule)
    assert found.shape == (2,)
    for place in range(2):
        step = 0.2 * torch.eye(2)[place]
        above, below = (after_a_step(run, method, rule, rule.theta + sign * step) for sign in (1, -1))
        assert found[place].item() == pytest.approx((above - below) / 0.4, rel=0.1)


def test_a_look_moves_each_temperature_against_the_slope_and_only_when_due(digits: Problem) -> None:
    run, method, rule = begun(digits, 0, "mkd:every=3,speed=0.2")
    before, slope = rule.theta.clone(), probe_slope(run, method, rule)
    look_ahead(run, method)
    torch.testing.assert_close(rule.theta, before - 0.2 * slope.sign())
    moved = rule.theta.clone()
    for _ in range(2):
        run.update(method.loss(run.observe()))
        look_ahead(run, method)
        assert torch.equal(rule.theta, moved)


def test_each_student_of_a_stack_gets_the_temperatures_that_it_gets_alone(digits: Problem) -> None:
    ends = []
    for seeds in ([3, 5], 3, 5):
        run = Distillation(digits, seeds, recipe=SHORT)
        train(run, load_method("mkd:every=2"))
        ends.append(run.state()["learned"]["theta"])
    assert (ends[0] - load_rule("mkd").theta).abs().min() > 0.05  # type: ignore[attr-defined]
    torch.testing.assert_close(ends[0], torch.stack(ends[1:]))


def test_temperatures_are_constants_but_in_a_look_and_two_runs_share_none(digits: Problem) -> None:
    signals = Signals(torch.zeros(4, 3, requires_grad=True), torch.randn(4, 3))
    rule = started(load_rule("mkd:initial=2"), 3)
    answer = rule(signals)
    assert not answer.student.requires_grad
    assert answer.student.tolist() == pytest.approx([2.0] * 4)
    method = load_method("mkd")
    train(Distillation(digits, 0, recipe=SHORT), method)
    assert torch.equal(method.rule.theta, load_rule("mkd").theta)  # type: ignore[union-attr, attr-defined]


def test_it_is_refused_where_nothing_would_move_it(digits: Problem) -> None:
    run, method, _ = begun(digits, 0)
    assert why_not(run, method) == "its temperatures move outside of a step"
    with pytest.raises(BadInputError, match="has parameters to learn, which this host would not train"):
        controller_of("mkd")
    with pytest.raises(BadInputError, match="a control needs temperatures by a formula"):
        load_method("shuffled:mkd")
    for options, named in (("initial=1", "between minimum and maximum; got 1"), ("every=0", "every must be a whole")):
        with pytest.raises(BadInputError, match=named):
            load_rule(f"mkd:{options}")
    run._team = replace(run._team, size=2)
    with pytest.raises(BadInputError, match="mkd looks ahead on labelled probe data, in one process"):
        look_ahead(run, method)
