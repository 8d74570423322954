"""MKD: a look ahead moves the temperatures to where the student's next step lowers the probe's loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from support import reference
from support.signals import started
from torch import Tensor, nn

from rltemp import BadInputError, Method, Signals, Task, load_method, load_rule
from rltemp.compiling.step import why_not
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.experiments.students import train_method
from rltemp.integrations.contract import controller_of
from rltemp.kd.method import Objective
from rltemp.rules.meta import Mkd
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
from rltemp.training.steps import Taken, _probe_loss, look_ahead, plain_step, probe_slope, train

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


def of_three_classes() -> Task:
    """A linear student and its data in float64."""
    generator = torch.Generator().manual_seed(0)

    def samples(count: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        return inputs, torch.randint(0, 3, (count,), generator=generator)

    def student(seed: int) -> nn.Module:
        made = nn.Linear(2, 3).double()
        made.weight.data *= 3
        return made

    parts = {"train": samples(8), "probe": samples(8), "validation": samples(4), "test": samples(4)}
    teacher = 3 * torch.randn(8, 3, generator=generator)
    recipe = Recipe(epochs=1, batch_size=8, learning_rate=0.7, schedule="constant", momentum=0.0)
    return Task.of(student=student, teacher=teacher, recipe=recipe, **parts, name="three")


def test_the_slope_is_that_of_the_second_writing() -> None:
    problem = prepare(of_three_classes())
    run = Distillation(problem, 0)
    method = run.attach(load_method("mkd:initial=2,minimum=0.5,maximum=6"))
    assert isinstance(method, Method)
    assert isinstance(method.rule, Mkd)
    batch, teacher = run.drawn(0)
    (weight, bias), probe = (value.tolist() for value in run.student.parameters()), problem.dataset.probe

    def logits(rows: Sequence[Sequence[float]], x: Sequence[float], offsets: Sequence[float]) -> list[float]:
        return [sum(a * b for a, b in zip(row, x, strict=True)) + c for row, c in zip(rows, offsets, strict=True)]

    def probe_loss(theta: reference.Batch) -> float:
        student_t, teacher_t = (0.5 + 5.5 / (1 + math.exp(-value)) for value in theta[0])
        rows, offsets = [list(row) for row in weight], list(bias)
        for x, u, y in zip(batch.inputs.tolist(), teacher.tolist(), batch.labels.tolist(), strict=True):
            v = logits(weight, x, bias)
            q, soft_q, p = (reference.softmax(z) for z in (v, [z / student_t for z in v], [z / teacher_t for z in u]))
            for k in range(3):
                slope = 0.1 * (q[k] - (k == y)) + 0.9 * teacher_t * (soft_q[k] - p[k])
                offsets[k] -= 0.7 / 8 * slope
                rows[k] = [value - 0.7 / 8 * slope * one for value, one in zip(rows[k], x, strict=True)]
        pairs = zip(probe.inputs.tolist(), probe.labels.tolist(), strict=True)
        moved = [(logits(rows, x, offsets), y) for x, y in pairs]
        return math.fsum(reference.logsumexp(v) - v[y] for v, y in moved) / 8

    found = probe_slope(run, method, method.rule.double())
    wanted = reference.gradient(probe_loss, [[math.log(3 / 8)] * 2])
    torch.testing.assert_close(found, torch.tensor(wanted[0], dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert found.abs().min() > 1e-3


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


def test_a_comparison_moves_the_temperatures_too(short: Problem) -> None:
    found = []

    def step(run: Distillation, method: Objective) -> Taken:
        taken = plain_step(run, method)
        assert taken.temperatures is not None
        found.append(taken.temperatures.student.unique().tolist())
        return taken

    train_method(short, "mkd:every=1", [3], 1, step=step)
    assert abs(found[-1][0] - 4) > 0.1


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


def test_a_task_without_probe_data_is_refused(digits: Problem) -> None:
    dataset = replace(digits.dataset, probe=digits.dataset.probe.take(torch.arange(0)))
    run, method, _ = begun(replace(digits, dataset=dataset), 0)
    with pytest.raises(BadInputError, match="mkd looks ahead on labelled probe data, in one process"):
        look_ahead(run, method)
