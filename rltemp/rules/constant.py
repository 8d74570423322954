"""Rules with the same temperatures for all samples: plain distillation's, TTM and WTTM."""

from __future__ import annotations

from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import positive
from rltemp.kd.divergences import log_softmax
from rltemp.kd.rowwise import rowwise
from rltemp.kd.signals import Signals, full_precision
from rltemp.kd.temperature_rule import TemperatureRule, per_sample
from rltemp.kd.temperatures import Temperatures


def fixed(temperature: float = 4.0, teacher: float | None = None) -> TemperatureRule:
    """Give every sample the same temperatures, and the weight T_s T_t that keeps gradients comparable.

    Formula: T_t = T_s = T, weight T^2; or a T_t of its own, weight T_s T_t.
    Source: Hinton, Vinyals and Dean (2015), https://arxiv.org/abs/1503.02531; CIFAR-100 recipes use T = 4.
    Labels: no
    Bounds: 4 to 4
    Invariant: shift, scale
    Guard: none.

    Args:
        temperature: T > 0, of both networks.
        teacher: T_t > 0, where the teacher's is another.
    """
    student = positive(temperature, "fixed", "temperature")
    other = student if teacher is None else positive(teacher, "fixed", "teacher")

    @per_sample
    def rule(signals: Signals) -> Temperatures:
        return Temperatures(signals.full(student), signals.full(other), signals.full(student * other))

    return rule


def ttm(gamma: float = 0.25) -> TemperatureRule:
    """Soften the teacher alone: the student learns its power-transformed distribution at T = 1.

    Formula: T_t = 1 / gamma, T_s = 1, weight 1.
    Source: Zheng and Yang (2024), https://arxiv.org/abs/2402.11148.
    Labels: no
    Bounds: 1 to 4
    Invariant: shift, scale
    Guard: none.

    Args:
        gamma: The power, above 0, to 1; 0.1 to 0.4 in the paper, tuned by pair.
    """
    value = _power(gamma, "ttm")

    @per_sample
    def rule(signals: Signals) -> Temperatures:
        one = signals.full(1.0)
        return Temperatures(student=one, teacher=signals.full(1 / value), weight=one)

    return rule


def wttm(gamma: float = 0.25) -> TemperatureRule:
    """Soften the teacher alone, and weigh a sample by how uniform the teacher is on it.

    Formula: T_t = 1 / gamma, T_s = 1, weight U = sum_k p_k^gamma, p the teacher's distribution at T = 1; U is 1 where
    p is one-hot, C^(1 - gamma) where it is uniform.
    Source: Zheng and Yang (2024), https://arxiv.org/abs/2402.11148.
    Labels: no
    Bounds: 1 to 4
    Invariant: shift
    Guard: none; U is formed from log-probabilities.

    Args:
        gamma: The power, above 0, to 1; 0.1 to 0.8 in the paper, tuned by pair.
    """
    value = _power(gamma, "wttm")

    def uniformity(logits: Tensor) -> Tensor:
        return (value * log_softmax(full_precision(logits))).exp().sum(-1)  # no power is above 1

    @per_sample
    def rule(signals: Signals) -> Temperatures:
        weight = rowwise(uniformity, signals.teacher_logits)
        return Temperatures(student=signals.full(1.0), teacher=signals.full(1 / value), weight=weight)

    return rule


def _power(gamma: float, owner: str) -> float:
    value = positive(gamma, owner, "gamma")
    if value > 1:
        raise BadInputError(f"{owner}: gamma must be above 0 and at most 1; got {gamma}")
    return value
