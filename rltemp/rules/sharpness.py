"""Rules that make teacher and student equally sharp: DTKD, as published and as it was meant."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rltemp.kd.checks import below, not_negative, positive, switch
from rltemp.kd.classes import bounded_logits
from rltemp.kd.rowwise import LARGEST, LOGSUMEXP, Formula, Slopes, rowwise
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import TemperatureRule, per_sample
from rltemp.kd.temperatures import Temperatures

_HALVINGS = 26
"""Of the bisection: 2^-26 of its range is below what float32 resolves."""
_LEAST = 1e-30
"""Stands in for a lowest temperature of 0, which would be no temperature."""
_REACH = 0.875
"""How far the bisection moves a temperature, as a share of the reference: from 1/8 of it to 15/8."""


def dtkd(
    reference: float = 4.0, minimum: float = 0.5, maximum: float = 20.0, published: bool = False
) -> TemperatureRule:
    """Share a reference temperature between student and teacher by their largest logits.

    T_t + T_s is twice the reference and the two scaled maxima coincide. The rule is the one of the authors' code,
    whose own erratum calls the paper's derivation of it wrong. Gradient flows through the student's maximum, as there.

    Formula: T_t = 2x/(x+y) reference, T_s = 2y/(x+y) reference, weight T_t T_s; x, y the largest logits of
    teacher and student.
    Source: Wei and Bai (2024), https://arxiv.org/abs/2404.12711.
    Labels: no
    Bounds: 0.5 to 20
    Invariant: scale
    Guard: where x or y is not positive, the formula divides by zero or turns a temperature negative (which reverses the
    student's ranking): both networks get the reference there. Temperatures are kept from `minimum` to `maximum`:
    a fresh student's is near zero otherwise, and its training erratic. published=true has neither guard.

    Args:
        reference: Temperature given to a sample on which both networks are equally sharp; > 0.
        minimum: Lowest temperature, >= 0.
        maximum: Highest temperature.
        published: The formula and nothing else; temperatures may then be negative, infinite or nan.
    """
    return _shared("dtkd", LARGEST, reference, minimum, maximum, published)


def dtkd_logsumexp(
    reference: float = 4.0, minimum: float = 0.5, maximum: float = 20.0, published: bool = False
) -> TemperatureRule:
    """Share a reference temperature as DTKD does, by the sharpness of its abstract instead of the largest logits.

    Formula: as dtkd, with x = logsumexp(teacher logits) and y = logsumexp(student logits).
    Source: Wei and Bai (2024), https://arxiv.org/abs/2404.12711, the sharpness that the abstract defines.
    Labels: no
    Bounds: 0.5 to 20
    Invariant: none
    Guard: as dtkd.

    Args:
        reference: As `dtkd`'s, and so are the others.
        minimum: Lowest temperature, >= 0.
        maximum: Highest temperature.
        published: Without guards.
    """
    return _shared("dtkd_logsumexp", LOGSUMEXP, reference, minimum, maximum, published)


def dtkd_exact(reference: float = 4.0) -> TemperatureRule:
    """Share a reference temperature so that both networks are exactly equally sharp: what DTKD derives its rule from.

    Solved by bisection, so the temperatures are constants of the graph.

    Formula: T_t = reference + d, T_s = reference - d, weight T_t T_s, where d solves
    logsumexp(teacher / T_t) = logsumexp(student / T_s).
    Source: the problem stated in Wei and Bai (2024), https://arxiv.org/abs/2404.12711, solved numerically.
    Labels: no
    Bounds: 0.5 to 7.5
    Invariant: none
    Guard: |d| is at most 7/8 of the reference; where the two do not meet within, both networks get the reference.

    Args:
        reference: Half the sum of the two temperatures, > 0.
    """
    value = positive(reference, "dtkd_exact", "reference")

    @per_sample
    @torch.no_grad()
    def rule(signals: Signals) -> Temperatures:
        shift = rowwise(partial(_meeting, value), signals.teacher_logits, signals.student_logits)
        guarded = shift.isnan()
        shift = shift.masked_fill(guarded, 0.0)
        return Temperatures(value - shift, value + shift, (value - shift) * (value + shift), guarded)

    return rule


def _meeting(reference: float, teacher: Tensor, student: Tensor) -> Tensor:
    """How far from the reference both are equally sharp, `[...]`; nan where they are nowhere."""
    teacher, student = bounded_logits(teacher), bounded_logits(student)

    def excess(shift: Tensor) -> Tensor:
        """How much sharper the teacher is at this shift."""
        sharpness = (teacher / (reference + shift).unsqueeze(-1)).logsumexp(-1)
        return sharpness - (student / (reference - shift).unsqueeze(-1)).logsumexp(-1)

    low = teacher.new_full(teacher.shape[:-1], -_REACH * reference)
    high = -low
    guarded = (excess(low) < 0) | (excess(high) > 0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        sharper = excess(middle) > 0
        low, high = torch.where(sharper, middle, low), torch.where(sharper, high, middle)
    return ((low + high) / 2).masked_fill(guarded, torch.nan)


def _shared(
    name: str, sharpness: Formula, reference: float, minimum: float, maximum: float, published: bool
) -> TemperatureRule:
    """2x/(x+y) and 2y/(x+y) of the reference, x and y being the sharpness of teacher and student."""
    value = positive(reference, name, "reference")
    lowest, highest = not_negative(minimum, name, "minimum"), positive(maximum, name, "maximum")
    below(lowest, highest, name)
    bounds = None if switch(published, name, "published") else (max(lowest, _LEAST), highest)
    formula = _shared_formula(value, sharpness, bounds)

    @per_sample
    def rule(signals: Signals) -> Temperatures:
        return Temperatures(*rowwise(formula, signals.student_logits, signals.teacher_logits))

    return rule


def _shared_formula(reference: float, sharpness: Formula, bounds: tuple[float, float] | None) -> Formula:
    """Both temperatures, their product, and with bounds where a guard stood in, from both networks' logits."""

    def shared(y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        if not bounds:
            factor = 2 * reference / (x + y)
            return y * factor, x * factor, x * y * factor.square()
        # Two equal numbers stand in before anything is divided: zero times inf would be nan in the gradient.
        unsafe = (x <= 0) | (y.detach() <= 0)
        x, y = x.masked_fill(unsafe, 1.0), y.masked_fill(unsafe, 1.0)
        factor = 2 * reference / (x + y)
        wanted = y * factor, x * factor
        student, teacher = (temperature.clamp(*bounds) for temperature in wanted)
        guarded = unsafe | (teacher != wanted[1]) | (student != wanted[0])
        return student, teacher, teacher * student, guarded

    def slopes(needed: Sequence[bool], student_logits: Tensor, teacher_logits: Tensor) -> Slopes:
        """By y, the student's sharpness, T_s rises by T_t / (x + y), and T_t falls by as much; but where guarded."""
        (y, basis, (once,)), x = sharpness.slopes((True,), student_logits), sharpness.value(teacher_logits)
        both = x + y
        factor = both.reciprocal().mul_(2 * reference)
        student, teacher = y * factor, x * factor
        rise = teacher / both.div_(once)
        if not bounds:
            held: tuple[Tensor, ...] = ()
            fall = -rise
        else:
            unsafe = torch.fmin(x, y) <= 0
            wanted = student.masked_fill_(unsafe, reference), teacher.masked_fill_(unsafe, reference)
            student, teacher = student.clamp(*bounds), teacher.clamp(*bounds)
            held_s, held_t = (student != wanted[0]).logical_or_(unsafe), (teacher != wanted[1]).logical_or_(unsafe)
            fall = rise.neg().masked_fill_(held_t, 0.0)
            rise.masked_fill_(held_s, 0.0)
            held = (held_s.logical_or_(held_t),)
        product = student * teacher
        return (
            (student, teacher, product, *held),
            (*basis, None),
            (rise, fall, torch.addcmul(rise * teacher, fall, student)),
        )

    return Formula(
        lambda student, teacher: shared(sharpness.value(student), sharpness.value(teacher)), slopes, 3, foreign=1
    )
