"""Compiled steps are the plain ones: every method, every kind of student and optimizer, over whole runs."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.own_tasks import normalised_student, own_task
from support.tokens import token_task

from rltemp.compiling.step import CompiledStep
from rltemp.data.problem import Problem
from rltemp.data.tasks import load_task
from rltemp.loading import load_method
from rltemp.rules.controls import CONTROLS
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
from rltemp.training.steps import Taken, plain_step

SEEDS = [0, 1, 2, 3]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def step() -> CompiledStep:
    """One for all tests: what does not belong to a graph must not stay in it."""
    return CompiledStep()


def both(
    problem: Problem, method: str, step: CompiledStep, seeds: int | list[int] | None = None, steps: int = 50
) -> tuple[Distillation, Distillation, Taken, Taken]:
    """A plain run and a compiled one after as many steps, with what the last step was."""
    runs = [Distillation(problem, SEEDS if seeds is None else seeds) for _ in range(2)]
    made = load_method(method)
    plain, compiled = (run.attach(made) for run in runs)
    for _ in range(min(steps, runs[0].steps)):
        expected, found = plain_step(runs[0], plain), step(runs[1], compiled)
    return (*runs, expected, found)


def distance(one: Distillation, other: Distillation) -> float:
    """The largest difference of any weight or buffer, and of the running means: of large numbers, relative to them."""
    pairs = [(one.student, other.student), (one.evaluated, other.evaluated)]
    states = [zip(a.state_dict().values(), b.state_dict().values(), strict=True) for a, b in pairs]
    return max(float(((a - b).double().abs() / (1 + a.double().abs())).max()) for state in states for a, b in state)


def compiled(step: CompiledStep) -> bool:
    """Whether the last step was taken by a graph."""
    return step._bound is not None and step._bound.compiled is not None


def with_recipe(problem: Problem, **changes: Any) -> Problem:
    return replace(problem, task=replace(problem.task, recipe=replace(problem.task.recipe, **changes)))


def check(problem: Problem, method: str, step: CompiledStep, seeds: int | list[int] | None = None) -> None:
    plain, run, expected, found = both(problem, method, step, seeds)
    assert compiled(step)
    assert distance(plain, run) < CLOSE
    assert plain.step == run.step
    assert torch.allclose(expected.loss, found.loss, atol=1e-4, rtol=1e-4)
    assert (expected.temperatures is None) == (found.temperatures is None)
    if expected.temperatures is not None and found.temperatures is not None:
        assert torch.allclose(expected.temperatures.student, found.temperatures.student, atol=1e-3, rtol=1e-4)
        for one in (expected.temperatures.guarded, found.temperatures.guarded):
            assert one is None or one.dtype == torch.bool


@pytest.mark.parametrize("method", ["dtkd", "ctkd_instance"])
def test_a_method_trains_the_same_students(method: str, digits: Problem, step: CompiledStep) -> None:
    check(digits, method, step)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "fixed:1",
        *METHODS,
        *(f"matched:{name}" for name in METHODS if name != "none"),
        *(f"{name}:universal" for name in CONTROLS),
    ],
)
def test_every_method_trains_the_same_students(method: str, digits: Problem, step: CompiledStep) -> None:
    check(digits, method, step)


ADAM = {"optimizer": "adamw", "learning_rate": 0.003, "clip": 0.5, "weight_decay": 0.01}


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        (ADAM, True),
        pytest.param(
            {"momentum": 0.0, "weight_decay": 0.01, "schedule": "step", "label_smoothing": 0.1},
            True,
            marks=pytest.mark.slow,
        ),
        ({"accumulate": 2, "ema": 0.9, "warmup": 0.1, "clip": 0.5}, False),
        pytest.param({"optimizer": "rmsprop", "learning_rate": 0.003}, False, marks=pytest.mark.slow),
    ],
    ids=["adamw", "sgd", "accumulate", "rmsprop"],
)
def test_a_recipe_is_followed(changes: dict[str, Any], whole: bool, digits: Problem, step: CompiledStep) -> None:
    problem = with_recipe(digits, **{"momentum": None, **changes})
    check(problem, "fixed:4", step)
    assert step._bound is not None
    assert step._bound.program is not None
    assert step._bound.program.updates is whole


def test_a_student_alone_is_trained_the_same(digits: Problem, step: CompiledStep) -> None:
    check(digits, "fixed:4", step, seeds=3)


def test_tokens_with_padding_are_trained_the_same(step: CompiledStep) -> None:
    check(prepare(token_task()), "fixed:2", step)


@pytest.mark.slow
def test_convolutions_are_trained_the_same(digits: Problem, step: CompiledStep) -> None:
    check(prepare(load_task("digits", student="cnn:4x8", epochs=1)), "fixed:4", step)


def test_buffers_of_batch_norms_are_kept(step: CompiledStep) -> None:
    check(prepare(own_task(student=normalised_student)), "fixed:2", step)


def test_views_that_change_reach_the_graph(digits: Problem, step: CompiledStep) -> None:
    problem = replace(digits, dataset=replace(digits.dataset, augment=True), teacher_logits=None)
    check(problem, "fixed:4", step)


@pytest.mark.slow
def test_half_precision_rounds_where_torch_does(digits: Problem, step: CompiledStep) -> None:
    plain, run, *_ = both(with_recipe(digits, precision="bfloat16"), "fixed:4", step, steps=20)
    assert compiled(step)
    assert distance(plain, run) < 2e-3


def test_a_student_whose_numbers_end_disturbs_nobody(digits: Problem, step: CompiledStep) -> None:
    runs = [Distillation(digits, SEEDS) for _ in range(2)]
    method = load_method("universal")
    for run, take in zip(runs, (plain_step, step), strict=True):
        with torch.no_grad():
            next(run.student.parameters())[2] = torch.nan
        for _ in range(20):
            take(run, run.attach(method))
    for one, other in zip(runs[0].student.parameters(), runs[1].student.parameters(), strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
        assert torch.allclose(one[[0, 1, 3]], other[[0, 1, 3]], atol=CLOSE)


def test_a_run_that_goes_on_has_the_same_bits(digits: Problem) -> None:
    """A new process: a step that compiles anew, and a state from a checkpoint."""
    method, whole, part = load_method("ctkd_instance"), Distillation(digits, SEEDS), Distillation(digits, SEEDS)
    for run, step in ((whole, CompiledStep()), (part, CompiledStep())):
        own = run.attach(method)
        for _ in range(7 if run is part else 20):
            step(run, own)
    again, step = Distillation(digits, SEEDS), CompiledStep()
    own = again.attach(method)
    again.restore(copy.deepcopy(part.state()))
    for _ in range(13):
        step(again, own)
    states = whole.state(), again.state()
    assert_same(*states)


def test_a_run_that_is_put_back_goes_on_from_there(digits: Problem) -> None:
    """In one process, by one step: the momentum is then another tensor."""
    run, step, method = Distillation(digits, SEEDS), CompiledStep(), load_method("fixed:4")
    ends = []
    for _ in range(3):
        step(run, method)
    kept = copy.deepcopy(run.state())
    for _ in range(2):
        run.restore(copy.deepcopy(kept))
        for _ in range(5):
            step(run, method)
        ends.append(copy.deepcopy(run.state()))
    assert_same(*ends)


def assert_same(one: Any, other: Any) -> None:
    """Bit by bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def test_runs_of_the_same_shapes_share_a_graph(digits: Problem) -> None:
    step = CompiledStep()
    first, second, expected = (
        Distillation(digits, SEEDS),
        Distillation(digits, [7, 8, 9, 10]),
        Distillation(digits, [7, 8, 9, 10]),
    )
    method = load_method("fixed:4")
    for _ in range(5):
        step(first, method)
        step(second, method)
        plain_step(expected, method)
    assert len(step._graphs) == 1
    assert distance(second, expected) < CLOSE
    step(Distillation(digits, SEEDS), load_method("fixed:2"))
    assert len(step._graphs) == 2


def test_students_that_draw_are_trained_plainly_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    problem, step = prepare(own_task()), CompiledStep()
    with caplog.at_level(logging.WARNING):
        plain, run, *_ = both(problem, "fixed:2", step, steps=5)
    assert not compiled(step)
    assert distance(plain, run) == 0
    (record,) = [one for one in caplog.records if "not compiled" in one.message]
    assert "one after another" in record.message


def test_a_step_reaches_another_process_without_its_graphs(digits: Problem, step: CompiledStep) -> None:
    step(Distillation(digits, SEEDS), load_method("none"))
    twin = copy.copy(step)
    assert step._graphs
    assert not twin._graphs
