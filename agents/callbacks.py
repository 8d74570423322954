"""What happens around PPO's updates: the draw of a run, what TensorBoard shows of it, and which policy is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from rltemp.agents.network import RunBuffer, RunPolicy, SampleNetwork
from rltemp.distill import Distillation, Problem, predict, train
from rltemp.envs.episode import Decision
from rltemp.envs.rewards import POTENTIALS, WORST
from rltemp.envs.vector import DistillVecEnv
from rltemp.features import featurize
from rltemp.names import lookup
from rltemp.tracking import step_scalars, temperature_scalars
from rltemp.types import Signals, Temperatures

if TYPE_CHECKING:
    from rltemp.agents.train import PolicyConfig

FIRST_VALIDATION_SEED = 600_000
"""Students that a policy is selected on: neither those it is trained with nor those of a comparison."""


class RunCallback(BaseCallback):
    """Draws the students' policies before each run, hands the draw to the buffer after it, and logs the run.

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
        policy_of(self).draw(self.env.students)
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
        buffer, finished = buffer_of(self), self.env.finished
        buffer.drawn = policy_of(self).drawn
        assert finished is not None  # a rollout is one run
        values = {
            "reward/run_mean": float(buffer.returns.mean()),
            "reward/run_std": float(buffer.returns.std()),
            "reward/probe_potential": float(finished.potential.mean()),
            "student/diverged": int((finished.lost | finished.diverged).sum()),
            "time/step_ms": 1000 * seconds / finished.run.steps,
        }
        for name in self._scalars[0] if self._scalars else ():
            values[name] = float(np.mean([scalars[name] for scalars in self._scalars]))
        if self._temperatures:
            together = Temperatures(
                *(torch.stack(field) for field in zip(*map(_fields, self._temperatures), strict=True))
            )
            values |= temperature_scalars(together)
            self.logger.record("temperature/student", together.student, exclude="stdout")
            self.logger.record("temperature/teacher", together.teacher, exclude="stdout")
        for name, value in values.items():
            self.logger.record(name, value)


class SelectionCallback(BaseCallback):
    """Keeps the running mean of the policy's weights that does best on validation data, the reference included."""

    def __init__(self, problem: Problem, decision: Decision, config: PolicyConfig) -> None:
        super().__init__()
        self.problem = problem
        self.decision = decision
        self.config = config
        self.update = 0
        self.kept = torch.zeros(0)
        self.kept_update = 0
        self.kept_potential = 0.0
        self.reference_potential = 0.0
        self._mean = torch.zeros(0)

    def _on_training_start(self) -> None:
        self._mean = policy_of(self).network.weights.detach().clone()
        self.kept = self._mean.clone()
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
        self._mean = weight * self._mean + (1 - weight) * policy_of(self).network.weights.detach()
        if self.update % self.config.validate_every and self.update != self.config.updates:
            return
        potential = self._potential(self._mean)
        self.logger.record("reward/validation_potential", potential)
        self.logger.record("reward/validation_gain", potential - self.reference_potential)
        if potential > self.kept_potential:
            self.kept, self.kept_update, self.kept_potential = self._mean.clone(), self.update, potential

    def _potential(self, weights: Tensor) -> float:
        rule = network_rule(policy_of(self).network, weights, self.decision)
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


def _fields(temperatures: Temperatures) -> tuple[Tensor, Tensor, Tensor]:
    return temperatures.student, temperatures.teacher, temperatures.weight


def policy_of(callback: BaseCallback) -> RunPolicy:
    """The policy that a callback's model trains."""
    policy = callback.model.policy
    assert isinstance(policy, RunPolicy)  # these callbacks belong to it
    return policy


def buffer_of(callback: BaseCallback) -> RunBuffer:
    """The buffer that a callback's model fills."""
    buffer: Any = callback.model.rollout_buffer  # type: ignore[attr-defined]
    assert isinstance(buffer, RunBuffer)
    return buffer
