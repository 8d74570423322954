"""Numbers that must not be: cases 14 and 16 to 19 of docs/reliability.md, where a student is trained."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.processes import code
from torch import Tensor, nn

import rltemp.models.networks
from rltemp import BadInputError, Controller, Signals, Temperatures, kd_loss, load_method, load_rule
from rltemp.data.batches import Batches
from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe
from rltemp.data.tasks import load_task
from rltemp.envs.distill_env import DistillEnv
from rltemp.errors import TrainingDivergedError
from rltemp.kd.method import Method
from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.policy.features import DEFAULT_FEATURES, featurize
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.guards import MOST_SKIPPED, RunGuard
from rltemp.training.loss_scaling import MOST_OVERFLOWS
from rltemp.training.preparation import prepare
from rltemp.training.steps import plain_step, train

ProblemMaker = Callable[..., Problem]
TOY = ("--task", "toy", "--epochs", "1")


def with_teacher(problem: Problem, value: float, samples: list[int]) -> Problem:
    """The problem, with a teacher whose logits for some training samples are `value`."""
    logits = problem.teacher_logits.clone()
    logits[samples] = value
    return replace(problem, teacher_logits=logits)


def weights_of(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def breaking(
    run: Distillation, break_it: Callable[[Signals], Tensor], steps: Collection[int], name: str = "fixed:4"
) -> Method:
    """A method whose weights break the run's numbers at given steps (from 1)."""

    def rule(signals: Signals) -> Temperatures:
        found = method.rule(signals)
        return replace(found, weight=break_it(signals)) if run.step + 1 in steps else found

    method = load_method(name)
    return replace(method, rule=rule)


# Case 14: logits, losses and gradients that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_batch_with_broken_teacher_logits_changes_nothing_and_is_listed(toy, tmp_path, value, caplog):
    order = Distillation(toy, 0)
    bad = [int(order.batches.positions(3)[position]) for position in (7, 17, 40)]
    run, guard, steps = Distillation(with_teacher(toy, value, bad), 0), RunGuard(tmp_path), []
    epoch = run.steps_per_epoch
    while run.step < epoch:
        before = weights_of(run.student)
        guard.step(run, load_method("fixed:4"))
        steps.append(same(before, weights_of(run.student)))
        assert run.healthy is not steps[-1]
    assert steps == [step == 3 for step in range(epoch)]
    assert guard.counts.skipped_steps == 1
    assert f"teacher logits: 3 of 50 samples (first index 7, training sample {bad[0]}) at step 4" in caplog.messages[0]
    listed = json.loads((tmp_path / "nonfinite-step-4.json").read_text())
    assert listed["positions"] == [7, 17, 40]
    assert [listed["batch"][position] for position in listed["positions"]] == bad


def test_five_such_steps_are_passed_over_and_the_sixth_stops_the_run(toy: Problem, tmp_path: Path) -> None:
    problem = with_teacher(toy, math.nan, list(range(0, 1000, 5)))
    run, guard = Distillation(problem, 0), RunGuard(tmp_path)
    with pytest.raises(TrainingDivergedError, match=r"non-finite teacher logits: .* at step 6.*--teacher-weights") as e:
        train(run, load_method("fixed:4"), step=guard.step)
    assert (e.value.exit_code, run.step, guard.counts.skipped_steps) == (4, MOST_SKIPPED + 1, MOST_SKIPPED + 1)
    assert len(list(tmp_path.glob("nonfinite-step-*.json"))) == 6
    assert all(bool(value.isfinite().all()) for value in run.student.parameters())


def test_strict_stops_at_the_first(toy: Problem) -> None:
    problem = with_teacher(toy, math.nan, list(range(1000)))
    with pytest.raises(TrainingDivergedError, match="at step 1: stopped after 1 such steps of 1"):
        train(Distillation(problem, 0), load_method("fixed:4"), step=RunGuard(strict=True).step)


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        (lambda signals: signals.full(math.nan), "non-finite loss: 50 of 50 samples"),
        # Each loss is finite, and its gradient is beyond float32.
        (lambda signals: signals.full(0.0) + Overflowing.apply(signals.student_logits.sum()), "gradient of"),
    ],
)
def test_a_loss_or_gradient_that_is_not_finite_is_passed_over_by_its_name(toy, broken, named, caplog):
    run, guard = Distillation(toy, 0), RunGuard()
    method = breaking(run, broken, {2}, "fixed:4,ce_weight=0")
    guard.step(run, method)
    before = weights_of(run.student)
    guard.step(run, method)
    assert same(before, weights_of(run.student))
    assert [named in line for line in caplog.messages] == [True]
    guard.step(run, method)
    assert not same(before, weights_of(run.student))


class Overflowing(torch.autograd.Function):
    """One, with a gradient of infinity."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return torch.ones_like(value)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Tensor:
        return torch.full_like(outer, math.inf)


def test_a_batch_norm_forgets_a_batch_that_was_passed_over(make_problem: ProblemMaker) -> None:
    """Case 14: otherwise its running mean is nan for ever, and with it every later prediction."""
    images = torch.randn(8, 3, 8, 8)
    images[5, 0, 0, 0] = math.nan
    problem = make_problem(images, torch.arange(8) % 2, student="resnet8", learning_rate=0.01)
    run, guard = Distillation(problem, 0), RunGuard()
    train(run, load_method("fixed:4"), step=guard.step)
    assert guard.counts.skipped_steps == 1
    assert all(bool(value.isfinite().all()) for value in run.student.state_dict().values())


def test_a_sound_run_is_the_same_with_a_guard_and_without(toy: Problem) -> None:
    students = []
    for step in (plain_step, RunGuard().step):
        run = Distillation(toy, 3)
        students.append(weights_of(train(run, load_method("dtkd"), step=step)))
    assert same(*students)


def test_distill_counts_what_it_passed_over_and_stops_with_exit_code_4(tmp_path: Path, capsys: Any) -> None:
    words = ("--student", "mlp:8", "--learning-rate", "1e30", "--out", tmp_path / "d")
    assert code("distill", *TOY, *words) == 4
    *warnings, err = capsys.readouterr().err.splitlines()
    assert len(warnings) == 5
    assert "non-finite student logits: 50 of 50 samples (first index 0" in err
    assert "at step 7" in err
    assert "Lower --learning-rate" in err
    assert not (tmp_path / "d" / "result.json").exists()
    assert code("distill", *TOY, "--out", tmp_path / "sound") == 0
    result = json.loads((tmp_path / "sound" / "result.json").read_text())
    assert {result[name] for name in ("skipped_steps", "fallback_samples", "clamped_samples", "empty_steps")} == {0}
    assert (result["collapsed"], result["degraded"]) == (False, False)


def test_a_teacher_that_diverges_stops_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Case 14 in train-teacher; what is listed lies beside the teacher's place in the cache."""
    monkeypatch.setenv("RLTEMP_CACHE", str(tmp_path))
    task = load_task("digits", teacher="mlp:16", teacher_epochs=1, teacher_learning_rate=1e30)
    with pytest.raises(TrainingDivergedError, match=r"non-finite teacher logits: .* Lower --teacher-learning-rate"):
        prepare(task)
    assert len(list(tmp_path.rglob("nonfinite-step-*.json"))) == 6
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_counts_of_a_guard_go_into_a_checkpoint_and_back(toy: Problem) -> None:
    guard = RunGuard()
    guard.counts.skipped_steps, guard.counts.fallback_samples, guard.bounds.collapsed_epoch = 3, 7, 2
    again = RunGuard()
    again.restore(json.loads(json.dumps(guard.state())))
    assert again.result() == guard.result()
    assert again.result()["skipped_steps"] == 3


# Case 16: temperatures that must not be


class User:
    """A user's own module, `my_temperatures`, whose rule answers what a test puts there."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def answers(self, student: Callable[[Tensor], Tensor], bounds: Any = None) -> str:
        def rule(signals: Signals) -> Temperatures:
            values = student(signals.full(3.0))
            return Temperatures(values, values, values.abs())

        if bounds is not None:
            rule.bounds = bounds  # type: ignore[attr-defined]
        self.module.rule = rule  # type: ignore[attr-defined]
        return f"{self.module.__name__}:rule"


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> User:
    module = ModuleType("my_temperatures")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return User(module)


def at_nine(value: float) -> Callable[[Tensor], Tensor]:
    def change(values: Tensor) -> Tensor:
        if values.shape[-1] > 9:  # the problem is looked at with smaller batches too
            values[..., 9] = value
        return values

    return change


BROKEN = [0.0, -4.0, math.nan, math.inf, 25.0, 0.25]


@pytest.mark.parametrize("value", BROKEN)
def test_a_temperature_that_must_not_be_never_reaches_a_loss(user: User, toy: Problem, value: float) -> None:
    method = load_method(user.answers(at_nine(value), bounds=(0.5, 20.0)))
    message = rf"temperature must be finite and in \[0.5, 20\]; got {value} for sample 9 from my_temperatures:rule"
    with pytest.raises(BadInputError, match=message):
        method.loss(Distillation(toy, 0).observe())
    with pytest.raises(BadInputError, match=message):
        train(Distillation(toy, 0), method, step=RunGuard(strict=True).step)


@pytest.mark.parametrize("matched", ["", "matched:"])  # a method that is matched asks its rule twice in a step
@pytest.mark.parametrize("value", BROKEN)
def test_in_distill_such_a_sample_gets_plain_temperatures_and_is_counted(user, toy, value, matched, caplog):
    run, guard = Distillation(toy, 0), RunGuard()
    train(run, load_method(matched + user.answers(at_nine(value), bounds=(0.5, 20.0))), step=guard.step)
    assert guard.counts.answered_steps == run.steps
    found = guard.last
    seen = found.student.tolist()
    assert (seen[9], found.weight[9].item(), seen[8]) == (4.0, 16.0, 3.0)
    assert found.guarded.nonzero().flatten().tolist() == [9]
    counts = guard.result()
    assert (counts["fallback_steps"], counts["fallback_samples"]) == (run.steps, run.steps)
    assert (counts["clamped_samples"], counts["skipped_steps"], counts["degraded"]) == (0, 0, True)
    (said,) = caplog.messages
    assert f"got {value} for sample 9 from {matched}my_temperatures:rule: T = 4 stands in" in said


def guarded_step(problem: Problem, method: Method) -> tuple[Temperatures, RunGuard]:
    """The temperatures of a first step, which is taken, and the guard that took it."""
    run, guard = Distillation(problem, 0), RunGuard()
    guard.step(run, method)
    assert run.healthy
    return guard.last, guard


def test_the_fallback_keeps_to_the_rules_own_bounds(user: User, toy: Problem) -> None:
    found = guarded_step(toy, load_method(user.answers(at_nine(math.nan), bounds=(1.0, 3.5))))[0]
    assert found.student[9].item() == 3.5


def test_an_overshoot_by_rounding_is_put_onto_the_bound_and_counted(user: User, toy: Problem) -> None:
    """Case 16: one part in a million; more than that is a fault."""
    for value, expected in ((20.00001, "clamped"), (20.001, "fallback")):
        found, guard = guarded_step(toy, load_method(user.answers(at_nine(value), bounds=(0.5, 20.0))))
        assert found.student[9].item() == (20.0 if expected == "clamped" else 4.0)
        counts = guard.counts
        assert (counts.clamped_samples, counts.fallback_samples) == ((1, 0) if expected == "clamped" else (0, 1))


def test_gradient_goes_past_a_temperature_that_is_not_finite(toy: Problem) -> None:
    """Case 16: the derivative of a broken formula is broken too, and must not come back through the fallback."""

    def rule(signals: Signals) -> Temperatures:
        spread = signals.student_logits.std(-1) * 0 + signals.full(3.0)
        spread = spread / (torch.arange(50) != 9)
        return Temperatures(spread, spread, spread.square())

    _, guard = guarded_step(toy, Method("mine", rule))
    assert (guard.counts.skipped_steps, guard.counts.fallback_samples) == (0, 1)


def test_distill_goes_on_with_a_bad_rule_and_strict_does_not(user: User, tmp_path: Path, capsys: Any) -> None:
    spec = user.answers(at_nine(-4.0))
    assert code("distill", *TOY, "--rule", spec, "--out", tmp_path / "a") == 0
    assert "alarm: student temperature must be finite and above 0; got -4.0" in capsys.readouterr().err
    assert json.loads((tmp_path / "a" / "result.json").read_text())["fallback_steps"] == 20
    assert code("distill", *TOY, "--rule", spec, "--strict", "--out", tmp_path / "b") == 2
    assert "got -4.0 for sample 9 from my_temperatures:rule" in capsys.readouterr().err


def test_comparisons_are_always_strict(user: User, tmp_path: Path, capsys: Any) -> None:
    """Case 16: a table holds no rule that was in part another."""
    words = ("--rules", "fixed:4", user.answers(at_nine(-4.0)), "--seeds", 2, "--out", tmp_path / "c")
    assert code("compare", *TOY, *words) == 2
    assert "got -4.0 for sample 9" in capsys.readouterr().err


def test_in_an_environment_a_bad_temperature_raises_in_its_own_step(user: User, toy: Problem) -> None:
    """Case 16: after the student's update, from the one number that the step reads."""
    env = DistillEnv(toy, method=load_method(user.answers(at_nine(-4.0))))
    env.reset()
    with pytest.raises(BadInputError, match=r"temperature must be finite and above 0; got -4.0 for sample 9"):
        env.step(np.zeros((50, 2), np.float32))


def test_a_negative_weight_is_refused_as_a_temperature_is(toy: Problem) -> None:
    """Case 16: its loss is finite, and teaches the opposite."""

    def rule(signals: Signals) -> Temperatures:
        values = signals.full(3.0)
        return Temperatures(values, values, torch.where(torch.arange(50) == 9, -1.0, values))

    signals = Distillation(toy, 0).observe()
    with pytest.raises(BadInputError, match=r"weight must be at least 0; got -1.0 for sample 9 from mine"):
        Method("mine", rule).loss(signals)
    mended, _ = guarded_step(toy, Method("mine", rule))
    assert (mended.student[9].item(), mended.weight[9].item(), mended.weight[8].item()) == (4.0, 16.0, 3.0)


@pytest.mark.parametrize("bounds", [(2.0, 1.0), (0.0, 1.0), 3.0, ("low", "high"), (1.0, math.inf)])
def test_bounds_that_are_none_are_refused(user: User, toy: Problem, bounds: Any) -> None:
    with pytest.raises(BadInputError, match="bounds must be two numbers, 0 < lowest < highest"):
        load_method(user.answers(lambda values: values, bounds)).loss(Distillation(toy, 0).observe())


# Case 17: shapes


@pytest.mark.parametrize("shape", [(1,), (7,), (), (2, 5)])
def test_one_temperature_for_a_batch_is_never_broadcast(user: User, toy: Problem, shape: tuple[int, ...]) -> None:
    method = load_method(user.answers(lambda _: torch.full(shape, 3.0)))
    for step in (plain_step, RunGuard().step):
        run = Distillation(toy, 0)
        with pytest.raises(BadInputError) as error:
            train(run, method, step=step)
        assert f"temperatures have shape {shape}, the samples (50,)" in str(error.value)
        assert "my_temperatures:rule" in str(error.value)
        assert (run.step, error.value.exit_code) == (0, 2)


@pytest.mark.parametrize("answer", [torch.ones(50), 4.0, None, (torch.ones(50), torch.ones(50))])
def test_what_is_no_temperatures_is_refused_by_its_type(toy: Problem, answer: Any) -> None:
    for step in (plain_step, RunGuard().step):
        with pytest.raises(BadInputError, match=rf"> answered a {type(answer).__name__}; needed: rltemp\.Temper"):
            step(Distillation(toy, 0), Method("mine", lambda _: answer))


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False])])
@pytest.mark.parametrize("ask", [Controller.loss, Controller.kd, Controller.temperatures])
def test_a_controller_refuses_it_too(ask: Any, mask: Tensor | None) -> None:
    with pytest.raises(BadInputError, match=r"answered a float; needed: rltemp\.Temperatures"):
        ask(Controller(lambda _: 4.0), torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 1]), mask=mask)


def test_as_many_samples_as_classes_are_still_one_temperature_a_sample() -> None:
    """Case 17: with B = C a temperature along the wrong axis would fit, and change every loss."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(10, 10, generator=generator) for _ in range(2))
    temperature = torch.linspace(1, 5, 10)
    together = kd_loss(Signals(student, teacher), Temperatures(temperature, temperature, temperature))
    for i in range(10):
        one = temperature[i : i + 1]
        alone = kd_loss(Signals(student[i : i + 1], teacher[i : i + 1]), Temperatures(one, one, one))
        torch.testing.assert_close(together[i : i + 1], alone)
    column = temperature[:, None]
    with pytest.raises(BadInputError, match=r"shape \(10, 1\), the samples \(10,\)"):
        kd_loss(Signals(student, teacher), Temperatures(column, column, column))


def test_one_class_against_ten_is_refused_with_both_shapes() -> None:
    message = r"student has 1 class outputs, teacher 10 \(shapes \(128, 1\) and \(128, 10\)\)"
    with pytest.raises(BadInputError, match=message) as error:
        Signals(torch.zeros(128, 1), torch.zeros(128, 10))
    assert error.value.exit_code == 2


# Case 18: batches of none and one, logits without a difference


class EmptiedBatches(Batches):
    """The second has no samples."""

    def positions(self, step: int) -> Tensor:
        index = super().positions(step)
        return index[:0] if step == 1 else index


class Emptied(Distillation):
    """A run whose second batch has no samples."""

    def __init__(self, problem: Problem, seeds: int) -> None:
        super().__init__(problem, seeds)
        self.batches = EmptiedBatches(problem.dataset, self.split, seeds, self.recipe.batch_size)


@pytest.mark.parametrize("guarded", [False, True])
def test_an_empty_batch_is_passed_over_and_counted(toy: Problem, guarded: bool) -> None:
    """Case 18: the mean of no losses is nan, and must not be learned from."""
    run, guard = Emptied(toy, 0), RunGuard()
    step = guard.step if guarded else plain_step
    method = load_method("fixed:4")
    step(run, method)
    before = weights_of(run.student)
    loss = step(run, method).loss
    assert (loss.shape, run.step, run.healthy) == ((0,), 2, False)
    assert same(before, weights_of(run.student))
    train(run, method, step=step)
    assert all(bool(value.isfinite().all()) for value in run.student.parameters())
    assert (guard.counts.empty_steps, guard.counts.skipped_steps) == (int(guarded), 0)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_batch_of_one_and_constant_logits_give_finite_numbers(name: str) -> None:
    """Case 18: no statistics over a batch of one; deviations of constant logits are floored."""
    method, labels = load_method(name), torch.zeros(1, dtype=torch.int64)
    for student, teacher in ((torch.randn(1, 10), torch.randn(1, 10)), (torch.full((1, 10), 3.0),) * 2):
        signals = Signals(student, teacher, labels, 0.5)
        assert method.loss(signals).isfinite().all()
        assert featurize(signals, DEFAULT_FEATURES).isfinite().all()
        if isinstance(method, Method):
            found = load_rule(name)(signals)
            assert bool(((found.student > 0) & (found.student < math.inf)).all())
            assert bool(((found.teacher > 0) & (found.teacher < math.inf)).all())


def test_an_mlp_trains_on_batches_of_one(make_problem: ProblemMaker) -> None:
    problem = make_problem(torch.randn(6, 1, 1, 1), torch.arange(6) % 2, student="mlp:4", batch_size=1)
    run, guard = Distillation(problem, 0), RunGuard()
    train(run, load_method("universal"), step=guard.step)
    assert (run.step, guard.counts.skipped_steps) == (6, 0)


@pytest.mark.parametrize("seeds", [0, [0, 1]])
def test_a_batch_norm_student_and_a_batch_of_one_are_refused(make_problem: ProblemMaker, seeds: Any) -> None:
    problem = make_problem(torch.randn(4, 3, 8, 8), torch.arange(4) % 2, student="resnet8", batch_size=1)
    with pytest.raises(BadInputError, match=r"resnet8 has BatchNorm.*batch size 1.*drop_last=True.*GroupNorm"):
        Distillation(problem, seeds)


# Case 19: float16


def float16(problem: Problem, **changes: Any) -> Distillation:
    return Distillation(problem, 0, recipe=replace(problem.task.recipe, precision="float16", **changes))


def test_float16_trains_as_well_as_float32(digits: Problem) -> None:
    recipe = Recipe(epochs=4, batch_size=50, learning_rate=0.05)
    values = {}
    for precision in ("float32", "float16"):
        run = Distillation(digits, 0, recipe=replace(recipe, precision=precision))
        first = run.observe().student_logits
        assert first.dtype == (torch.float16 if precision == "float16" else torch.float32)
        guard = RunGuard()
        student = train(run, load_method("fixed:4"), step=guard.step)
        assert guard.counts.skipped_steps == 0
        assert all(value.dtype == torch.float32 for value in student.parameters())
        values[precision] = rltemp.data.problem.evaluate(student, digits, digits.dataset.validation).item()
    assert values["float16"] == pytest.approx(values["float32"], abs=0.05)


def test_one_overflow_halves_the_scale_and_changes_no_weight(toy: Problem) -> None:
    run, guard = float16(toy), RunGuard()
    method = breaking(run, lambda signals: signals.full(1e12), {2})
    guard.step(run, method)
    before, scale = weights_of(run.student), run.scaler.state_dict()["scale"]
    guard.step(run, method)
    assert (run.healthy, run.scaler.overflows) == (False, 1)
    assert (guard.counts.skipped_steps, guard.counts.overflowed_steps) == (0, 1)
    assert run.scaler.state_dict()["scale"] == scale / 2
    assert same(before, weights_of(run.student))
    guard.step(run, method)
    assert (run.healthy, run.scaler.overflows) == (True, 0)


def test_twenty_overflows_in_a_row_stop_the_run_with_the_weights_before(toy: Problem) -> None:
    run, guard = float16(toy, epochs=2), RunGuard()
    method = breaking(run, lambda signals: signals.full(1e36), range(5, 100))
    for _ in range(4):
        guard.step(run, method)
    before = weights_of(run.student)
    message = f"scale fell to 0.062 after {MOST_OVERFLOWS} overflows from step 5: .*bfloat16, raise the minimum temp"
    with pytest.raises(TrainingDivergedError, match=message) as error:
        train(run, method, step=guard.step)
    assert error.value.exit_code == 4
    assert same(before, weights_of(run.student))
    assert not run.healthy


def test_a_scaler_goes_on_from_its_checkpoint(toy: Problem) -> None:
    run, again = float16(toy), float16(toy)
    method = breaking(run, lambda signals: signals.full(1e12), {1, 2, 3})
    for _ in range(3):
        plain_step(run, method)
    again.scaler.load_state_dict(json.loads(json.dumps(run.scaler.state_dict())))
    assert again.scaler.state_dict() == run.scaler.state_dict()
    assert again.scaler.overflows == 3


def test_a_stack_in_float16_is_one_clear_error(toy: Problem, tmp_path: Path, capsys: Any) -> None:
    words = ("--precision", "float16", "--rules", "fixed:4", "--seeds", 2, "--out", tmp_path / "c")
    assert code("compare", *TOY, *words) == 2
    assert "precision float16 trains one student at a time" in capsys.readouterr().err
    assert code("distill", *TOY, "--precision", "float16", "--out", tmp_path / "d") == 0


# Case 20, in distill


def test_a_policy_at_its_bound_for_an_epoch_is_told_once(toy: Problem, caplog: pytest.LogCaptureFixture) -> None:

    class AtBound(TemperatureRule):
        limits = (0.5, 20.0)

        def __call__(self, signals: Signals) -> Temperatures:
            share = (0.94, 0.96, 0.98)[run.step // run.steps_per_epoch]
            values = torch.where(torch.arange(50) < 50 * share, 19.9, 3.0)
            return Temperatures(values, torch.full((50,), 4.0), values)

    run, guard = Distillation(toy, 0, recipe=replace(toy.task.recipe, epochs=3)), RunGuard()
    train(run, Method("p", AtBound()), step=guard.step)
    assert guard.result()["collapsed"] is True
    assert guard.result()["collapsed_epoch"] == 2
    (said,) = caplog.messages
    assert "96.0 % of the student temperatures of epoch 2 are within 1 % of 0.5 or 20 (mean 19.2)" in said


def test_the_shipped_policy_and_a_formula_have_not_collapsed(digits: Problem) -> None:
    for name in ("universal", "fixed:20"):
        guard, run = RunGuard(), Distillation(digits, 0, recipe=replace(digits.task.recipe, epochs=2))
        train(run, load_method(name), step=guard.step)
        assert guard.result()["collapsed"] is False
