"""From an action to temperatures: how a policy moves around its reference rule.

The environment, the exported policy and its gradient all use `ActionScale.apply`, so they cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.types import Temperatures


@dataclass(frozen=True)
class ActionScale:
    """T = T_ref * ratio^a for a in [-1, 1], for the student (first number) and the teacher (second), within bounds.

    An action of zero is the reference rule exactly, to the last bit. Where the reference itself lies outside the
    bounds, the bounds reach out to it, so that this holds there too.

    Args:
        ratio: How far an action of 1 moves a temperature, as a factor above 1.
        minimum: Lowest temperature, > 0.
        maximum: Highest temperature.

    >>> from rltemp.rules import fixed
    >>> from rltemp import Signals
    >>> reference = fixed(4.0)(Signals(torch.zeros(1, 3), torch.zeros(1, 3)))
    >>> moved = ActionScale(ratio=2.0).apply(reference, torch.tensor([[-1.0, 1.0]]))
    >>> moved.student, moved.teacher, moved.weight
    (tensor([2.]), tensor([8.]), tensor([16.]))
    """

    ratio: float = 5.0
    minimum: float = 0.5
    maximum: float = 20.0

    def __post_init__(self) -> None:
        if not (1 < self.ratio < math.inf and 0 < self.minimum < self.maximum < math.inf):
            raise BadInputError(
                "an action's ratio must be above 1 and 0 < minimum < maximum; "
                f"got ratio {self.ratio}, minimum {self.minimum}, maximum {self.maximum}"
            )

    def apply(self, reference: Temperatures, action: Tensor) -> Temperatures:
        """Scale the reference's temperatures, and its weight by both factors (so T_s T_t stays T_s T_t).

        Args:
            reference: `[...]` each.
            action: `[..., 2]`, student then teacher; clipped to [-1, 1].

        Returns:
            Temperatures `[...]`; gradient flows to the action and to the reference.
        """
        if tuple(action.shape) != (*reference.student.shape, 2):
            raise BadInputError(f"actions have shape {tuple(action.shape)}, needed: {(*reference.student.shape, 2)}")
        factors = torch.exp(action.clamp(-1.0, 1.0) * math.log(self.ratio))
        student, student_factor = self._bounded(reference.student, factors[..., 0])
        teacher, teacher_factor = self._bounded(reference.teacher, factors[..., 1])
        weight = reference.weight * student_factor * teacher_factor
        return Temperatures(student=student, teacher=teacher, weight=weight, guarded=reference.guarded)

    def _bounded(self, reference: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The temperature, and its factor; a quotient of temperatures would round the reference's gradient."""
        low, high = reference.clamp(max=self.minimum), reference.clamp(min=self.maximum)
        moved = reference * factor
        bounded = torch.minimum(torch.maximum(moved, low), high)
        inside = bounded == moved
        return torch.where(inside, moved, bounded), torch.where(inside, factor, bounded / reference)
