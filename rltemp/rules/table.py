"""Closed-form and learned temperature rules; `RULES` at the foot names them.

A rule maps `Signals` to `Temperatures`. To add one: write a factory whose parameters are the rule's options, put it
into `RULES`, and give it one hand-worked test (docs/add-a-rule.md). The lines `Formula:` to `Guard:` of its docstring
are what `rltemp rules` shows and what the contract in tests/rules/test_rules.py holds it to.

A rule that looks at each sample alone says so by `@per_sample`: then a mask costs no wait for the device.

Rules do not detach: where the published code lets gradient through the student's temperature, so does the rule;
whoever wants constants calls `Temperatures.detach()`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import positive
from rltemp.kd.divergences import log_softmax
from rltemp.kd.rowwise import rowwise
from rltemp.kd.signals import TAKES_MASKS, Signals, TemperatureRule, Temperatures, full_precision, per_sample, scatter
from rltemp.rules.curriculum import LearnedRule, ctkd, ctkd_instance
from rltemp.rules.difficulty import cswt, energy, idts, random
from rltemp.rules.schedules import annealing, cosine_schedule, linear_schedule, step_schedule
from rltemp.rules.sharpness import dtkd, dtkd_exact, dtkd_logsumexp
from rltemp.rules.standard_deviation import atkd, lskd, normkd


def fixed(temperature: float = 4.0) -> TemperatureRule:
    """Give every sample the same temperature for both networks, and the weight T^2 that keeps gradients comparable.

    Formula: T_t = T_s = T, weight T^2.
    Source: Hinton, Vinyals and Dean (2015), https://arxiv.org/abs/1503.02531; CIFAR-100 recipes use T = 4.
    Labels: no
    Bounds: 4 to 4
    Invariant: shift, scale
    Guard: none.

    Args:
        temperature: T > 0.
    """
    value = positive(temperature, "fixed", "temperature")

    @per_sample
    def rule(signals: Signals) -> Temperatures:
        same = signals.full(value)
        return Temperatures(student=same, teacher=same, weight=signals.full(value * value))

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


def masked(rule: TemperatureRule) -> TemperatureRule:
    """Return the rule made to look at the samples of a mask alone; T = 1 and weight 0 stand where there is none.

    A rule that does not say that it takes masks may compare samples: those of the mask are gathered for it, whose
    number the host has to wait for.
    """
    if isinstance(rule, LearnedRule):
        return rule  # does so itself, and must stay the module whose parameters an optimizer has

    def over_samples(signals: Signals) -> Temperatures:
        if (mask := signals.mask) is None:
            return rule(signals)
        if getattr(rule, TAKES_MASKS, False):
            return rule(signals.made_safe()).within(mask)
        found = rule(signals.samples())
        student, teacher = (scatter(value, mask, 1.0) for value in (found.student, found.teacher))
        return Temperatures(student, teacher, scatter(found.weight, mask, 0.0))

    return per_sample(over_samples)


def _power(gamma: float, owner: str) -> float:
    value = positive(gamma, owner, "gamma")
    if value > 1:
        raise BadInputError(f"{owner}: gamma must be above 0 and at most 1; got {gamma}")
    return value


RULES: dict[str, Callable[..., TemperatureRule]] = {
    "fixed": fixed,
    "dtkd": dtkd,
    "dtkd_logsumexp": dtkd_logsumexp,
    "dtkd_exact": dtkd_exact,
    "ttm": ttm,
    "wttm": wttm,
    "atkd": atkd,
    "normkd": normkd,
    "lskd": lskd,
    "ctkd": ctkd,
    "ctkd_instance": ctkd_instance,
    "idts": idts,
    "energy": energy,
    "cswt": cswt,
    "annealing": annealing,
    "linear_schedule": linear_schedule,
    "cosine_schedule": cosine_schedule,
    "step_schedule": step_schedule,
    "random": random,
}
