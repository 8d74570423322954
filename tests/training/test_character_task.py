"""The task `characters` as a whole: a stack of its students learns, as each would alone, and temperatures matter."""

from __future__ import annotations

import pytest
import torch

from rltemp.data.problem import Problem, predict
from rltemp.data.tasks import load_task
from rltemp.experiments.compare import compare
from rltemp.experiments.measures import loss
from rltemp.experiments.statistics import paired_difference
from rltemp.loading import load_method
from rltemp.models.stack import StackedStudents
from rltemp.training.distill import Distillation
from rltemp.training.preparation import prepare
from rltemp.training.steps import train


@pytest.fixture(scope="module")
def brief() -> Problem:
    """Small networks and a single epoch of 200 steps, the teacher's too."""
    return prepare(load_task("characters", teacher="gpt:16", student="gpt:16", epochs=1, teacher_epochs=1))


def test_a_stack_of_its_students_learns_from_what_comes_before(brief: Problem) -> None:
    students = train(Distillation(brief, [3, 5]), load_method("fixed:1"))
    assert isinstance(students, StackedStudents)
    assert brief.stack_size == 32
    split = brief.dataset.validation
    counts = split.targets.bincount(minlength=64).double()
    frequencies = counts[counts > 0] / counts.sum()
    entropy = float(-(frequencies * frequencies.log()).sum())  # of one who knows the frequencies alone
    assert (loss(predict(students, brief, split), split.targets) < entropy - 0.3).all()


def test_one_step_of_a_stack_is_the_step_of_each_student_to_1e_5(brief: Problem) -> None:
    runs = [Distillation(brief, seeds) for seeds in ([3, 5], 5)]
    for run in runs:
        for _ in range(2):  # the warm-up's first step has a rate of zero
            run.update(load_method("fixed:2").loss(run.observe()))
    together, alone = runs
    assert isinstance(together.student, StackedStudents)
    for name, value in together.student.unstack(1).items():
        torch.testing.assert_close(value, alone.student.state_dict()[name], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_no_teacher_and_fixed_temperatures_are_told_apart() -> None:
    comparison = compare(prepare(load_task("characters")), ["none", "fixed:1", "fixed:2"], range(9000, 9016))
    none, one, two = (result.measures["negative_log_likelihood"] for result in comparison.results)
    for pair in ((none, one), (two, one), (two, none)):
        difference = paired_difference(*pair)
        assert difference.low > 0 or difference.high < 0
    assert paired_difference(none, one).low > 0  # a teacher helps
