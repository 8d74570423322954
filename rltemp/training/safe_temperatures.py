"""What happens to temperatures that a rule must not answer, and a watch on policies that answer a bound alone."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rltemp.kd.checks import Bounds, fault, lawful, unlawful
from rltemp.kd.method import PLAIN_TEMPERATURE, Method, Objective
from rltemp.kd.temperature_rule import per_sample
from rltemp.kd.temperatures import Temperatures

log = logging.getLogger(__name__)

OVERSHOOT = 1e-6
"""How far, as a fraction, an answer may lie beyond a bound and be put onto it: what rounding does."""

AT_BOUND, NEAR_BOUND = 0.95, 0.01
"""A collapse: more than this fraction of the samples within this fraction of the lowest or highest temperature."""


class Mended(NamedTuple):
    """A method whose rule answers what it did in this step, without the faults.

    Args:
        method: Its temperatures are constants.
        fault: The first fault and the rule, in words.
        plain: The temperature of samples that had none.
        fallback_samples: How many got `plain`.
        clamped_samples: How many others were put onto a bound.
    """

    method: Method
    fault: str
    plain: float
    fallback_samples: int
    clamped_samples: int


def doubts(method: Objective, temperatures: Temperatures | None) -> list[Tensor]:
    """What must be finite for the temperatures to be lawful: nothing, where the rule promises it for itself."""
    if not isinstance(method, Method) or temperatures is None or method.rule.checked:
        return []
    return [torch.where(unlawful(temperatures, method.rule.bounds), math.inf, 0.0)]


def mended(method: Objective, temperatures: Temperatures | None) -> Mended | None:
    """Put something safe in the place of answers that the rule must not give; None where there are none.

    An overshoot of at most 1e-6 of a bound is put onto the bound. A sample whose temperature is otherwise not finite,
    not above 0 or out of the bounds that the rule states gets plain distillation's: T = 4, or the nearest bound, and
    weight T^2.
    """
    if temperatures is None or not isinstance(method, Method):
        return None
    bounds, limits = method.rule.bounds, method.rule.limits
    if not bool(unlawful(temperatures, bounds).any()):
        return None
    low, high = bounds or limits or (PLAIN_TEMPERATURE, PLAIN_TEMPERATURE)
    plain = min(max(PLAIN_TEMPERATURE, low), high)
    safe, bad, clamped = _without_faults(temperatures.detach(), bounds, plain)
    rule = per_sample(lambda _: safe, method.rule.name, checked=True)
    words = f"{fault(temperatures, bounds, limits)} from {method.name}"
    return Mended(replace(method, rule=rule), words, plain, int(bad.sum()), int(clamped.sum()))


def _without_faults(found: Temperatures, bounds: Bounds | None, plain: float) -> tuple[Temperatures, Tensor, Tensor]:
    """The temperatures, which samples got `plain`, and which others were put onto a bound, bool `[...]`.

    All are constants: no gradient goes through a value that is not finite.
    """
    student, teacher = found.student, found.teacher
    if bounds is not None:
        student, teacher = (_onto_bounds(values, bounds) for values in (student, teacher))
    bad = ~(lawful(student, bounds) & lawful(teacher, bounds)) | (found.weight < 0)
    clamped = ((student != found.student) | (teacher != found.teacher)) & ~bad
    student, teacher = (torch.where(bad, plain, values) for values in (student, teacher))
    weight = torch.where(bad, plain * plain, found.weight)
    return Temperatures(student, teacher, weight, bad if found.guarded is None else found.guarded | bad), bad, clamped


def _onto_bounds(values: Tensor, bounds: Bounds) -> Tensor:
    """The values; those that lie beyond a bound by no more than rounding, on it."""
    low, high = bounds
    near = (values >= low * (1 - OVERSHOOT)) & (values <= high * (1 + OVERSHOOT))
    return torch.where(near, values.clamp(low, high), values)


def at_bounds(values: Tensor, limits: Bounds) -> Tensor:
    """Which temperatures are within 1 % of the lowest or of the highest, bool."""
    return (values <= limits[0] * (1 + NEAR_BOUND)) | (values >= limits[1] * (1 - NEAR_BOUND))


@dataclass
class BoundWatch:
    """Warns when a policy gives more than 95 % of an epoch's samples a student temperature at one of its bounds.

    Attributes:
        limits: The lowest and the highest temperature of the policy; None for a formula, which has none.
        collapsed_epoch: The first such epoch, from 1; 0 while there is none.
        samples: Of this epoch.
        at_bounds: How many of them are at a bound.
        total: The sum of their temperatures.
    """

    limits: Bounds | None = None
    collapsed_epoch: int = 0
    samples: int = 0
    at_bounds: int | Tensor = 0  # on its device, as the total: no step waits for it
    total: float | Tensor = 0.0

    def add(self, values: Tensor) -> None:
        """Count a step's student temperatures."""
        if self.limits is not None:
            self.samples += values.numel()
            self.at_bounds = self.at_bounds + at_bounds(values, self.limits).sum()
            self.total = self.total + values.sum()

    def end_epoch(self, epoch: int) -> None:
        """Judge an epoch, and begin the next."""
        if self.limits is None:
            return
        if self.samples and float(self.at_bounds) > AT_BOUND * self.samples and not self.collapsed_epoch:
            self.collapsed_epoch = epoch
            log.warning(
                f"alarm: the policy has collapsed to a bound: {100 * float(self.at_bounds) / self.samples:.1f} % of "
                f"the student temperatures of epoch {epoch} are within 1 % of {self.limits[0]:g} or "
                f"{self.limits[1]:g} (mean {float(self.total) / self.samples:.3g}). Compare it with a fixed temperature"
            )
        self.samples, self.at_bounds, self.total = 0, 0, 0.0

    def counts(self) -> dict[str, Any]:
        """What `result.json` says."""
        return {"collapsed": self.collapsed_epoch > 0, "collapsed_epoch": self.collapsed_epoch or None}
