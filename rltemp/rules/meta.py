"""MKD: temperatures that follow the probe's loss, one step of the student ahead.

The rule holds both temperatures; `rltemp.training.steps` moves them. In a loop of your own they stay where they
begin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import below, positive, whole
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import TemperatureRule
from rltemp.kd.temperatures import Temperatures
from rltemp.rules.curriculum import Learned


class Mkd(Learned, TemperatureRule):
    """Two temperatures for all samples of a student; see `mkd` for the options.

    Attributes:
        theta: The student's and the teacher's place in the range, as log-odds, `[2]`, or `[S, 2]` of a stack.
        live: Whether answers have the graph of `theta`, as a look ahead needs them.
    """

    per_sample = checked = pure = True
    theta: Tensor

    def __init__(self, initial: float, minimum: float, maximum: float, every: int, speed: float) -> None:
        super().__init__()
        self.low, self.high = positive(minimum, "mkd", "minimum"), positive(maximum, "mkd", "maximum")
        below(self.low, self.high, "mkd")
        if not self.low < positive(initial, "mkd", "initial") < self.high:
            raise BadInputError(f"mkd: initial must be between minimum and maximum; got {initial}")
        self.start = math.log((initial - self.low) / (self.high - initial))
        self.every, self.speed = whole(every, 1, "mkd", "every"), positive(speed, "mkd", "speed")
        self.live = False
        self.register_buffer("theta", torch.full((2,), self.start))

    def initialise(self, num_classes: int, seeds: int | Sequence[int]) -> None:
        """Put both temperatures where they begin, for each student."""
        lead = () if isinstance(seeds, int) else (len(seeds),)
        self.theta = torch.full((*lead, 2), self.start)

    forward = TemperatureRule.__call__

    def answer(self, signals: Signals) -> Temperatures:
        """Temperatures `[...]`, constants of the graph but in a look ahead."""
        theta = self.theta if self.live else self.theta.detach()
        both = torch.sigmoid(theta.to(signals.dtype)).mul(self.high - self.low).add(self.low)
        trailing = [1] * (len(signals.shape) - theta.dim() + 1)
        student, teacher = (each.reshape([*each.shape, *trailing]).expand(signals.shape) for each in both.unbind(-1))
        return Temperatures(student, teacher, student * teacher)


def mkd(
    initial: float = 4.0, minimum: float = 1.0, maximum: float = 10.0, every: int = 5, speed: float = 0.05
) -> TemperatureRule:
    """Move both networks' temperatures so that the student's next step lowers its loss on the probe.

    Only the abstract of the source was read: range, pace and the step of a fixed size are ours. The probe trains the
    temperatures then, and no longer is data that nothing was trained on.

    Formula: T = minimum + (maximum - minimum) sigmoid(theta), one theta for each network, weight T_t T_s; every
    `every` steps theta moves by `speed` against the sign of d CE_probe(w - rate dL/dw) / d theta.
    Source: inferred from the abstract of Liu et al. (2022), https://arxiv.org/abs/2202.07940 (MKD).
    Labels: no
    Bounds: 1 to 10
    Invariant: shift, scale
    Guard: where that derivative is 0 or not finite, theta stays.

    Args:
        initial: Both temperatures at the start, between the bounds.
        minimum: Lowest T, > 0.
        maximum: Highest T.
        every: Steps from one look ahead to the next, 1 or more.
        speed: Of theta, for each look, > 0.
    """
    return Mkd(initial, minimum, maximum, every, speed)
