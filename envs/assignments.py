"""What the students of a run are to do: one task with its samples redrawn, or a task drawn afresh every run."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn, Protocol, get_args, runtime_checkable

import numpy as np
import torch

from rltemp.data.problem import Problem
from rltemp.data.recipe import Recipe, Schedule
from rltemp.data.task import Task
from rltemp.envs.variety import Assignment
from rltemp.errors import BadInputError
from rltemp.training.preparation import prepare


@runtime_checkable
class TaskSource(Protocol):
    """Where a run's task comes from."""

    problem: Problem
    """A typical one."""
    steps: int
    """Of a typical run."""
    alike: bool
    """Whether the steps of all runs have one shape: runs of any other source are played, not stepped."""

    def draw(self, generator: np.random.Generator, groups: int) -> Assignment:
        """Draw the task of the next run, and the samples of each of its groups."""
        ...


RATE_FACTOR, LENGTH_FACTOR = 3.0, 2.0
"""A varied recipe's learning rate, and its epochs, are up to so many times the task's own, or so many times less."""
SCHEDULES = get_args(Schedule)


class OneTask:
    """The same task every run.

    Args:
        problem: The task, loaded.
        vary: Draw a learning rate, a schedule and a length around the task's own for every run: a policy that knows one
            learning rate at every point of the run breaks down under another schedule.
        redraw: Draw each group's training and probe samples afresh, from both splits together: a probe that stays the
            same is overfitted by the policy. The validation and test splits are never touched.
    """

    def __init__(self, problem: Problem, redraw: bool, vary: bool = False) -> None:
        self.problem = problem
        self.redraw = redraw
        self.vary = vary
        self.alike = True
        self.steps = problem.task.recipe.steps(len(problem.dataset.train))
        self._pool = problem.dataset.train.and_then(problem.dataset.probe)
        self._logits = None
        if problem.teacher_logits is not None:
            of_probe = problem.teacher_on("probe")
            if of_probe is None:
                raise BadInputError(
                    "the teacher is known by its logits on the training samples alone, and rewards need samples that "
                    "are drawn from probe and training data together: leave probe out, so that it is cut from them"
                )
            self._logits = torch.cat([problem.teacher_logits, of_probe])

    def draw(self, generator: np.random.Generator, groups: int) -> Assignment:
        """Draw the samples of each group."""
        size = len(self.problem.dataset.train)
        order = np.tile(np.arange(len(self._pool)), (groups, 1))
        if self.redraw:
            generator.permuted(order, axis=1, out=order)
        positions = torch.from_numpy(order)
        problem = self.problem
        if self.vary:
            problem = replace(problem, task=replace(problem.task, recipe=varied(problem.task.recipe, generator)))
        return Assignment(problem, self._pool, self._logits, positions[:, :size], positions[:, size:])


def varied(recipe: Recipe, generator: np.random.Generator) -> Recipe:
    """A recipe around this one: half of them have its own schedule, the others any."""
    rate, length = (factor ** generator.uniform(-1, 1) for factor in (RATE_FACTOR, LENGTH_FACTOR))
    schedule = str(generator.choice(SCHEDULES)) if generator.random() < 0.5 else recipe.schedule
    epochs = max(1, round(recipe.epochs * length))
    return recipe.changed(learning_rate=recipe.learning_rate * rate, schedule=schedule, epochs=epochs)


def loaded(task: str | Task | Problem) -> Problem:
    """The problem that a name, a description or a problem stands for; its teacher is trained where it has to be.

    Raises:
        BadInputError: For a name that nobody knows, and for anything else.
    """
    if isinstance(task, Problem):
        return task
    if isinstance(task, str | Task):
        return prepare(task)
    raise BadInputError(f"a task is given by its name, as a Task or as a Problem; got {task!r:.80}")


class NoCopies:
    """Refuses `copy` and `pickle` in one line, in place of an error from deep within torch."""

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        raise BadInputError(
            f"a {name} cannot be copied or pickled: the run in it holds gradients, and rules that are functions. Make "
            "another one, and reset it with the same seed"
        )
