"""What the students of a run are to do: one task with its samples redrawn, or a task drawn afresh every run."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from rltemp.data.problem import Problem
from rltemp.envs.variety import Assignment
from rltemp.errors import BadInputError


class TaskSource(Protocol):
    """Where a run's task comes from; batch size and number of steps are the same for every draw."""

    problem: Problem
    """A typical one."""

    def draw(self, generator: np.random.Generator, groups: int) -> Assignment:
        """Draw the task of the next run, and the samples of each of its groups."""
        ...


class OneTask:
    """The same task every run.

    Args:
        problem: The task, loaded.
        redraw: Draw each group's training and probe samples afresh, from both splits together: a probe that stays the
            same is overfitted by the policy. The validation and test splits are never touched.
    """

    def __init__(self, problem: Problem, redraw: bool) -> None:
        self.problem = problem
        self.redraw = redraw
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
        return Assignment(self.problem, self._pool, self._logits, positions[:, :size], positions[:, size:])
