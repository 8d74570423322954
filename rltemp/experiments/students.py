"""Trains the students of one method, one stack at a time, and measures them; and how long a step takes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltemp.compiling.mode import CompileMode, step_for
from rltemp.data.problem import Problem, predict
from rltemp.errors import BadInputError
from rltemp.experiments.measures import MEASURES, VALIDATION_LOSS, Selection, accuracy, loss, measure
from rltemp.experiments.method_results import MethodResult
from rltemp.experiments.recorder import Recorder
from rltemp.experiments.result_cache import MOST_STUDENTS, CachedResult, in_words
from rltemp.kd.guard_count import GuardCount
from rltemp.kd.method import Objective
from rltemp.loading import load_method
from rltemp.training.distill import Distillation
from rltemp.training.steps import Step, plain_step, steps

PLAIN = "fixed:4"
ROUNDS, LEAST_ROUNDS, SECONDS = 20, 3, 10.0
"""Rounds, of one step of every rule each; fewer, but not below the least, where the seconds are over before."""

Maker = Callable[[Distillation], Objective]
"""Makes the method of a run."""


def train_method(
    problem: Problem,
    name: str,
    seeds: Sequence[int],
    stack: int,
    told: Callable[[], None] = lambda: None,
    maker: Maker | None = None,
    recorders: Sequence[Recorder] = (),
    step: Step = plain_step,
) -> MethodResult:
    """Train a student for every seed, `stack` at a time, and measure them.

    Args:
        problem: The task, loaded.
        name: Of the method, as `load_method` reads it where there is no maker.
        seeds: Of the students.
        stack: How many train side by side.
        told: Called after each step.
        maker: Makes the method of each stack's run, where no name stands for it.
        recorders: Are told every step.
        step: How a step is taken.
    """
    make = maker or by_name(name)
    found = [train_stack(problem, chunk, make, told, recorders, step) for chunk in chunks(seeds, stack)]
    return gather(name, found, seeds)


def train_stack(
    problem: Problem,
    seeds: int | Sequence[int],
    make: Maker,
    told: Callable[[], None] = lambda: None,
    recorders: Sequence[Recorder] = (),
    step: Step = plain_step,
) -> CachedResult:
    """Train one stack of students, or one student, and measure them; arguments as for `train_method`.

    A student whose numbers stop being finite does not stop the others; it counts as it is.
    """
    run, guards, dataset = Distillation(problem, seeds), GuardCount(), problem.dataset
    method, selection = make(run), Selection(run)
    for recorder in recorders:
        recorder.begin()
    for taken in steps(run, method, step):
        if taken.temperatures is not None:
            guards(taken.temperatures.detach().of_samples(taken.signals.mask))
        for recorder in recorders:
            recorder.keep(taken.signals, taken.temperatures)
        selection.evaluate()
        told()
    for recorder in recorders:
        recorder.end(run)
    logits, test = (predict(run.evaluated, problem, split) for split in (dataset.validation, dataset.test))
    found = measure(test, dataset.test.targets, teacher_of(problem)) | selection.measure()
    found[VALIDATION_LOSS] = loss(logits, dataset.validation.targets)
    return CachedResult(
        test_accuracy=_row(accuracy(test, dataset.test.targets)),
        validation_accuracy=_row(accuracy(logits, dataset.validation.targets)),
        measures={name: [None if math.isnan(one) else one for one in _row(row)] for name, row in found.items()},
        diverged=int((~logits.flatten(-2).isfinite().all(-1)).sum()),
        guarded=guards.guarded,
        answered=guards.samples,
    )


def teacher_of(problem: Problem) -> Tensor | None:
    """The teacher's logits on the samples of the test split, `[K, C]`; None where they cannot be had."""
    logits = problem.teacher_on("test")
    return None if logits is None else problem.dataset.test.kept(logits)


def gather(name: str, results: Sequence[CachedResult], seeds: Sequence[int]) -> MethodResult:
    """The result of a method whose stacks came to these; its note tells of students that diverged."""
    diverged, guarded = sum(one.diverged for one in results), sum(one.guarded for one in results)
    fraction = guarded / max(sum(one.answered for one in results), 1)
    notes = [f"{diverged} of {len(seeds)} diverged"] if diverged else []
    if fraction >= 0.0005:
        notes.append(f"guarded {100 * fraction:.1f} % of samples")
    return MethodResult(
        name,
        np.concatenate([one.test_accuracy for one in results]),
        np.concatenate([one.validation_accuracy for one in results]),
        "; ".join(notes),
        measures={
            name: np.array([value for one in results for value in one.measured(name)], dtype=np.float64)
            for name in (*MEASURES, VALIDATION_LOSS)  # in this order, wherever the results come from
            if any(name in one.measures for one in results)
        },
        seeds=tuple(seeds),
        diverged=diverged,
        guarded=fraction,
        degraded=any(one.degraded for one in results),
        versions=tuple(sorted({in_words(one.versions) for one in results})),
    )


def step_times(
    problem: Problem,
    rules: Sequence[str],
    stack: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    step: Step = plain_step,
) -> dict[str, Any]:
    """Measure a training step of every rule, all rules in turn so that a busy machine slows all of them.

    Args:
        problem: The task, loaded.
        rules: As `load_method` reads them.
        stack: How many students take the step side by side; by default what suits the student.
        clock: In seconds.
        step: How a step is taken.

    Returns:
        `students` in a step, `rounds`, and for every rule in `rules` `milliseconds`, the median, and `ratio`, the
        median over rounds of its time by that of plain distillation at T = 4.
    """
    size = stack or problem.stack_size
    seeds: int | list[int] = list(range(size)) if size > 1 else 0
    steps = {rule: _stepper(problem, rule, seeds, clock, step) for rule in dict.fromkeys([PLAIN, *rules])}
    for stepper in steps.values():
        stepper()  # the first takes longer than all others
    taken: dict[str, list[float]] = {rule: [] for rule in steps}
    since = clock()
    for done in range(ROUNDS):
        if done >= LEAST_ROUNDS and clock() - since > SECONDS:
            break
        for rule, stepper in steps.items():
            taken[rule].append(stepper())
    by_rule = {}
    for rule in rules:
        ratios = [one / max(plain, 1e-9) for one, plain in zip(taken[rule], taken[PLAIN], strict=True)]
        median = 1000 * statistics.median(taken[rule])
        by_rule[rule] = {"milliseconds": round(median, 4), "ratio": round(statistics.median(ratios), 4)}
    return {"students": size, "rounds": len(taken[PLAIN]), "rules": by_rule}


def _stepper(
    problem: Problem, rule: str, seeds: int | list[int], clock: Callable[[], float], take: Step
) -> Callable[[], float]:
    """Takes a step whenever it is called, from the first batch again after the last, and returns its seconds."""
    run = Distillation(problem, seeds)
    method = run.attach(load_method(rule))

    def step() -> float:
        if run.done:
            run.step = 0
        since = clock()
        take(run, method)
        if problem.device.type == "cuda":
            torch.cuda.synchronize(problem.device)
        return clock() - since

    return step


def by_name(name: str) -> Maker:
    """Makes the method that `load_method` knows by this name."""
    method = load_method(name)
    return lambda run: run.attach(method)


def step_of(problem: Problem, mode: CompileMode, stack: int, students: int) -> Step:
    """How the steps of so many students by one method are taken, `stack` of them side by side.

    Students that train one by one are large, or cannot be stacked: compiling gains them little.
    """
    side_by_side = students if stack > 1 else 0
    return step_for(mode, problem.device, side_by_side * steps_of_a_run(problem) * problem.batch_samples)


def steps_of_a_run(problem: Problem) -> int:
    """How many training steps a student takes."""
    return problem.task.recipe.steps(len(problem.dataset.train))


def chunks(seeds: Sequence[int], stack: int) -> list[int | list[int]]:
    """The seeds of each stack; where one student makes a stack, it is trained by itself."""
    if stack > MOST_STUDENTS:
        raise BadInputError(f"a stack holds at most {MOST_STUDENTS} students; got --stack {stack}")
    if stack == 1:
        return list(seeds)
    return [list(seeds[start : start + stack]) for start in range(0, len(seeds), stack)]


def _row(values: Tensor) -> list[float]:
    row: list[float] = values.double().reshape(-1).tolist()
    return row
