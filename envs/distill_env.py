"""One student's distillation as a Gymnasium environment, `rltemp/Distill-v0`: a step is a batch.

The observation and the action hold a row for every sample of the batch. Gymnasium and its tools can use it as
it stands; to *train* a policy take `rltemp.envs.vector.DistillVecEnv`, where every sample has an environment
of its own (an algorithm that sees one big action and one reward for all of it does not learn).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rltemp.data.problem import Problem
from rltemp.data.task import Task
from rltemp.envs.assignments import NoCopies, OneTask, loaded
from rltemp.envs.episode import FIRST_TRAINING_SEED, Decision, Episode, checked_actions
from rltemp.kd.method import Method
from rltemp.policy.actions import ActionScale
from rltemp.policy.features import DEFAULT_FEATURES, LIMIT

Array = NDArray[np.float32]
MEANS = "student_temperature_mean", "teacher_temperature_mean", "loss"
"""What `info` has of a step's batch."""


class DistillEnv(NoCopies, gym.Env[Array, Array]):
    """Choose the temperatures of every sample of every batch of one student's training.

    Observation: `Box(-10, 10, (B, F))`, the features of the batch's samples. Action: `Box(-1, 1, (B, A))`, for the
    student's and the teacher's temperature of each sample (and its weight, where the scale has one); zero is the
    reference method exactly. Reward: the change of the student's potential over the step, measured on probe samples
    without any temperature in it; a run's rewards sum to its whole improvement. The run's end is `truncated`; a student
    that diverges is `terminated`, with the last finite observation and the fall to the worst potential as its reward.

    `info` has `potential`, and after a step `loss` and the means of both temperatures over the batch.

    Args:
        task: The name of a task, a description, or one in memory.
        method: The reference, as a name or a `Method`.
        features: Names of the observation's columns, in order.
        scale: What an action means.
        redraw: Draw training and probe samples afresh, every run, from both splits together.
        reward_interval: Steps from one look at the probe to the next, by default a twentieth of the run; rewards in
            between are zero, their sum the same.
        render_mode: None; there is nothing to see.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        task: str | Task | Problem = "digits",
        *,
        method: str | Method = "fixed:4",
        features: Sequence[str] = DEFAULT_FEATURES,
        scale: ActionScale | None = None,
        redraw: bool = False,
        reward_interval: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.decision = Decision.make(method, features, scale)
        self.problem = loaded(task)
        self.reward_interval = reward_interval
        self.render_mode = render_mode
        self.episode: Episode | None = None
        self._source = OneTask(self.problem, redraw)
        batch_size = self.problem.batch_samples
        self.observation_space = spaces.Box(-LIMIT, LIMIT, (batch_size, len(features)), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (batch_size, self.decision.scale.size), np.float32)

    def __repr__(self) -> str:
        """The task, the student and the reference."""
        task = self.problem.task
        return f"<DistillEnv {task.name}: student {task.student}, reference {self.decision.method.name}>"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin a run with a new student; `seed` determines all that is random from here on."""
        super().reset(seed=seed)
        given = self._source.draw(self.np_random, 1).replicated(1)
        given = replace(given, train=given.train[0], probe=given.probe[0])
        run = given.run(int(self.np_random.integers(FIRST_TRAINING_SEED, 2**31)))
        self.episode = Episode(run, self.decision, given.probe, self.reward_interval)
        return self.episode.seen.observation, {"potential": float(self.episode.seen_potential)}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Train on the batch at the temperatures of `action`.

        Raises:
            BadInputError: Where `action` has another shape or is not finite.
            ResetNeeded: Before the first reset, and after a run's end.
        """
        episode = self.episode
        if episode is None or episode.run.done or episode.seen.diverged:
            raise gym.error.ResetNeeded("there is no run under way: call reset() first")
        episode.step(checked_actions(action, self.action_space.shape or ()).to(self.problem.device))
        terminated = bool(episode.seen.diverged)
        means = dict(zip(MEANS, episode.seen.means.tolist(), strict=True))
        info = {"potential": float(episode.seen_potential), **means}
        return episode.seen.observation, float(episode.reward), terminated, episode.run.done and not terminated, info
