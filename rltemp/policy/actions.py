"""From an action to temperatures: how a policy moves around its reference rule.

The environment, the exported policy and its gradient all use `ActionScale.apply`, so they cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.signals import Signals
from rltemp.kd.temperatures import Temperatures
from rltemp.policy.gradient_matching import matching_factor


@dataclass(frozen=True)
class ActionScale:
    """T = T_ref * ratio^a for a in [-1, 1], for the student (first number) and the teacher (second), within bounds.

    An action of zero is the reference rule exactly, to the last bit, unless it is `balanced`. Where the reference lies
    outside the bounds, the bounds reach out to it, so that this holds there too.

    Args:
        ratio: How far an action of 1 moves a temperature, as a factor above 1.
        minimum: Lowest temperature, > 0.
        maximum: Highest temperature.
        weight_ratio: How far an action of 1 moves a sample's weight, as a factor: a third number of the action. At 1
            there is none.
        balanced: Match gradients: scale the weights of a batch so that its mean gradient norm is that of T = 4 for all,
            whatever the temperatures (`rltemp.policy.gradient_matching`); the third number of the action comes on top.

    >>> from rltemp.rules import fixed
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

    def apply(self, signals: Signals, reference: Temperatures, action: Tensor) -> Temperatures:
        """Scale the reference's temperatures, and its weight by both factors (so T_s T_t stays T_s T_t).

        Args:
            signals: What the temperatures are for; gradient matching needs the logits.
            reference: `[...]` each.
            action: `[..., 2]` or `[..., 3]`, student, teacher, weight; clipped to [-1, 1].

        Returns:
            Temperatures `[...]`; gradient flows to the action and to the reference, none through the matching.
        """
        if tuple(action.shape) != (needed := (*reference.student.shape, self.size)):
            raise BadInputError(f"actions have shape {tuple(action.shape)}, needed: {needed}")
        steps = action.clamp(-1.0, 1.0)
        both = torch.stack([reference.student, reference.teacher], -1)
        factor = (steps[..., :2] * math.log(self.ratio)).exp()
        moved = both * factor
        bounded = moved.clamp(both.clamp(max=self.minimum), both.clamp(min=self.maximum))
        # A quotient of temperatures would round the reference's gradient.
        factor = torch.where(bounded == moved, factor, bounded / both)
        student, teacher = bounded.unbind(-1)
        weight = reference.weight * factor[..., 0] * factor[..., 1]
        if self.balanced:
            weight = weight * matching_factor(signals, Temperatures(student, teacher, weight))
        if self.size == 3:
            weight = weight * (steps[..., 2] * math.log(self.weight_ratio)).exp()
        return Temperatures(student, teacher, weight, reference.guarded)
