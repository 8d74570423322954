"""Rules that divide logits by their own spread over the classes: NormKD, logit standardization, ATKD."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rltemp.blocks import deviation, rowwise
from rltemp.checks import positive, switch
from rltemp.names import lookup
from rltemp.types import Signals, TemperatureRule, Temperatures, full_precision

LOWEST_DEVIATION = 0.01
"""Logits that deviate by less are taken to deviate by this much: a temperature then stays above zero, and a step in
proportion (constant logits have a uniform distribution at every temperature)."""

_STANDARDIZATION_EPS = 1e-7  # what logit standardization and ATKD add to a deviation


def normkd(temperature: float = 2.0, published: bool = False) -> TemperatureRule:
    """Give each network a temperature in proportion to the spread of its logits, and the teacher's square as weight.

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

    def rule(signals: Signals) -> Temperatures:
        student, teacher, guarded = _deviations(signals, floor)
        return Temperatures(value * student, value * teacher, (value * teacher).square(), guarded)

    return rule


def lskd(temperature: float = 2.0, divisor: Literal["K-1", "K"] = "K-1", published: bool = False) -> TemperatureRule:
    """Standardize both networks' logits over the classes, then soften them by one temperature.

    Gradient flows through the student's deviation, as in the authors' code. The paper's Algorithm 1 divides by K, its
    code by K - 1: nothing at 100 classes, a third of the divergence at 4.

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

    def rule(signals: Signals) -> Temperatures:
        student, teacher, guarded = _deviations(signals, floor, correction)
        if eps:
            student, teacher = student + eps, teacher + eps
        return Temperatures(value * student, value * teacher, torch.full_like(teacher, value * value), guarded)

    return rule


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

    def rule(signals: Signals) -> Temperatures:
        student, teacher, guarded = _deviations(signals, floor)
        if eps:
            student, teacher = student + eps, teacher + eps
        classes = signals.num_classes
        with torch.no_grad():
            largest = _largest(signals.teacher_logits, which == "teacher_signed") / teacher
            if which == "code":
                largest = torch.maximum(largest, _largest(signals.student_logits, signed=False) / student)
            least = 1 / math.sqrt(classes) if which == "teacher_signed" else math.sqrt((classes - 1) / classes)
            shared = (1 + math.sqrt(3)) / 2 * (largest if published else largest.clamp(min=least))
        return Temperatures(shared * student, shared * teacher, shared.square(), guarded)

    return rule


def _deviations(signals: Signals, floor: float, correction: int = 1) -> tuple[Tensor, Tensor, Tensor | None]:
    """Standard deviations over the classes of student and teacher, and where either is raised to the floor."""
    student, teacher = (
        deviation(logits, correction, floor) for logits in (signals.student_logits, signals.teacher_logits)
    )
    if not floor:
        return student, teacher, None
    return student, teacher, torch.minimum(student.detach(), teacher) <= floor


def _largest(logits: Tensor, signed: bool) -> Tensor:
    """Largest distance of a logit from the mean over the classes, upwards or to either side."""

    def distance(logits: Tensor) -> Tensor:
        logits = full_precision(logits)
        mean = logits.mean(-1)
        above = logits.amax(-1) - mean
        return above if signed else torch.maximum(above, mean - logits.amin(-1))

    return rowwise(distance, logits)
