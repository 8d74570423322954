"""How the runs of an environment begin, in this process or shared out: each worker trains some of a run's students.

Every worker draws the whole run, from the state that the generator of this process had, and keeps its share of it. So
nothing but numbers travels: actions to the workers, and what a step lets out back to this process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rltemp.envs.assignments import TaskSource
from rltemp.envs.episode import FIRST_TRAINING_SEED, Decision, Episode, Look, Seen
from rltemp.envs.mixup import MixedDistillation, share_of_run
from rltemp.envs.variety import Assignment
from rltemp.io.workers import Workers
from rltemp.kd.signals import Signals, Temperatures
from rltemp.training.distill import Distillation

Samples = TypeVar("Samples", Signals, Temperatures)
ALL = slice(None)


@dataclass(frozen=True)
class RunDraws:
    """What the runs of an environment have in common; its arguments are those of `DistillVecEnv`."""

    source: TaskSource
    students: int
    replicas: int
    decision: Decision
    reward_interval: int | None
    mixup_runs: int

    def draw(self, generator: np.random.Generator) -> tuple[list[int], Assignment]:
        """Draw the next run: each student's seed, and what all of them do."""
        groups = self.students // self.replicas
        seeds = generator.integers(FIRST_TRAINING_SEED, 2**31, groups).repeat(self.replicas)
        return seeds.tolist(), self.source.draw(generator, groups).replicated(self.replicas)

    def begin(self, drawn: tuple[list[int], Assignment], number: int, share: slice = ALL) -> Episode:
        """Begin run `number`, from 0, with a share of its students."""
        seeds, given = drawn[0][share], drawn[1].share(share)
        mixed = share_of_run(number, self.mixup_runs)
        kind: Callable[..., Distillation] = Distillation if mixed is None else partial(MixedDistillation, share=mixed)
        return Episode(given.run(seeds, kind), self.decision, given.probe, self.reward_interval)


@dataclass(frozen=True)
class Told:
    """What a worker tells of its share `[s]` after every step; of an `Episode`."""

    seen: Seen
    reward: NDArray[np.float32]
    potential: NDArray[np.float32]
    lost: NDArray[np.bool_]


class Share:
    """In a worker: its share of the students of one run after another."""

    episode: Episode

    def __init__(self, runs: RunDraws) -> None:
        self.runs = runs

    def begin(self, state: Any, number: int, share: slice) -> tuple[int, int, Told]:
        """Begin a run that is drawn from a generator in this state; its steps, its reward interval, its start."""
        generator = np.random.default_rng()
        generator.bit_generator.state = state
        self.episode = self.runs.begin(self.runs.draw(generator), number, share)
        return self.episode.steps, self.episode.reward_interval, self._told()

    def step(self, action: NDArray[np.float32]) -> Told:
        """Take a step, under actions `[s, B, A]`."""
        self.episode.step(torch.from_numpy(action).to(self.runs.source.problem.device))
        return self._told()

    def recover(self) -> Told:
        """Replace the students that diverged."""
        self.episode.recover()
        return self._told()

    def look(self) -> Look:
        """The last step in full."""
        return self.episode.look()

    def _told(self) -> Told:
        episode = self.episode
        return Told(episode.seen, episode.reward, episode.seen_potential, episode.lost)


class SharedEpisode:
    """A run whose students are with workers; to the environment and its callbacks what an `Episode` is.

    Args:
        workers: Have been given a `Share` by the name `share`.
        students: How many.
        state: Of the generator, before the run is drawn.
        number: Of the run, from 0.
    """

    def __init__(self, workers: Workers, students: int, state: Any, number: int) -> None:
        self._workers = workers
        self._shares = workers.shares(students)
        begun = self._call("begin", [(state, number, share) for share in self._shares])
        self.steps, self.reward_interval, _ = begun[0]
        self.taken = 0
        self._tell([told for *_, told in begun])

    def step(self, action: Tensor) -> None:
        """Train every student on its batch at the temperatures of `action`, `[S, B, A]`."""
        every = action.numpy(force=True)
        self._tell(self._call("step", [(every[share],) for share in self._shares]))
        self.taken += 1

    def recover(self) -> None:
        """Put fresh copies in the place of the students that diverged, and observe again."""
        self._tell(self._call("recover", [()] * len(self._shares)))

    def look(self) -> Look:
        """The last step."""
        looks: list[Look] = self._call("look", [()] * len(self._shares))
        return Look(
            _joined([look.signals for look in looks]),
            _joined([look.temperatures for look in looks]),
            torch.cat([look.loss for look in looks]),
        )

    def _call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self._workers.call("share", method, arguments)

    def _tell(self, told: Sequence[Told]) -> None:
        seen, sizes = [one.seen for one in told], [len(one.reward) for one in told]
        self.seen = Seen(
            np.concatenate([one.observation for one in seen]),
            np.concatenate([one.diverged for one in seen]),
            all(one.sound for one in seen),
            np.average([one.means for one in seen], 0, sizes),
            None if seen[0].mask is None else np.concatenate([one.mask for one in seen if one.mask is not None]),
        )
        self.reward = np.concatenate([one.reward for one in told])
        self.seen_potential = np.concatenate([one.potential for one in told])
        self.lost = np.concatenate([one.lost for one in told])


def _joined(parts: Sequence[Samples]) -> Samples:
    """The signals or the temperatures of all students from those of each share."""
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(parts[0])}
    whole: dict[str, Any] = {
        name: torch.cat(values) if isinstance(values[0], Tensor) else values[0] for name, values in columns.items()
    }
    return type(parts[0])(**whole)
