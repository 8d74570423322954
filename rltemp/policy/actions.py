"""From an action to temperatures: how a policy moves around its reference rule.

The environment, the exported policy and its gradient all use `ActionScale.apply`, so they cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.gradient_norm import balance, small_balance
from rltemp.kd.signals import Signals, Temperatures
from rltemp.policy.arrays import NUMPY, TORCH, Arrays, arrays_for
from rltemp.policy.features import Statistics, small_statistics


@dataclass(frozen=True)
class ActionScale:
    """T = T_ref * ratio^a for a in [-1, 1], for the student (first number) and the teacher (second), within bounds.

    An action of zero is the reference rule exactly, to the last bit, unless `balanced` makes it pull as hard as plain
    distillation does. Where the reference itself lies outside the bounds, the bounds reach out to it, so that this
    holds there too.

    Args:
        ratio: How far an action of 1 moves a temperature, as a factor above 1.
        minimum: Lowest temperature, > 0.
        maximum: Highest temperature.
        weight_ratio: How far an action of 1 moves a sample's weight, as a factor: a third number of the action. At 1
            there is none.
        balanced: Scale the weights of a batch so that its gradient is as long as at T = 4 for all, whatever the
            temperatures (`rltemp.kd.gradient_norm.balance`); the third number of the action comes on top.

    >>> from rltemp.rules.table import fixed
    >>> from rltemp import Signals
    >>> signals = Signals(torch.zeros(1, 3), torch.zeros(1, 3))
    >>> moved = ActionScale(ratio=2.0).apply(signals, fixed(4.0)(signals), torch.tensor([[-1.0, 1.0]]))
    >>> moved.student, moved.teacher, moved.weight
    (tensor([2.]), tensor([8.]), tensor([16.]))
    """

    ratio: float = 5.0
    minimum: float = 0.5
    maximum: float = 20.0
    weight_ratio: float = 1.0
    balanced: bool = False

    def __post_init__(self) -> None:
        # The manifest of a policy file has the same bounds: what cannot be exported is not trained.
        if not 1 <= self.weight_ratio <= 1000:
            raise BadInputError(f"an action's weight_ratio must be at least 1, at most 1000; got {self.weight_ratio}")
        if not (1 < self.ratio <= 1000 and 0.01 <= self.minimum < self.maximum <= 1000):
            raise BadInputError(
                "an action's ratio must be above 1, at most 1000, and 0.01 <= minimum < maximum <= 1000; "
                f"got ratio {self.ratio}, minimum {self.minimum}, maximum {self.maximum}"
            )

    @property
    def size(self) -> int:
        """How many numbers an action has: student, teacher and, where there is one, weight."""
        return 3 if self.weight_ratio > 1 else 2

    def apply(
        self, signals: Signals, reference: Temperatures, action: Tensor, small: Statistics | None = None
    ) -> Temperatures:
        """Scale the reference's temperatures, and its weight by both factors (so T_s T_t stays T_s T_t).

        Args:
            signals: What the temperatures are for; a balance is struck on its logits.
            reference: `[...]` each.
            action: `[..., 2]` or `[..., 3]`, student, teacher, weight; clipped to [-1, 1].
            small: `small_statistics(signals)`, where the features were computed from them.

        Returns:
            Temperatures `[...]`; gradient flows to the action and to the reference, none through the balance.
        """
        if tuple(action.shape) != (needed := (*reference.student.shape, self.size)):
            raise BadInputError(f"actions have shape {tuple(action.shape)}, needed: {needed}")
        student, teacher, weight = reference.student, reference.teacher, reference.weight
        if self._is_small(signals, student, teacher, weight, action):
            with np.errstate(all="ignore"):  # as torch does
                arrays = [each.detach().numpy() for each in (student, teacher, weight, action)]
                student, teacher, weight = map(torch.from_numpy, self._small(signals, small, *arrays))
            return Temperatures(student, teacher, weight, reference.guarded)
        (student, teacher), weight = self._moved(TORCH, student, teacher, weight, action)
        if self.balanced:
            weight = weight * balance(signals, Temperatures(student, teacher, weight))
        return Temperatures(student, teacher, self._weighted(TORCH, weight, action), reference.guarded)

    @staticmethod
    def _is_small(signals: Signals, *values: Tensor) -> bool:
        """Tell whether NumPy is the faster one, and may compute it: no graph goes through these values."""
        if signals.mask is not None or signals.stacked:
            return False
        if torch.is_grad_enabled() and any(value.requires_grad for value in values):
            return False
        return arrays_for(signals.student_logits, signals.teacher_logits, *values) is NUMPY

    def _small(
        self, signals: Signals, small: Statistics | None, student: Any, teacher: Any, weight: Any, action: Any
    ) -> tuple[Any, Any, Any]:
        temperatures, weight = self._moved(NUMPY, student, teacher, weight, action)
        if self.balanced:
            small = small or small_statistics(replace(signals, labels=None))  # labels do not matter to it
            assert small is not None  # `_is_small` asked the same
            weight = weight * np.float32(small_balance(small, temperatures, weight))
        return temperatures[0], temperatures[1], self._weighted(NUMPY, weight, action)

    def _moved(self, arrays: Arrays, student: Any, teacher: Any, weight: Any, action: Any) -> tuple[Any, Any]:
        """Both temperatures, `[2, ...]`, and the weight that keeps T_s T_t what it is."""
        steps = arrays.stack([action[..., 0], action[..., 1]])
        factors = arrays.exp(arrays.clip(steps, -1.0, 1.0) * math.log(self.ratio))
        temperatures, factors = self._bounded(arrays, arrays.stack([student, teacher]), factors)
        return temperatures, weight * factors[0] * factors[1]

    def _bounded(self, arrays: Arrays, reference: Any, factor: Any) -> tuple[Any, Any]:
        """The temperatures, and their factors; a quotient of temperatures would round the reference's gradient."""
        moved = reference * factor
        low, high = arrays.clip(reference, -math.inf, self.minimum), arrays.clip(reference, self.maximum, math.inf)
        bounded = arrays.clip(moved, low, high)
        return bounded, arrays.where(bounded == moved, factor, bounded / reference)

    def _weighted(self, arrays: Arrays, weight: Any, action: Any) -> Any:
        """The weight under the third number of the action, where there is one."""
        if self.size < 3:
            return weight
        return weight * arrays.exp(arrays.clip(action[..., 2], -1.0, 1.0) * math.log(self.weight_ratio))
