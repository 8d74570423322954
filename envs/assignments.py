"""What the students of a run are to do: one task with its samples redrawn, or a task drawn afresh every run."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from rltemp.data.dataset import Split
from rltemp.data.problem import Problem, predict
from rltemp.envs.variety import Assignment


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
        train, probe = problem.dataset.train, problem.dataset.probe
        pool = Split(torch.cat([train.images, probe.images]), torch.cat([train.labels, probe.labels]))
        views_are_fixed = not problem.dataset.augment
        self._pool, self._logits = pool, predict(problem.teacher, problem.dataset, pool) if views_are_fixed else None

    def draw(self, generator: np.random.Generator, groups: int) -> Assignment:
        """Draw the samples of each group."""
        size = len(self.problem.dataset.train)
        order = np.tile(np.arange(len(self._pool)), (groups, 1))
        if self.redraw:
            generator.permuted(order, axis=1, out=order)
        positions = torch.from_numpy(order)
        return Assignment(self.problem, self._pool, self._logits, positions[:, :size], positions[:, size:])
