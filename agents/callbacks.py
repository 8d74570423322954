"""What happens around PPO's updates: the draw of a run, what TensorBoard shows of it, and which policy is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from rltemp.agents.calibration import CalibratedBuffer
from rltemp.agents.config import PolicyConfig
from rltemp.agents.network import RunBuffer, RunPolicy, SampleNetwork
from rltemp.distill import Distillation, Problem, predict, train
from rltemp.envs.episode import Decision
from rltemp.envs.rewards import POTENTIALS, WORST
from rltemp.envs.vector import DistillVecEnv
from rltemp.features import featurize
from rltemp.names import lookup
from rltemp.tracking import step_scalars, temperature_scalars
from rltemp.types import Signals, Temperatures

FIRST_VALIDATION_SEED = 600_000
"""Students that a policy is selected on: neither those it is trained with nor those of a comparison."""


class DrawCallback(BaseCallback):
    """Draws the students' policies before each run and hands the draw to the buffer after it: agent run's own."""

    def __init__(self, students: int) -> None:
        super().__init__()
        self.students = students

    def _on_rollout_start(self) -> None:
        policy_of(self).draw(self.students)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        assert isinstance(buffer, RunBuffer)  # this callback belongs to it
        buffer.drawn = policy_of(self).drawn


class RunCallback(BaseCallback):
    """Logs what happened in the run of a rollout.

    Args:
        env: The environment under PPO.
        samples: How many steps of a run are looked at for TensorBoard.
    """

    def __init__(self, env: DistillVecEnv, samples: int = 10) -> None:
        super().__init__()
        self.env = env
        self.every = max(1, env.episode.run.steps // samples)
        self._temperatures: list[Temperatures] = []
        self._scalars: list[dict[str, float]] = []
        self._started = 0.0

    def _on_rollout_start(self) -> None:
        self._temperatures, self._scalars = [], []
        self._started = time.perf_counter()

    def _on_step(self) -> bool:
        episode = self.env.episode
        # At the last step of a run the environment is already in the next one, which has taken no step.
        if episode.run.step and episode.run.step % self.every == 0:
            self._temperatures.append(episode.temperatures.detach())
            self._scalars.append(step_scalars(episode.signals, episode.loss))
        return True

    def _on_rollout_end(self) -> None:
        seconds = time.perf_counter() - self._started
        buffer, finished = self.model.rollout_buffer, self.env.finished  # type: ignore[attr-defined]
        assert finished is not None  # a rollout is one run
        # A student's mean over its samples, which is the same however its reward is shared out to them.
        returns = buffer.rewards.sum(0).reshape(self.env.students, -1).mean(1)
        values = {
            "reward/run_mean": float(returns.mean()),
            "reward/run_std": float(returns.std()),
            "reward/probe_potential": float(finished.potential.mean()),
            "student/diverged": int((finished.lost | finished.diverged).sum()),
            "time/step_ms": 1000 * seconds / finished.run.steps,
        }
        if isinstance(buffer, CalibratedBuffer):
            values["calibration/explained"] = buffer.model.explained
        for name in self._scalars[0] if self._scalars else ():
            values[name] = float(np.mean([scalars[name] for scalars in self._scalars]))
        if self._temperatures:
            together = _together(self._temperatures)
            values |= temperature_scalars(together)
            self.logger.record("temperature/student", together.student, exclude="stdout")
            self.logger.record("temperature/teacher", together.teacher, exclude="stdout")
        for name, value in values.items():
            self.logger.record(name, value)


class SelectionCallback(BaseCallback):
    """Keeps the running mean of the policy's weights that does best on validation data, the reference included.

    Args:
        problem: The task, loaded.
        decision: What an action means.
        config: How the policy is trained.
        network: What the policy is without its noise.
        weights: Gives the network's present weights, flat `[P]`.
    """

    def __init__(
        self,
        problem: Problem,
        decision: Decision,
        config: PolicyConfig,
        network: SampleNetwork,
        weights: Callable[[], Tensor],
    ) -> None:
        super().__init__()
        self.problem = problem
        self.decision = decision
        self.config = config
        self.network = network
        self.weights = weights
        self.update = 0
        self.kept = torch.zeros(0)
        self.kept_update = 0
        self.kept_potential = 0.0
        self.reference_potential = 0.0
        self._mean = torch.zeros(0)

    def _on_training_start(self) -> None:
        self._mean = self.weights().clone()
        # Weights of zero are the reference rule, and the only policy that is known not to be worse than it.
        self.kept = torch.zeros_like(self._mean)
        self.reference_potential = self.kept_potential = self._potential(self.kept)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # The start of a rollout is the first moment after an update.
        if self.update:
            self._consider()
        self.update += 1

    def _on_training_end(self) -> None:
        self._consider()

    def _consider(self) -> None:
        weight = self.config.averaging
        self._mean = weight * self._mean + (1 - weight) * self.weights()
        if self.update % self.config.validate_every and self.update != self.config.updates:
            return
        potential = self._potential(self._mean)
        self.logger.record("reward/validation_potential", potential)
        self.logger.record("reward/validation_gain", potential - self.reference_potential)
        if potential > self.kept_potential:
            self.kept, self.kept_update, self.kept_potential = self._mean.clone(), self.update, potential

    def _potential(self, weights: Tensor) -> float:
        rule = network_rule(self.network, weights, self.decision)
        seeds = range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + self.config.validation_students)
        run = Distillation(self.problem, list(seeds))
        student, dataset = train(run, replace(self.decision.method, rule=rule)), self.problem.dataset
        metric = lookup(POTENTIALS, self.problem.task.metric, "metric")
        values = metric(predict(student, dataset, dataset.validation), dataset.validation.labels)
        return float(torch.where(values.isfinite(), values, WORST[self.problem.task.metric]).mean())


def network_rule(network: SampleNetwork, weights: Tensor, decision: Decision) -> Callable[[Signals], Temperatures]:
    """The temperature rule of a network under weights `[P]`, for a stack of students `[S, B]`."""

    def rule(signals: Signals) -> Temperatures:
        with torch.no_grad():
            observation = featurize(signals, decision.features)
            action = network(observation, weights.expand(len(observation), -1))
        return decision.temperatures(signals, action)

    return rule


def _together(steps: Sequence[Temperatures]) -> Temperatures:
    """The temperatures of several steps of one method as one, `[steps, ...]`."""
    student, teacher, weight = (
        torch.stack([getattr(step, name) for step in steps]) for name in ("student", "teacher", "weight")
    )
    guards = [step.guarded for step in steps if step.guarded is not None]
    return Temperatures(student, teacher, weight, torch.stack(guards) if guards else None)


def policy_of(callback: BaseCallback) -> RunPolicy:
    """The policy that a callback's model trains."""
    policy = callback.model.policy
    assert isinstance(policy, RunPolicy)  # the agent's own callback is what asks
    return policy
