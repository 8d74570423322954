"""How the runs of an environment begin, and how students are shared out over worker processes.

Every worker draws the whole run, from the state that the generator of this process had, and plays its share of it. So
little travels: the drawn weights to the workers, and what a look shows back to this process. A share stands for itself:
where its worker was lost, another one plays it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from rltemp.data.problem import Problem
from rltemp.envs.assignments import TaskSource
from rltemp.envs.episode import FIRST_TRAINING_SEED, LOOKS, Decision, Episode
from rltemp.envs.mixup import MixedDistillation, share_of_run
from rltemp.envs.played import ActionNetwork, Stretch, joined, play
from rltemp.envs.variety import Assignment
from rltemp.errors import BadInputError
from rltemp.io.pool import WorkerPool, open_pool
from rltemp.training.distill import Distillation
from rltemp.training.steps import Step, plain_step

ALL = slice(None)
Drawn = list[tuple[list[int], Assignment]]
"""A run, task by task: each student's seed, and what all of them do."""


@dataclass(frozen=True)
class RunDraws:
    """What the runs of an environment have in common; its arguments are those of `DistillVecEnv`."""

    source: TaskSource
    students: int
    replicas: int
    decision: Decision
    reward_interval: int | None
    mixup_runs: int
    step: Step = plain_step
    tasks: int = 1
    looks: int = LOOKS

    @property
    def stepped(self) -> bool:
        """Whether runs can be stepped: all students of all of them take steps of one shape."""
        return self.tasks == 1 and self.source.alike

    def draw(self, generator: np.random.Generator) -> Drawn:
        """Draw the next run."""
        groups, drawn = self.students // self.tasks // self.replicas, []
        for _ in range(self.tasks):
            seeds = generator.integers(FIRST_TRAINING_SEED, 2**31, groups).repeat(self.replicas)
            drawn.append((seeds.tolist(), self.source.draw(generator, groups).replicated(self.replicas)))
        return drawn

    def begin(self, drawn: Drawn, number: int) -> Episode:
        """Begin run `number`, from 0, which is stepped.

        Raises:
            BadInputError: Where tasks differ, so that their students take no steps in common.
        """
        if not self.stepped:
            raise BadInputError("runs of tasks that differ are played, not stepped: give one task, and tasks=1")
        ((seeds, given),) = drawn
        run = self._fresh(seeds, given, number)
        return Episode(run, self.decision, given.probe, self.reward_interval or max(1, run.steps // self.looks))

    def play(
        self, drawn: Drawn, number: int, network: ActionNetwork, weights: Tensor, share: slice = ALL
    ) -> Iterator[Stretch]:
        """Play run `number`, from 0, with a share of its students; weights `[S, P]` are those of all."""
        each, together = self.students // self.tasks, list[Iterator[Stretch]]()
        first, last, _ = share.indices(self.students)

        def one(task: int, stack: slice) -> Iterator[Stretch]:
            seeds, given = drawn[task][0][stack], drawn[task][1].share(stack)
            run, own = self._fresh(seeds, given, number), weights[task * each :][stack]
            return play(run, self.decision, given.probe, self._ends(run.steps), network, own, self.step, task)

        for task, (_, given) in enumerate(drawn):
            own = slice(max(first - task * each, 0), min(last - task * each, each))
            if own.start < own.stop:
                together += [one(task, stack) for stack in stacks(given.problem, own, each)]
        return map(joined, zip(*together, strict=True))

    def play_share(
        self, state: Any, number: int, network: ActionNetwork, weights: Tensor, share: slice
    ) -> list[Stretch]:
        """In a worker: play a share of the run that is drawn from a generator in this state."""
        generator = np.random.default_rng()
        generator.bit_generator.state = state
        return [*self.play(self.draw(generator), number, network, weights, share)]

    def _ends(self, steps: int) -> Collection[int]:
        """After which steps of a run its probe is looked at."""
        if self.reward_interval is not None:
            return range(self.reward_interval, steps + 1, self.reward_interval)
        return [steps * (look + 1) // self.looks for look in range(self.looks)]

    def _fresh(self, seeds: list[int], given: Assignment, number: int) -> Distillation:
        mixed = share_of_run(number, self.mixup_runs)
        kind: Callable[..., Distillation] = Distillation if mixed is None else partial(MixedDistillation, share=mixed)
        return given.run(seeds, kind)


def stacks(problem: Problem, share: slice, students: int) -> list[slice]:
    """A share of so many students in ranges, each of which is best trained side by side.

    Students that are not stacked stay together: they are called one by one anyway.
    """
    first, last, _ = share.indices(students)
    size = problem.stack_size if problem.stack_size > 1 else students
    return [slice(start, min(start + size, last)) for start in range(first, last, size)]


class Workers:
    """Students shared out over the workers of a pool, as evenly as it goes.

    Args:
        pool: Of processes of this machine, or of a Ray cluster.
        count: Of shares, 1 or more.
    """

    def __init__(self, pool: WorkerPool, count: int) -> None:
        self.count = count
        self._pool = pool
        self._work = _Work({})

    def give(self, name: str, work: Callable[..., Any]) -> None:
        """Let every worker have some work, which takes a share as its last argument; `name` stands in messages."""
        self._work = _Work({**self._work.given, name: work})

    def share_out(self, name: str, students: int, *values: Any) -> list[Any]:
        """What was made of each share of so many students, in their order.

        Raises:
            RltempError: As the work raises it.
            TrainingStoppedError: Where a worker raised anything else, or was lost again and again.
            InterruptedRunError: Where a signal came that ended workers too.
        """
        orders = [(_words(share), name, share, values) for share in self.shares(students)]
        made = dict(self._pool.run(self._work, orders))
        return [made[place] for place in range(len(orders))]

    def shares(self, students: int) -> list[slice]:
        """So many students as a range for each share, in order."""
        ends = [students * number // self.count for number in range(self.count + 1)]
        return [slice(first, last) for first, last in pairwise(ends)]


@dataclass(frozen=True, eq=False)
class _Work:
    """What each worker is given, by name."""

    given: dict[str, Callable[..., Any]]

    def __call__(self, _: str, name: str, share: slice, values: tuple[Any, ...]) -> Any:
        return self.given[name](*values, share)


def _words(share: slice) -> str:
    return f"students {share.start + 1} to {share.stop}"


@contextlib.contextmanager
def open_workers(count: int, ray: str | None = None, gpus: float = 0) -> Iterator[Workers | None]:
    """So many workers, which end with the context; None for one, whose work this process does.

    Args:
        count: Of shares.
        ray: The address of a Ray cluster whose workers they are.
        gpus: That a share needs there.
    """
    with open_pool(count, ray, gpus) as pool:
        yield None if pool is None else Workers(pool, count)
