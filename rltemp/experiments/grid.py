"""What is to be compared: rules with alternatives, by a grid of tasks, teachers and students; checked beforehand.

`fixed:1|2|4` stands for three rules, of which validation data choose one. And what a rule came to over all points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltemp.data.dataset import Dataset
from rltemp.data.problem import Problem
from rltemp.data.task import Task
from rltemp.data.tasks import load_task
from rltemp.errors import BadInputError
from rltemp.experiments.method_results import Comparison, common_seeds, marks, unlike
from rltemp.experiments.options import SELECTION_SEED, CompareOptions
from rltemp.experiments.statistics import interquartile_mean, number
from rltemp.kd.names import lookup, split_spec
from rltemp.loading import load_method
from rltemp.rules.controls import WRAPPERS
from rltemp.rules.published_methods import METHODS
from rltemp.training.distill import Distillation
from rltemp.training.options import OF_THE_TASK
from rltemp.training.preparation import load_data, stand_in
from rltemp.training.steps import shielded

Interval = tuple[float, float, float]
"""A mean with its bounds."""
BOUNDS = ("mean", "low", "high")


def alternatives(spec: str) -> list[str]:
    """Every concrete rule that `spec` stands for: options may list values with `|`.

    >>> alternatives("dtkd:reference=2|4,warmup=0")
    ['dtkd:reference=2,warmup=0', 'dtkd:reference=4,warmup=0']
    >>> alternatives("fixed:1|2")
    ['fixed:1', 'fixed:2']
    >>> alternatives("matched:shuffled:fixed:1|2")
    ['matched:shuffled:fixed:1', 'matched:shuffled:fixed:2']
    """
    name, options = split_spec(spec)
    if name in WRAPPERS:
        return [f"{name}:{inner}" for inner in alternatives(options)]
    if name not in METHODS or "|" not in options:
        return [spec]
    listed = [[key + value for value in values] for key, values in _listed(options)]
    return [f"{name}:{','.join(chosen)}" for chosen in itertools.product(*listed)]


def _listed(options: str) -> Iterator[tuple[str, list[str]]]:
    """Each option as what stands before its values (`reference=`, or nothing) and its values."""
    for item in options.split(","):
        key, equals, values = item.rpartition("=")
        yield key + equals, values.split("|")


def to_choose(spec: str) -> list[str]:
    """The alternatives where there is a choice among several; else none."""
    found = alternatives(spec)
    return found if len(found) > 1 else []


def choice(spec: str, best: str, by: str = "validation") -> str:
    """What was chosen from what: `reference=2 chosen on validation from 1|2|4|8`."""
    (name, options), (_, found) = split_spec(spec), split_spec(best)
    if name in WRAPPERS:
        return choice(options, found, by)
    written, chosen = _listed(options), found.split(",")
    chosen_from = [
        f"{value} chosen on {by} from {'|'.join(values)}"
        for value, (_, values) in zip(chosen, written, strict=True)
        if len(values) > 1
    ]
    return ", ".join(chosen_from)


def check_rules(rules: Sequence[str], seeds: Sequence[int], made: Container[str] = ()) -> None:
    """Build every rule that is not `made` and check the seeds: a mistake in the last costs none of the others' time.

    Raises:
        BadInputError: For a rule that cannot be built or is there twice, or for seeds out of range.
        ArtifactRefusedError: For a policy file that fails its checks.
    """
    if not rules or not seeds:
        raise BadInputError("a comparison needs at least one rule and one seed")
    for spec in rules:
        if list(rules).count(spec) > 1:
            raise BadInputError(f"rule {spec!r} is given twice")
        for concrete in alternatives(spec) if spec not in made else ():
            load_method(concrete)
    if min(seeds) < 0 or max(seeds) >= SELECTION_SEED:
        raise BadInputError(
            f"seeds must be between 0 and {SELECTION_SEED - 1}; got {min(seeds)} to {max(seeds)}. "
            "Larger ones are kept for choosing between alternatives and for training policies"
        )


def check_baselines(names: Sequence[str], rules: Sequence[str]) -> None:
    """Refuse a baseline that is no rule of the comparison, as written there.

    Raises:
        BadInputError: With what is near it.
    """
    for name in names:
        if name not in rules:
            lookup(dict.fromkeys(rules), name, "baseline")


def grid_tasks(options: CompareOptions) -> list[Task]:
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


def grid_data(options: CompareOptions, tasks: Sequence[Task]) -> dict[str, Dataset]:
    """The data of every task of the grid, each loaded once, by the task's name."""
    return {
        task.name: load_data(task, options.data_root, options.data_workers).to(options.torch_device()) for task in tasks
    }


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
            seeds: int | list[int] = 0 if (stack or problem.stack_size) == 1 else [0, 1]
            for rule in [concrete for spec in rules for concrete in alternatives(spec)]:
                _try(problem, rule, seeds)
        except BadInputError as error:
            under = f" under {rule}" if rule else ""
            raise type(error)(f"{point_name(task)}{under} is impossible: {error}") from error


def _try(problem: Problem, rule: str, seeds: int | list[int]) -> None:
    run = Distillation(problem, seeds)
    run.attach(load_method(rule)).loss(shielded(run.observe()))


def point_name(task: Task) -> str:
    """A point of a grid in words."""
    return f"{task.name}: {task.teacher} teaches {task.student}"


@dataclass(frozen=True)
class Overall:
    """A rule over all points of a grid: interquartile means, accuracy in percent, differences in points.

    A difference that cannot be taken in every point is nan, and the note says why.
    """

    rule: str
    accuracy: Interval
    differences: Mapping[str, Interval] = field(default_factory=dict)
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """As `result.json` holds it."""
        pairs = {base: dict(zip(BOUNDS, pair, strict=True)) for base, pair in self.differences.items()}
        accuracy = dict(zip(BOUNDS, self.accuracy, strict=True))
        return {"rule": self.rule, "accuracy_percent": accuracy, "differences_points": pairs, "note": self.note}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Overall:
        """The same, read back."""
        found = {"": stored["accuracy_percent"], **stored["differences_points"]}
        (_, accuracy), *differences = [
            (base, (number(pair["mean"]), number(pair["low"]), number(pair["high"]))) for base, pair in found.items()
        ]
        return cls(stored["rule"], accuracy, dict(differences), stored["note"])


def overall(
    found: Sequence[Comparison], rules: Sequence[str], against: Sequence[str], allow_mixed: bool = False
) -> list[Overall]:
    """Sum every rule up over the points of a grid; the best mean comes first.

    Args:
        found: What was compared, one a point.
        rules: As they were written; where alternatives were chosen from, each point has its own choice.
        against: Baselines, likewise.
        allow_mixed: As for `table_rows`.
    """
    summary = []
    for rule in dict.fromkeys(rules):
        pairs = {base: [(one.of(rule), one.of(base)) for one in found] for base in against}
        common = {base: [common_seeds(*pair, allow_mixed) for pair in of_base] for base, of_base in pairs.items()}
        differences = {base: _middle([100 * (a - b) for a, b in rows]) for base, rows in common.items()}
        accuracy = _middle([100 * one.of(rule).test_accuracy for one in found])
        marked = marks((unlike(*pair) for of_base in pairs.values() for pair in of_base), allow_mixed)
        summary.append(Overall(rule, accuracy, differences, marked))
    return sorted(summary, key=lambda one: -one.accuracy[0] if math.isfinite(one.accuracy[0]) else math.inf)


def _middle(rows: Sequence[NDArray[np.float64]]) -> Interval:
    return interquartile_mean(rows) if all(map(len, rows)) else (math.nan, math.nan, math.nan)
