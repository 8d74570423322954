"""Keeps some of the temperatures that a policy gives during a run, for the picture of a comparison."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rltemp.experiments.cached_result import MOST_POINTS, StoredTrace
from rltemp.kd.method import AnyObjective, Method
from rltemp.kd.signals import Signals, Temperatures
from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.policy.features import featurize
from rltemp.policy.rule import Policy

TRACE_POINTS = MOST_POINTS


class Recorder(TemperatureRule):
    """A rule that answers as its policy does and remembers a part of what it answered.

    Args:
        policy: The rule.
        steps: How many steps the run has; about `TRACE_POINTS` samples of all of them are kept.
    """

    def __init__(self, policy: Policy, steps: int) -> None:
        self.policy = policy
        self._rule: TemperatureRule = policy
        self.per_step = max(1, TRACE_POINTS // steps)
        self._generator = torch.Generator().manual_seed(0)
        self._kept: list[Tensor] = []
        self._references: list[float] = []

    def watch(self, method: AnyObjective) -> AnyObjective:
        """The same method, whose temperatures are kept as they are given; others may watch its rule too."""
        if not isinstance(method, Method):
            return method
        self._rule = method.rule
        return replace(method, rule=self)

    def answer(self, signals: Signals) -> Temperatures:
        """What the policy answers."""
        temperatures = self._rule(signals)
        self._keep(signals, temperatures.detach())
        return temperatures

    def trace(self) -> StoredTrace:
        """What was kept of a run; of its first step at least."""
        rows = torch.cat(self._kept)
        thinned = rows[:: -(-len(rows) // TRACE_POINTS)].float()  # a run of more steps than points keeps too many
        return StoredTrace.pack(thinned.T.numpy(), float(np.mean(self._references)))

    @torch.no_grad()
    def _keep(self, signals: Signals, temperatures: Temperatures) -> None:
        count = signals.shape.numel()
        drawn = torch.randint(count, (min(self.per_step, count),), generator=self._generator)
        drawn = drawn.to(temperatures.teacher.device)
        margin = featurize(signals, ["teacher_margin"]).flatten()[drawn] + 1  # the feature is the margin less one
        student, teacher = temperatures.student.flatten()[drawn], temperatures.teacher.flatten()[drawn]
        progress = torch.full_like(student, float(signals.progress))
        self._kept.append(torch.stack([progress, margin, student, teacher], -1).cpu())
        self._references.append(float(self.policy.reference.rule(signals).teacher.mean()))
