"""Rules of the progress of the run alone: linear, cosine, step, and Annealing-KD's."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import fraction, positive, whole
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import TemperatureRule, over_time
from rltemp.kd.temperatures import Temperatures

Progress = float | Tensor
"""A number, or a tensor of one that is never read."""


def linear_schedule(start: float = 8.0, end: float = 1.0) -> TemperatureRule:
    """Move one temperature for all samples in a straight line over the run.

    Formula: T = start + (end - start) progress, weight T^2.
    Source: a control.
    Labels: no
    Bounds: 1 to 8
    Invariant: shift, scale
    Guard: none.

    Args:
        start: T at the first step, > 0.
        end: T at the end, > 0.
    """
    first, last = positive(start, "linear_schedule", "start"), positive(end, "linear_schedule", "end")
    return _scheduled(lambda progress: first + (last - first) * progress)


def cosine_schedule(start: float = 8.0, end: float = 1.0) -> TemperatureRule:
    """Move one temperature for all samples along half a cosine over the run.

    Formula: T = end + (start - end) (1 + cos(pi progress)) / 2, weight T^2.
    Source: a control.
    Labels: no
    Bounds: 1 to 8
    Invariant: shift, scale
    Guard: none.

    Args: as `linear_schedule`'s.
    """
    first, last = positive(start, "cosine_schedule", "start"), positive(end, "cosine_schedule", "end")
    return _scheduled(lambda progress: last + (first - last) * (1 + _cosine(math.pi * progress)) / 2)


def step_schedule(start: float = 8.0, end: float = 1.0, levels: int = 4) -> TemperatureRule:
    """Give all samples one temperature that falls in equal factors, each level held equally long.

    Formula: T = start (end / start)^(i / (levels - 1)) on the i-th of `levels` equal parts of the run, weight T^2.
    Source: a control.
    Labels: no
    Bounds: 1 to 8
    Invariant: shift, scale
    Guard: none.

    Args:
        start: T of the first level, > 0.
        end: T of the last level, > 0.
        levels: 2 or more.
    """
    first, last = positive(start, "step_schedule", "start"), positive(end, "step_schedule", "end")
    whole(levels, 2, "step_schedule", "levels")
    return _scheduled(lambda progress: first * (last / first) ** (_part(progress, levels) / (levels - 1)))


def annealing(maximum: int = 10, until: float = 10 / 13) -> TemperatureRule:
    """Soften the teacher's logits less and less, the student's not at all: Annealing-KD's first phase.

    Its divergence is the squared difference of logits (`mse`), its second phase trains on the labels alone; the
    method `annealing` has both.

    Formula: T_t = maximum / t with t = 1, 2, ..., maximum in equal parts of the run's first `until`; T_s = 1, weight 1.
    Source: Jafari et al. (2021), https://arxiv.org/abs/2104.07163; constants of a re-implementation.
    Labels: no
    Bounds: 1 to 10
    Invariant: shift, scale
    Guard: none.

    Args:
        maximum: T_t at the first step, a whole number of 1 or more.
        until: Fraction of the run after which T_t is 1, above 0, to 1.
    """
    whole(maximum, 1, "annealing", "maximum")
    if fraction(until, "annealing", "until") == 0:
        raise BadInputError("annealing: until must be above 0; got 0")

    @over_time
    def rule(signals: Signals) -> Temperatures:
        stage = _part(signals.progress / until, maximum) + 1
        one = signals.full(1.0)
        return Temperatures(student=one, teacher=signals.full(maximum / stage), weight=one)

    return rule


def _scheduled(temperature: Callable[[Progress], Progress]) -> TemperatureRule:
    @over_time
    def rule(signals: Signals) -> Temperatures:
        value = temperature(signals.progress)
        same = signals.full(value)
        return Temperatures(student=same, teacher=same, weight=signals.full(value * value))

    return rule


def _cosine(angle: Progress) -> Progress:
    return angle.cos() if isinstance(angle, Tensor) else math.cos(angle)


def _part(progress: Progress, parts: int) -> Progress:
    """Which of so many equal parts of the run it is, from 0; the last one after its end, too."""
    if isinstance(progress, Tensor):
        return (progress * parts).floor().clamp(max=parts - 1)
    return min(int(progress * parts), parts - 1)
