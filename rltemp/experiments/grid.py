"""The grid of a comparison: tasks by teachers by students, checked before anything is trained, summed up over all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rltemp.data.dataset import Dataset
from rltemp.data.problem import Problem
from rltemp.data.sources import load_dataset
from rltemp.data.tasks import Task, load_task
from rltemp.errors import BadInputError
from rltemp.experiments.alternatives import alternatives
from rltemp.experiments.compare import Comparison, default_stack
from rltemp.experiments.methods_compared import Arm, common_seeds, unlike
from rltemp.experiments.statistics import interquartile_mean
from rltemp.loading import load_method
from rltemp.training.distill import Distillation
from rltemp.training.options import OF_THE_TASK
from rltemp.training.steps import plain_step
from rltemp.training.teachers import stand_in

if TYPE_CHECKING:
    from rltemp.cli.compare import Compare

Interval = tuple[float, float, float]
"""A mean with its bounds."""


@dataclass(frozen=True)
class Overall:
    """A rule over all points of a grid: interquartile means, accuracy in percent, differences in points.

    A difference that cannot be taken in every point is nan, and the note says why.
    """

    rule: str
    accuracy: Interval
    differences: Mapping[str, Interval] = field(default_factory=dict)
    note: str = ""


def grid_tasks(options: Compare) -> list[Task]:
    """Every task of the grid, in the order of tasks, teachers, students.

    Raises:
        BadInputError: Where one is given twice, or in two ways.
    """
    for one, several in (("teacher", options.teachers), ("student", options.students)):
        if several and getattr(options, one) is not None:
            raise BadInputError(f"give --{one} or --{one}s, not both")
    names = options.tasks or (options.task,)
    teachers, students = options.teachers or (options.teacher,), options.students or (options.student,)
    given = {name: getattr(options, name) for name in OF_THE_TASK if name not in ("teacher", "student")}
    tasks = [
        load_task(name, teacher=teacher, student=student, **given)
        for name, teacher, student in itertools.product(names, teachers, students)
    ]
    for task in tasks:
        if tasks.count(task) > 1:
            raise BadInputError(f"the grid has {point_name(task)} twice")
    return tasks


def grid_data(options: Compare, tasks: Sequence[Task]) -> dict[str, Dataset]:
    """The data of every task of the grid, each loaded once, by the task's name."""
    names, device = dict.fromkeys(task.name for task in tasks), options.torch_device()
    return {name: load_dataset(name, options.split_seed or 0, options.data_root).to(device) for name in names}


def check_grid(tasks: Sequence[Task], data: Mapping[str, Dataset], rules: Sequence[str], stack: int | None) -> None:
    """Try every rule on one batch of every point: what cannot go together is said before anything is trained.

    Raises:
        BadInputError: With the point and the rule.
        ArtifactRefusedError: For weights of a teacher that do not fit.
    """
    for task in tasks:
        rule = ""
        try:
            problem = stand_in(task, data[task.name])
            seeds: int | list[int] = 0 if (stack or default_stack(problem)) == 1 else [0, 1]
            for rule in [concrete for spec in rules for concrete in alternatives(spec)]:
                _try(problem, rule, seeds)
        except BadInputError as error:
            under = f" under {rule}" if rule else ""
            raise type(error)(f"{point_name(task)}{under} is impossible: {error}") from error


def _try(problem: Problem, rule: str, seeds: int | list[int]) -> None:
    run = Distillation(problem, seeds)
    plain_step(run, run.attach(load_method(rule)))


def point_name(task: Task) -> str:
    """A point of a grid in words."""
    return f"{task.name}: {task.teacher} teaches {task.student}"


def overall(
    found: Sequence[Comparison], rules: Sequence[str], against: Sequence[str], allow_mixed: bool = False
) -> list[Overall]:
    """Sum every rule up over the points of a grid.

    Args:
        found: What was compared, one a point.
        rules: As they were written; where alternatives were chosen from, each point has its own choice.
        against: Baselines, likewise.
        allow_mixed: As for `rltemp.experiments.methods_compared.table_rows`.
    """
    return [_overall(found, rule, against, allow_mixed) for rule in dict.fromkeys(rules)]


def _overall(found: Sequence[Comparison], rule: str, against: Sequence[str], allow_mixed: bool) -> Overall:
    arms = [_arm(one, rule) for one in found]
    differences, reasons = {}, []
    for base in dict.fromkeys(against):
        bases = [_arm(one, base) for one in found]
        reasons += [reason for pair in zip(arms, bases, strict=True) if (reason := unlike(*pair))]
        differences[base] = _middle([_points(arm, other, allow_mixed) for arm, other in zip(arms, bases, strict=True)])
    word = "compared although" if allow_mixed else "not compared:"
    accuracy = _middle([100 * arm.test_accuracy for arm in arms])
    return Overall(rule, accuracy, differences, "; ".join(f"{word} {reason}" for reason in dict.fromkeys(reasons)))


def _middle(rows: Sequence[NDArray[np.float64]]) -> Interval:
    return interquartile_mean(rows) if all(map(len, rows)) else (math.nan, math.nan, math.nan)


def _points(arm: Arm, base: Arm, allow_mixed: bool) -> NDArray[np.float64]:
    ours, theirs = common_seeds(arm, base, allow_mixed)
    differences: NDArray[np.float64] = 100 * (ours - theirs)
    return differences


def _arm(found: Comparison, rule: str) -> Arm:
    return next(arm for arm in found.arms if arm.rule == found.names[rule])


def stored(one: Overall) -> dict[str, Any]:
    """As a result holds it."""
    names = ("mean", "low", "high")
    return {
        "rule": one.rule,
        "accuracy_percent": dict(zip(names, one.accuracy, strict=True)),
        "differences_points": {base: dict(zip(names, pair, strict=True)) for base, pair in one.differences.items()},
        "note": one.note,
    }
