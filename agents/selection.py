"""Which policy is kept: the one whose students do best on data that neither training nor a reported number sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from rltemp.agents.config import PolicyConfig
from rltemp.data.problem import Problem, predict
from rltemp.envs.episode import Decision
from rltemp.envs.played import ActionNetwork, NetworkRule
from rltemp.envs.rewards import POTENTIALS, bounded
from rltemp.envs.shares import Workers, stacks
from rltemp.envs.variety import Variety
from rltemp.kd.method import Objective
from rltemp.kd.names import lookup
from rltemp.loading import load_method
from rltemp.training.distill import Distillation
from rltemp.training.steps import Step, plain_step, train

FIRST_VALIDATION_SEED = 600_000
"""Students that a policy is selected on: neither those it is trained with nor those of a comparison."""

VALIDATED = "of the validation"
"""For messages: students that a policy is selected on."""

VALIDATION_TASKS = 32
"""Tasks of other data sets that a policy of a variety is selected on."""
BEATEN = "none", "fixed:4"
"""What a policy of a variety must not do worse than: no teacher, and plain distillation."""
UNITS = {"log_odds": 0.5, "log_likelihood": 0.1, "margin": 0.05, "accuracy": 0.05}
"""Of each metric, what is much on one task."""
MOST = 2.0
"""Units that a policy can gain or lose on one task."""


Worth = Callable[[ActionNetwork, Tensor], float]
"""From a network and its weights `[P]` to what they are worth."""


class StatefulCallback(BaseCallback):
    """A callback with attributes that go into a checkpoint and back."""

    kept_attributes: tuple[str, ...]
    """Their names."""

    def state(self) -> dict[str, Any]:
        """Their values."""
        return {name: getattr(self, name) for name in self.kept_attributes}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on with what `state` gave."""
        for name in self.kept_attributes:
            setattr(self, name, state[name])

    def _on_step(self) -> bool:
        return True


class SelectionCallback(StatefulCallback):
    """Keeps the running mean of the policy's weights that does best on validation data, the reference included.

    Args:
        trial: What a network under weights `[P]` is worth to students that nothing else sees: their mean potential.
        config: How the policy is trained.
        network: What the policy is without its noise.
        weights: Gives the network's present weights, flat `[P]`.
    """

    kept_attributes = (
        "update",
        "kept",
        "kept_update",
        "kept_potential",
        "reference_potential",
        "looked",
        "potential",
        "_mean",
    )

    def __init__(
        self,
        trial: Worth,
        config: PolicyConfig,
        network: ActionNetwork,
        weights: Callable[[], Tensor],
    ) -> None:
        super().__init__()
        self.trial = trial
        self.config = config
        self.network = network
        self.weights = weights
        self.update = 0
        self.kept = self._mean = torch.zeros(0)
        self.kept_update = 0
        self.kept_potential = self.reference_potential = 0.0
        self.looked, self.potential = 0, 0.0  # the update of the last evaluation, and what it found

    def keep_reference(self) -> None:
        """Keep the reference rule, whatever did best: for a policy that is not to be trusted."""
        self.kept, self.kept_update = torch.zeros_like(self.kept), 0
        self.kept_potential = self.reference_potential

    def _on_training_start(self) -> None:
        if self._mean.numel():
            return  # it goes on
        self._mean = self.weights().clone()
        # Weights of zero are the reference rule, and the only policy that is known not to be worse than it.
        self.kept = torch.zeros_like(self._mean)
        self.reference_potential = self.kept_potential = self._potential(self.kept)

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
        self.looked, self.potential = self.update, self._potential(self._mean)
        self.logger.record("reward/validation_potential", self.potential)
        self.logger.record("reward/validation_gain", self.potential - self.reference_potential)
        if self.potential > self.kept_potential:
            self.kept, self.kept_update, self.kept_potential = self._mean.clone(), self.update, self.potential

    def _potential(self, weights: Tensor) -> float:
        return self.trial(self.network, weights)


class Trial(Protocol):
    """What a network is worth to students that nothing else sees, on one task or several."""

    @property
    def students(self) -> int:
        """On each task."""
        ...

    def potentials(self, network: ActionNetwork, weights: Tensor, share: slice) -> list[Tensor]:
        """Train a share of the students under weights `[P]`; their potentials `[s]`, on each task."""
        ...


@dataclass(frozen=True)
class TaskTrial:
    """On one task: the students are measured on its validation split.

    Args:
        problem: The task, loaded.
        students: How many.
        decision: What an action means.
        step: How a step of theirs is taken.
    """

    problem: Problem
    students: int
    decision: Decision
    step: Step = plain_step

    def potentials(self, network: ActionNetwork, weights: Tensor, share: slice) -> list[Tensor]:
        """As a `Trial` has it."""
        split, found = self.problem.dataset.validation, list[Tensor]()
        rule = NetworkRule(network, weights, self.decision).to(self.problem.device)
        for stack in stacks(self.problem, share, self.students):
            run = Distillation(self.problem, _seeds(self.students)[stack])
            train(run, replace(self.decision.method, rule=rule), step=self.step)
            found.append(potentials(self.problem, predict(run.evaluated, self.problem, split), split.targets))
        return [torch.cat(found)]


class VarietyTrial:
    """On tasks drawn once from a variety: the students are measured on their probe samples.

    Args:
        variety: Of other tasks than those that a policy is trained on.
        students: How many train on each task.
        decision: What an action means.
        step: How a step of theirs is taken.
        tasks: How many are drawn.
    """

    def __init__(
        self,
        variety: Variety,
        students: int,
        decision: Decision,
        step: Step = plain_step,
        tasks: int = VALIDATION_TASKS,
    ) -> None:
        generator = np.random.default_rng(FIRST_VALIDATION_SEED)
        self.students, self.decision, self.step = students, decision, step
        self._drawn = [variety.draw(generator, students) for _ in range(tasks)]
        everyone = slice(None)
        # Trained once: to compile their steps would take longer.
        plain = [
            [values.mean() for values in self._trained(load_method(name), everyone, plain_step)] for name in BEATEN
        ]
        self._beaten = [torch.stack(one).amax() for one in zip(*plain, strict=True)]

    def potentials(self, network: ActionNetwork, weights: Tensor, share: slice) -> list[Tensor]:
        """As a `Trial` has it: by how much each is better than the best of `BEATEN`, in units of its metric.

        No task counts for more than `MOST` units: a policy is to do well on all.
        """
        method = replace(self.decision.method, rule=NetworkRule(network, weights, self.decision))
        units = [UNITS[given.problem.metric] for given in self._drawn]
        found = zip(self._trained(method, share, self.step), self._beaten, units, strict=True)
        return [((values - beaten) / unit).clamp(-MOST, MOST) for values, beaten, unit in found]

    def _trained(self, method: Objective, share: slice, step: Step) -> list[Tensor]:
        """The potentials of a share of the students under a method, on each task."""
        values = []
        for whole in self._drawn:
            given = whole.share(share)
            stack = train(given.run(_seeds(self.students)[share]), method, step=step).eval()
            with torch.no_grad():
                logits = stack(given.problem.dataset.batch(given.pool, given.probe).inputs)
            values.append(potentials(given.problem, logits, given.pool.known_labels[given.probe]))
        return values


def judged(trial: Trial, workers: Workers | None = None) -> Worth:
    """What a network is worth: the mean potential of a trial's students, which workers train where there are some."""
    if workers is not None:
        workers.give(VALIDATED, trial.potentials)

    def worth(network: ActionNetwork, weights: Tensor) -> float:
        if workers is None:
            found = [trial.potentials(network, weights, slice(None))]
        else:
            found = workers.share_out(VALIDATED, trial.students, network, weights)
        return float(np.mean([float(torch.cat(of_task).mean()) for of_task in zip(*found, strict=True)]))

    return worth


def _seeds(students: int) -> list[int]:
    return list(range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + students))


def potentials(problem: Problem, logits: Tensor, labels: Tensor) -> Tensor:
    """What each student's logits `[S, N, C]` are worth by the task's metric, `[S]`; no less than the worst."""
    return bounded(lookup(POTENTIALS, problem.metric, "metric")(logits, labels), problem.metric)
