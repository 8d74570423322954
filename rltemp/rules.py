"""Closed-form temperature rules; `RULES` at the foot names them.

A rule maps `Signals` to `Temperatures`. To add one: write a factory whose parameters are the rule's options, put it
into `RULES`, and give it one hand-worked test. Rules do not detach: where the published code lets gradient through the
student's temperature, so does the rule; whoever wants constants calls `Temperatures.detach()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from rltemp.errors import BadInputError
from rltemp.types import Signals, TemperatureRule, Temperatures


def fixed(temperature: float = 4.0) -> TemperatureRule:
    """Give every sample the same temperature for both networks, and the weight T^2 that keeps gradients comparable.

    Hinton, Vinyals and Dean (2015), https://arxiv.org/abs/1503.02531, section 2. CIFAR-100 recipes use T = 4.

    Args:
        temperature: T > 0.
    """
    value = positive(temperature, "fixed", "temperature")

    def rule(signals: Signals) -> Temperatures:
        same = signals.full(value)
        return Temperatures(student=same, teacher=same, weight=signals.full(value * value))

    return rule


def dtkd(reference: float = 4.0, minimum: float = 0.5, maximum: float = 20.0) -> TemperatureRule:
    """Share a reference temperature between student and teacher by their largest logits.

    With x and y the largest logits of teacher and student, T_t = 2x/(x+y) * reference and T_s = 2y/(x+y) * reference,
    weight T_t T_s: so T_t + T_s is twice the reference and the two scaled maxima coincide. Wei and Bai (2024),
    https://arxiv.org/abs/2404.12711; the rule is the one of the authors' code, whose own erratum calls the paper's
    derivation of it wrong. Gradient flows through the student's maximum, as in that code.

    Two guards, which that code lacks. Where either maximum is not positive, the formula divides by zero or turns a
    temperature negative (which reverses the student's ranking): both networks get the reference there. And both
    temperatures are kept within bounds: a fresh student's is near zero otherwise, and its training erratic.
    `minimum=0` with a large `maximum` is the formula as published.

    Args:
        reference: Temperature given to a sample on which both networks are equally sharp; > 0.
        minimum: Lowest temperature, >= 0.
        maximum: Highest temperature.
    """
    value = positive(reference, "dtkd", "reference")
    highest = positive(maximum, "dtkd", "maximum")
    lowest = 0.0 if minimum == 0 else positive(minimum, "dtkd", "minimum")
    if lowest >= highest:
        raise BadInputError(f"dtkd: minimum must be below maximum; got {minimum} and {maximum}")

    def rule(signals: Signals) -> Temperatures:
        teacher_max = signals.teacher_logits.float().amax(-1)
        student_max = signals.student_logits.float().amax(-1)
        guarded = (teacher_max <= 0) | (student_max <= 0)
        # The masked branch must stay finite too: autograd multiplies its gradient by zero, and zero times inf is nan.
        total = (teacher_max + student_max).masked_fill(guarded, 1.0)
        teacher = (2 * value * teacher_max / total).masked_fill(guarded, value).clamp(lowest, highest)
        student = (2 * value * student_max / total).masked_fill(guarded, value).clamp(lowest, highest)
        return Temperatures(student=student, teacher=teacher, weight=teacher * student)

    return rule


def check_temperatures(temperatures: Temperatures, source: str) -> None:
    """Refuse temperatures that are zero, negative or not finite, naming the first sample.

    A negative temperature gives a finite loss and finite gradients of the wrong ranking, so nothing downstream sees it.

    Raises:
        BadInputError: Naming the field, the value, the sample and `source`.
    """
    for name in ("student", "teacher"):
        values = getattr(temperatures, name)
        good = (values > 0) & (values < math.inf)
        if not bool(good.all()):
            sample = int(torch.nonzero(~good.flatten())[0])
            raise BadInputError(
                f"{name} temperature must be finite and above 0; got {float(values.detach().flatten()[sample])} "
                f"for sample {sample} from {source}"
            )


def positive(value: float, owner: str, option: str) -> float:
    """Return `value` as a float, or refuse one that is not a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise BadInputError(f"{owner}: {option} must be finite and above 0; got {value!r}")
    return float(value)


RULES: dict[str, Callable[..., TemperatureRule]] = {
    "fixed": fixed,
    "dtkd": dtkd,
}
