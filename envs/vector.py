"""Many students at once as an SB3 `VecEnv`: every sample of every student's batch is a sub-environment.

A flat `Box(B)` action does not learn (one likelihood ratio over B dimensions, one reward for all of them), so
this is the form that policies are trained in: observation `[F]`, action `[A]`, one small network for every
sample. The students are stacked and trained in one call. Sub-environment s * B + i is sample i of student s;
its time runs along the batches of that student, so generalised advantage estimation never crosses samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
from torch import Tensor

from rltemp.data.problem import Problem
from rltemp.data.task import Task
from rltemp.envs.assignments import NoCopies, OneTask, TaskSource, loaded
from rltemp.envs.episode import LOOKS, Decision, Episode, checked_actions
from rltemp.envs.played import ActionNetwork, Stretch, joined
from rltemp.envs.shares import RunDraws, Workers
from rltemp.errors import BadInputError
from rltemp.kd.method import Method
from rltemp.policy.actions import ActionScale
from rltemp.policy.features import DEFAULT_FEATURES, LIMIT
from rltemp.training.steps import Step, plain_step

TRAINED = "of the run"
"""For messages: students that a policy is trained on."""


class Outcome(NamedTuple):
    """What a run came to: each student's potential, and whether its numbers stopped being finite, `[S]` each."""

    potential: NDArray[np.float32]
    lost: NDArray[np.bool_]


class DistillVecEnv(NoCopies, VecEnv):
    """S students x B samples as S * B sub-environments of one distillation step each.

    With tokens, B counts all places of the batch's sequences, those of the padding among them.

    Reward of a sub-environment: the change of its student's potential over the step, the same for all its
    samples. All runs end together, truncated. A student that diverges ends its own episodes there, as
    terminated; a fresh copy of the student joins the run in its place.

    Args:
        problem: The task, by its name, described or loaded; or a source that draws one for every run.
        students: S, how many students a run trains.
        replicas: How many of them share a seed and its samples, side by side, so that they differ by their
            temperatures alone; divides S.
        method: The reference, as a name or a `Method`: an action of zero is this method exactly.
        features: Names of the observation's columns, in order.
        scale: What an action means.
        redraw: As in `rltemp.envs.assignments.OneTask`, where there is one task.
        reward_interval: Steps from one look at the probe to the next, by default such that there are `looks`; rewards
            in between are zero, their sum the same.
        mixup_runs: How many runs, from the first, mix samples of every batch (`rltemp.envs.mixup`).
        seed: Determines everything random.
        step: How a step of a run that is played is taken.
        workers: What the students of a run that is played are shared out over, by default nothing: this process trains
            them all.
        tasks: How many tasks the students of a run have, each as many of them; several are played, not stepped.
        looks: How often a run looks at its probe, unless `reward_interval` says it.
        vary: As in `rltemp.envs.assignments.OneTask`, where there is one task.

    Attributes:
        finished: What the last run came to.
        run_steps: Of a typical run.
    """

    def __init__(
        self,
        problem: str | Task | Problem | TaskSource,
        students: int = 32,
        *,
        replicas: int = 1,
        method: str | Method = "fixed:4",
        features: Sequence[str] = DEFAULT_FEATURES,
        scale: ActionScale | None = None,
        redraw: bool = True,
        reward_interval: int | None = None,
        mixup_runs: int = 0,
        seed: int = 0,
        step: Step = plain_step,
        workers: Workers | None = None,
        tasks: int = 1,
        looks: int = LOOKS,
        vary: bool = False,
    ) -> None:
        source = problem if isinstance(problem, TaskSource) else OneTask(loaded(problem), redraw, vary)
        self.problem = source.problem
        if students < 1 or replicas < 1 or tasks < 1 or students % (replicas * tasks):
            raise BadInputError(f"replicas x tasks must divide students; got {replicas} x {tasks} and {students}")
        self.students = students
        self.replicas = replicas
        self.batch_size = self.problem.batch_samples
        self.decision = Decision.make(method, features, scale)
        self.runs_finished = 0
        self.runs = RunDraws(source, students, replicas, self.decision, reward_interval, mixup_runs, step, tasks, looks)
        self.run_steps = source.steps
        self._workers = workers
        if workers is not None:
            workers.give(TRAINED, self.runs.play_share)
        self.render_mode = None
        self._generator = np.random.default_rng(seed)
        self._action = torch.zeros(0)
        self._episode: Episode | None = None
        self.finished: Outcome | None = None
        observation = spaces.Box(-LIMIT, LIMIT, (len(features),), np.float32)
        action = spaces.Box(-1.0, 1.0, (self.decision.scale.size,), np.float32)
        super().__init__(students * self.batch_size, observation, action)
        # One shared empty info: building S * B dictionaries a step would cost as much as the step.
        self._nothing: list[dict[str, Any]] = [{}] * self.num_envs
        self._begin()

    def __repr__(self) -> str:
        """The task, the students and the reference."""
        task, students = self.problem.task, f"{self.students} students of {self.batch_size} samples"
        return f"<DistillVecEnv {task.name}: {students}, student {task.student}, reference {self.decision.method.name}>"

    def reset(self) -> NDArray[np.float32]:
        """Begin a new run with new students; seeds given by `seed` take effect here."""
        if self._seeds and self._seeds[0] is not None:
            self._generator = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._begin()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        if not self.runs.stepped:  # played, so that nobody acts on what is seen
            return np.zeros((self.num_envs, len(self.decision.features)), np.float32)
        return self._observation()

    def step_async(self, actions: NDArray[np.float32]) -> None:
        """Take the actions `[S * B, A]` of the step that `step_wait` will run."""
        self._action = checked_actions(actions, (self.num_envs, self.decision.scale.size))

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Run the step; at an end, begin anew and put what ended into the infos, as SB3 expects."""
        episode = self.episode
        episode.step(self._action.view(self.students, self.batch_size, -1).to(self.problem.device))
        rewards = episode.reward.repeat(self.batch_size)
        self._returns += rewards
        self._lengths += 1
        done = episode.taken == episode.steps
        ended = episode.seen.diverged.repeat(self.batch_size) | done
        if not ended.any():
            return self._observation(), rewards, ended, self._nothing
        infos = self._final_infos(ended, truncated=done)
        if done:
            self._end(Outcome(episode.seen_potential, episode.lost | episode.seen.diverged))
        else:
            episode.recover()
            self._returns[ended], self._lengths[ended] = 0.0, 0
        return self._observation(), rewards, ended, infos

    def play(self, network: ActionNetwork, weights: Tensor) -> Iterator[Stretch]:
        """Play the run under way from its first step to its last, and begin the next one.

        Args:
            network: The policy's.
            weights: Of each student, `[S, P]`.

        Yields:
            Every stretch up to a look at the probe: as it is trained, or with workers all of them at the end.
        """
        if self._workers is None:
            stretches = self.runs.play(self._drawn, self.runs_finished, network, weights)
        else:
            told = self._drawn_from, self.runs_finished, network, weights
            stretches = map(joined, zip(*self._workers.share_out(TRAINED, self.students, *told), strict=True))
        for stretch in stretches:
            yield stretch
        self._end(Outcome(stretch.potential, stretch.lost))

    def state(self) -> dict[str, Any]:
        """What the run under way was drawn from: a checkpoint between two runs needs no more of an environment."""
        return {"generator": self._drawn_from, "runs_finished": self.runs_finished}

    def restore(self, state: dict[str, Any]) -> None:
        """Make the next `reset` begin the run that was under way when `state` was asked for."""
        self._reset_seeds()
        self._generator.bit_generator.state = state["generator"]
        self.runs_finished = state["runs_finished"]

    def close(self) -> None:
        """Nothing is held open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute, once for every sub-environment asked for."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set the attribute; the sub-environments share it."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call the method once; its answer stands for every sub-environment asked for."""
        answer = getattr(self, method_name)(*method_args, **method_kwargs)
        return [answer for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether returns are recorded: every sub-environment reports `episode` as SB3's Monitor does."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    @property
    def episode(self) -> Episode:
        """The run under way as it is stepped; a run that is played needs none."""
        if self._episode is None:
            self._episode = self.runs.begin(self._drawn, self.runs_finished)
        return self._episode

    def _begin(self) -> None:
        self._drawn_from = self._generator.bit_generator.state
        self._drawn = self.runs.draw(self._generator)
        self._episode = None
        self._returns = np.zeros(self.num_envs, np.float64)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._started = time.monotonic()

    def _end(self, outcome: Outcome) -> None:
        self.finished = outcome
        self.runs_finished += 1
        self._begin()

    def _observation(self) -> NDArray[np.float32]:
        return self.episode.seen.observation.reshape(self.num_envs, -1)

    def _final_infos(self, ended: NDArray[np.bool_], truncated: bool) -> list[dict[str, Any]]:
        infos: list[dict[str, Any]] = list(self._nothing)
        last = self._observation()
        diverged = self.episode.seen.diverged.repeat(self.batch_size)
        seconds = round(time.monotonic() - self._started, 6)
        for i in np.flatnonzero(ended):
            infos[i] = {
                "terminal_observation": last[i],
                "TimeLimit.truncated": truncated and not diverged[i],
                "episode": {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": seconds},
            }
        return infos
