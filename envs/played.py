"""A run that is played: trained from its first step to its last under one small network, look by look.

The action of a sample depends on its features and on the weights that were drawn for its student, and on nothing else.
So a run needs neither an environment's steps nor observations: it is trained under a method whose rule is the network,
as a comparison trains its students. What comes out is a function of the run and the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rltemp.envs.episode import Decision, Look
from rltemp.envs.finite import explain
from rltemp.envs.probe import ProbeEvaluator
from rltemp.errors import BadInputError
from rltemp.kd.method import Method
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.kd.temperatures import Temperatures
from rltemp.policy.features import featurize
from rltemp.training.distill import Distillation
from rltemp.training.steps import Step, Taken, plain_step, shielded

Samples = TypeVar("Samples", Signals, Temperatures)


class ActionNetwork(Protocol):
    """A network from normalised observations to actions, whose weights it is given.

    Attributes:
        mean: Of the observations, `[F]`.
        std: Likewise.
    """

    mean: Tensor
    std: Tensor

    @property
    def structure(self) -> Hashable:
        """All that its actions depend on beside the observations, these two and the weights."""
        ...

    def __call__(self, observation: Tensor, weights: Tensor) -> Tensor:
        """Actions `[S, B, A]` for observations `[S, B, F]` under weights `[S, P]`."""
        ...

    def normalised_by(self, mean: Tensor, std: Tensor) -> ActionNetwork:
        """The same network with other statistics of the observations."""
        ...


@dataclass(eq=False, repr=False)
class NetworkRule(TemperatureRule):
    """The temperature rule of a network under given weights, for a stack `[S, B]`.

    Args:
        network: The policy's.
        weights: `[P]`, or `[S, P]`, each student's own.
        decision: What an action means.
    """

    network: ActionNetwork
    weights: Tensor
    decision: Decision

    per_sample = True

    def __post_init__(self) -> None:
        reference, names = self.decision.method.rule, self.decision.features
        self.pure = reference.pure and not reference.tensors
        self.uses_progress = "progress" in names or reference.uses_progress
        self.uses_labels = reference.uses_labels

    def answer(self, signals: Signals) -> Temperatures:
        """Temperatures `[S, B]`, constants of the graph but for what the reference lets through."""
        with torch.no_grad():
            observation = featurize(signals, self.decision.features)
            action = self.network(observation, self.weights.expand(len(observation), -1))
        return self.decision.temperatures(signals, action)

    @property
    def tensors(self) -> list[Tensor]:
        """The weights, and what the observations are normalised by."""
        return [self.weights, self.network.mean, self.network.std]

    def holding(self, tensors: Sequence[Tensor]) -> NetworkRule:
        """The same rule with others."""
        weights, mean, std = tensors
        return replace(self, network=self.network.normalised_by(mean, std), weights=weights)

    @property
    def structure(self) -> Hashable:
        """What the network is, and what an action means: the same rule comes with every run anew."""
        decision = self.decision
        return type(self), self.network.structure, decision.features, decision.scale, decision.method.rule.structure

    def to(self, device: torch.device) -> NetworkRule:
        """The same rule on a device."""
        return self.holding([tensor.to(device) for tensor in self.tensors])


@dataclass(frozen=True)
class Stretch:
    """The steps of a played run from one look at the probe to the next.

    Args:
        steps: How many; where students have several tasks, of the first.
        reward: The change of each student's potential, `[S]`.
        potential: At its end, `[S]`.
        lost: Which students' numbers have stopped being finite so far, `[S]`: they stay as they are, and have the
            worst potential.
        looks: Its last step, on each task that the students have.
    """

    steps: int
    reward: NDArray[np.float32]
    potential: NDArray[np.float32]
    lost: NDArray[np.bool_]
    looks: Mapping[int, Look]


def play(
    run: Distillation,
    decision: Decision,
    probe: Tensor,
    ends: Collection[int],
    network: ActionNetwork,
    weights: Tensor,
    step: Step = plain_step,
    task: int = 0,
) -> Iterator[Stretch]:
    """Play a fresh run of a stack to its end.

    Args:
        run: Of S students.
        decision: What actions mean.
        probe: Samples that rewards are measured on: positions in the run's own split, `[S, P]`.
        ends: Steps after which the probe is looked at, beside the last.
        network: Of a `NetworkRule`.
        weights: Of each student, `[S, P]`.
        step: How a step is taken.
        task: The number of the run's task, under which its looks stand.

    Raises:
        TrainingDivergedError: Where a feature, a teacher logit or the potential is not finite though the student's own
            numbers are sound, naming it and the sample.
    """
    decision = replace(decision, method=run.attach(decision.method))
    rule = NetworkRule(network, weights, decision).to(run.problem.device)
    method, measuring, begun = replace(decision.method, rule=rule), ProbeEvaluator(run, probe), 0
    lost = torch.zeros(len(weights), dtype=torch.bool, device=run.problem.device)
    measured = measuring.measure(lost)
    while not run.done:
        taken = _taken(run, method, decision, step)
        if run.step in ends or run.done:
            before, measured = measured, measuring.measure(measured.lost)
            if (measured.seen_lost & ~before.seen_lost).any():
                for number in range(begun, run.step):
                    _explain(run, decision, number)
            potential, gone = measured.seen_potential, measured.seen_lost
            looks = {task: _look(taken, rule)}
            yield Stretch(run.step - begun, potential - before.seen_potential, potential, gone, looks)
            begun = run.step


def joined(shares: Sequence[Stretch]) -> Stretch:
    """One stretch of all students from those of each share of them."""
    looks: dict[int, list[Look]] = {}
    for share in shares:
        for task, look in share.looks.items():
            looks.setdefault(task, []).append(look)
    reward, potential, lost = (
        np.concatenate([getattr(share, name) for share in shares]) for name in ("reward", "potential", "lost")
    )
    return Stretch(shares[0].steps, reward, potential, lost, {task: _one(those) for task, those in looks.items()})


def _one(looks: Sequence[Look]) -> Look:
    """Looks at all students of a task from those at each share of them."""
    signals, temperatures = [look.signals for look in looks], [look.temperatures for look in looks]
    return Look(_together(signals), _together(temperatures), torch.cat([look.loss for look in looks]))


def _taken(run: Distillation, method: Method, decision: Decision, step: Step) -> Taken:
    try:
        return step(run, method)
    except BadInputError:  # of temperatures, which come from features
        _explain(run, decision, run.step)
        raise


def _explain(run: Distillation, decision: Decision, step: int) -> None:
    """Say what of a step is broken, as far as it is no student's fault."""
    # Given parameters run on copies of the buffers: the look leaves no trace in a batch norm.
    seen = shielded(run.signals_at(step, dict(run.student.named_parameters()))).made_safe()
    with torch.no_grad():
        explain(featurize(seen, decision.features), seen, decision.features, step)


def _look(taken: Taken, rule: NetworkRule) -> Look:
    signals = replace(taken.signals, student_logits=taken.signals.student_logits.detach())
    # A step in which no divergence counts asks for no temperatures.
    temperatures = rule(signals) if taken.temperatures is None else taken.temperatures.detach()
    return Look(signals, temperatures, taken.loss.detach())


def _together(parts: Sequence[Samples]) -> Samples:
    """The signals or the temperatures of all students from those of each share."""
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(parts[0])}
    whole: dict[str, Any] = {
        name: torch.cat(values) if isinstance(values[0], Tensor) else values[0] for name, values in columns.items()
    }
    return type(parts[0])(**whole)
