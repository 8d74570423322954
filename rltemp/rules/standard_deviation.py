"""Rules that divide logits by their own standard deviation over the classes: NormKD, logit standardization, ATKD."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from rltemp.kd.checks import positive, switch
from rltemp.kd.classes import ABSENT, bounded_logits, class_count
from rltemp.kd.names import lookup
from rltemp.kd.rowwise import Formula, Slopes, rowwise
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import TemperatureRule, per_sample
from rltemp.kd.temperatures import Temperatures

LOWEST_DEVIATION = 0.01
"""Logits that deviate by less are taken to deviate by this much: a temperature then stays above zero, and a step in
proportion (constant logits have a uniform distribution at every temperature)."""

_STANDARDIZATION_EPS = 1e-7  # what logit standardization and ATKD add to a deviation


def normkd(temperature: float = 2.0, published: bool = False) -> TemperatureRule:
    """Give each network a temperature in proportion to the deviation of its logits, and the teacher's square as weight.

    Gradient flows through the student's deviation, as in the authors' code.

    Formula: T_t = temperature std(u), T_s = temperature std(v), weight T_t^2; u, v the logits of teacher and
    student, std with divisor C - 1.
    Source: Chi et al. (2023), https://arxiv.org/abs/2308.00520.
    Labels: no
    Bounds: 0.02 to inf
    Invariant: shift, equivariant
    Guard: a deviation below 0.01 counts as 0.01. The published code has no guard: nan for constant logits.

    Args:
        temperature: Of logits with deviation 1, > 0.
        published: Without the guard.
    """
    value = positive(temperature, "normkd", "temperature")
    floor = 0.0 if switch(published, "normkd", "published") else LOWEST_DEVIATION
    return _weighed(_in_proportion(value, floor), Tensor.square)


def lskd(temperature: float = 2.0, divisor: Literal["K-1", "K"] = "K-1", published: bool = False) -> TemperatureRule:
    """Standardize both networks' logits over the classes, then soften them by one temperature.

    Gradient flows through the student's deviation, as in the authors' code. The paper's Algorithm 1 divides by K, its
    code by K - 1, which matters where classes are few.

    Formula: T_t = temperature std(u), T_s = temperature std(v), weight temperature^2; u, v the logits.
    Source: Sun et al. (2024), https://arxiv.org/abs/2403.01427.
    Labels: no
    Bounds: 0.02 to inf
    Invariant: shift, equivariant
    Guard: a deviation below 0.01 counts as 0.01. The published code adds 1e-7 to every deviation.

    Args:
        temperature: Of standardized logits, > 0.
        divisor: Of the variance, `K-1` as in the code or `K` as in the paper.
        published: Add 1e-7 instead of the guard.
    """
    value = positive(temperature, "lskd", "temperature")
    correction = lookup({"K-1": 1, "K": 0}, divisor, "divisor")
    eps = _STANDARDIZATION_EPS if switch(published, "lskd", "published") else 0.0
    floor = 0.0 if published else LOWEST_DEVIATION
    formula = _in_proportion(value, floor, correction, eps)
    return _weighed(formula, lambda teacher: torch.full_like(teacher, value * value))


def atkd(
    reading: Literal["code", "teacher_absolute", "teacher_signed"] = "code", published: bool = False
) -> TemperatureRule:
    """Standardize both networks' logits, then soften them by a temperature in proportion to their largest one.

    The abstract takes the teacher's maximum logit alone; the authors' code the largest absolute value over both
    networks. The shared temperature is a constant of the graph, the student's deviation is not, as in the code.

    Formula: T = (1 + sqrt 3)/2 max |z| over the standardized logits z of both; T_t = T std(u), T_s = T std(v),
    weight T^2. reading=teacher_absolute takes max |z| of the teacher, teacher_signed max z of the teacher.
    Source: the code beside Wang et al. (2025), https://arxiv.org/abs/2503.09030.
    Labels: no
    Bounds: 0.0096 to inf
    Invariant: shift, equivariant
    Guard: a deviation below 0.01 counts as 0.01, and T is at least what non-constant logits can give, which is
    (1 + sqrt 3)/2 sqrt((C-1)/C) by absolute value, (1 + sqrt 3)/2 / sqrt(C) by sign. The published code divides
    zero by zero for constant logits.

    Args:
        reading: Which largest logit is meant.
        published: Add 1e-7 to the deviations instead of the guards.
    """
    which = lookup({name: name for name in ("code", "teacher_absolute", "teacher_signed")}, reading, "reading")
    eps = _STANDARDIZATION_EPS if switch(published, "atkd", "published") else 0.0
    floor = 0.0 if published else LOWEST_DEVIATION

    def shared(
        student: Tensor, student_deviation: Tensor, teacher: Tensor, teacher_deviation: Tensor, classes: Tensor
    ) -> Tensor:
        largest = (teacher if which == "teacher_signed" else teacher.abs()).amax(-1) / teacher_deviation
        if which == "code":
            largest = torch.maximum(largest, student.abs().amax(-1) / student_deviation)
        many = classes.clamp(min=2)
        least = many.rsqrt() if which == "teacher_signed" else ((many - 1) / many).sqrt()
        return (1 + math.sqrt(3)) / 2 * (largest if published else torch.maximum(largest, least))

    formula = _in_proportion(shared, floor, eps=eps)

    @per_sample
    def rule(signals: Signals) -> Temperatures:
        student, teacher, factor, *guarded = rowwise(formula, signals.student_logits, signals.teacher_logits)
        return Temperatures(student, teacher, factor.square(), *guarded)

    return rule


def _weighed(formula: Formula, weight: Callable[[Tensor], Tensor]) -> TemperatureRule:
    """The rule with these temperatures, and a weight of the teacher's."""

    @per_sample
    def rule(signals: Signals) -> Temperatures:
        student, teacher, *guarded = rowwise(formula, signals.student_logits, signals.teacher_logits)
        return Temperatures(student, teacher, weight(teacher), *guarded)

    return rule


def _in_proportion(
    factor: float | Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
    floor: float,
    correction: int = 1,
    eps: float = 0,
) -> Formula:
    """Temperatures that are a factor times the standard deviation over the classes.

    Args:
        factor: A number; or from student and teacher, centred logits and deviation of each, and the number of the
            teacher's classes, one a sample, which is a constant of the graph.
        floor: What a smaller deviation counts as; it has no gradient there.
        correction: The number of classes less this is the divisor of the variance.
        eps: Added to every deviation.

    Returns:
        The student's temperature, the teacher's, the factor where it is none a number, and with a floor, where either
        deviation was raised to it.
    """

    def centred_and_deviation(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = bounded_logits(logits)
        absent = logits <= ABSENT
        classes = class_count(absent, logits)
        freedom = (classes - correction).clamp_(min=1)
        mean = logits.masked_fill(absent, 0.0).sum(-1).div_(classes)
        centred = (logits - mean.unsqueeze(-1)).masked_fill(absent, 0.0)
        if not torch.is_grad_enabled():
            deviation: Tensor = vector_norm(centred, dim=-1).div_(freedom.sqrt())
            return centred, deviation.clamp_(min=floor) if floor else deviation, classes
        # The variance is raised, not its root (nor the norm), whose second derivative at zero is none.
        variance = centred.square().sum(-1).div_(freedom)
        return centred, (variance.clamp_(min=floor * floor) if floor else variance).sqrt(), classes

    def answer(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Any]:
        guarded = [torch.minimum(student[1].detach(), teacher[1]) <= floor] if floor else []
        deviations = (student[1] + eps, teacher[1] + eps) if eps else (student[1], teacher[1])
        if isinstance(factor, float):
            return (factor * deviations[0], factor * deviations[1], *guarded), factor
        with torch.no_grad():
            times = factor(student[0], deviations[0], teacher[0], deviations[1], teacher[2])
        return (times * deviations[0], times * deviations[1], times, *guarded), times

    def slopes(needed: Sequence[bool], student_logits: Tensor, teacher_logits: Tensor) -> Slopes:
        centred, deviation, classes = centred_and_deviation(student_logits)
        found, times = answer((centred, deviation, classes), centred_and_deviation(teacher_logits))
        by_deviation = times / (classes - correction).clamp_(min=1) / deviation
        if floor:
            by_deviation.masked_fill_(deviation <= floor, 0.0)
        return found, (centred, None), (by_deviation,)

    def value(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
        return answer(centred_and_deviation(student), centred_and_deviation(teacher))[0]

    return Formula(value, slopes, foreign=1)
