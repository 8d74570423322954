"""What happens to temperatures that a rule must not answer, and a watch on policies that answer a bound alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import Bounds, fault, lawful, unlawful
from rltemp.kd.method import PLAIN_TEMPERATURE, Method, Objective
from rltemp.kd.signals import Temperatures
from rltemp.kd.temperature_rule import FunctionRule

OVERSHOOT = 1e-6
"""How far, as a fraction, an answer may lie beyond a bound and be put onto it: what rounding does."""

AT_BOUND, NEAR_BOUND = 0.95, 0.01
"""A collapse: more than this fraction of the samples within this fraction of the lowest or highest temperature."""

DEGRADED = 0.01
"""A run with a larger fraction of its steps under the fallback is marked."""

Tell = Callable[[str], None]


class TemperatureGuard:
    """Puts something safe in the place of an answer that a rule must not give, and counts it.

    An overshoot of at most 1e-6 of a bound is put onto the bound. A sample whose temperature is otherwise not finite,
    not above 0 or out of the bounds that the rule states gets plain distillation's: T = 4, or the nearest bound, and
    weight T^2. An answer of a wrong shape is a mistake of the rule and always an error.

    No step waits for the device to say whether its temperatures are lawful: it is taken as if they were, up to the
    optimizer, and where the number that is read there says otherwise, once more with mended ones.

    Args:
        tell: Told a line, the first time a fallback is used.
        strict: Raise instead.

    Attributes:
        steps: How many steps had temperatures.
    """

    def __init__(self, tell: Tell = lambda _: None, strict: bool = False) -> None:
        self.tell = tell
        self.strict = strict
        self.steps = self.clamped_samples = self.fallback_samples = self.fallback_steps = 0

    def doubts(self, method: Objective, temperatures: Temperatures | None) -> list[Tensor]:
        """What must be finite for the temperatures to be lawful: nothing, where the rule promises it for itself."""
        if not isinstance(method, Method) or temperatures is None or method.rule.checked:
            return []
        return [torch.where(unlawful(temperatures, method.rule.bounds), math.inf, 0.0)]

    def mended(self, method: Objective, temperatures: Temperatures | None) -> Objective | None:
        """The method with these temperatures of its rule, without their faults; None where they have none.

        Raises:
            BadInputError: Where there is a fault, and none may be.
        """
        if temperatures is None or not isinstance(method, Method):
            return None
        bounds, limits = method.rule.bounds, method.rule.limits
        if not bool(unlawful(temperatures, bounds).any()):
            return None
        line = f"{fault(temperatures, bounds, limits)} from {method.name}"
        if self.strict:
            raise BadInputError(line)
        low, high = bounds or limits or (PLAIN_TEMPERATURE, PLAIN_TEMPERATURE)
        plain = min(max(PLAIN_TEMPERATURE, low), high)
        safe, bad, clamped = _mended(temperatures.detach(), bounds, plain)
        self._count(int(bad.sum()), int(clamped.sum()), plain, line)
        return replace(method, rule=FunctionRule(lambda _: safe, method.rule.name, checked=True))

    def counts(self) -> dict[str, Any]:
        """What `result.json` says: samples and steps, and whether the run is marked."""
        return {
            "clamped_samples": self.clamped_samples,
            "fallback_samples": self.fallback_samples,
            "fallback_steps": self.fallback_steps,
            "degraded": self.fallback_steps > DEGRADED * self.steps,
        }

    def state(self) -> dict[str, int]:
        """All counts, for a checkpoint."""
        return {name: getattr(self, name) for name in _COUNTS}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from what `state` gave."""
        for name in _COUNTS:
            setattr(self, name, int(state[name]))

    def _count(self, bad: int, clamped: int, plain: float, line: str) -> None:
        what = f"T = {plain:g} stands in (fallback)" if bad else "it is put onto the bound (clamped)"
        if not self.fallback_steps and (bad or not self.clamped_samples):
            self.tell(f"alarm: {line}: {what}; result.json counts how often")
        self.clamped_samples += clamped
        self.fallback_samples += bad
        self.fallback_steps += bad > 0


_COUNTS = ("steps", "clamped_samples", "fallback_samples", "fallback_steps")


def _mended(found: Temperatures, bounds: Bounds | None, plain: float) -> tuple[Temperatures, Tensor, Tensor]:
    """An answer without its faults, all constants: no gradient goes through a value that is not finite.

    Args:
        found: The answer, `[...]`.
        bounds: That the rule states.
        plain: The temperature for a sample that has none.

    Returns:
        The temperatures, which samples got `plain`, and which others were put onto a bound, bool `[...]`.
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


class BoundWatch:
    """Tells when a policy gives more than 95 % of an epoch's samples a student temperature at one of its bounds.

    Args:
        tell: Told a line, the first time.

    Attributes:
        collapsed_epoch: The first such epoch, from 1; 0 while there is none.
    """

    def __init__(self, tell: Tell = lambda _: None) -> None:
        self.tell = tell
        self.limits: Bounds | None = None
        self.collapsed_epoch = 0
        self._samples = 0
        self._at_bounds: int | Tensor = 0
        self._sum: float | Tensor = 0.0

    def begin(self, method: Objective) -> None:
        """Watch this method, if its rule has `limits`, (lowest, highest), as a policy has; a formula has none."""
        self.limits = method.rule.limits if isinstance(method, Method) else None

    def __call__(self, temperatures: Temperatures) -> None:
        """Count a step's."""
        if self.limits is None:
            return
        values = temperatures.student
        self._samples += values.numel()
        self._at_bounds = self._at_bounds + at_bounds(values, self.limits).sum()  # on its device: no step waits for it
        self._sum = self._sum + values.sum()

    def end_epoch(self, epoch: int) -> None:
        """Judge an epoch, and begin the next."""
        if self.limits is None:
            return
        if self._samples and float(self._at_bounds) > AT_BOUND * self._samples and not self.collapsed_epoch:
            self.collapsed_epoch = epoch
            self.tell(
                f"alarm: the policy has collapsed to a bound: {100 * float(self._at_bounds) / self._samples:.1f} % of "
                f"the student temperatures of epoch {epoch} are within 1 % of {self.limits[0]:g} or "
                f"{self.limits[1]:g} (mean {float(self._sum) / self._samples:.3g}). Compare it with a fixed temperature"
            )
        self._samples, self._at_bounds, self._sum = 0, 0, 0.0

    def counts(self) -> dict[str, Any]:
        """What `result.json` says."""
        return {"collapsed": self.collapsed_epoch > 0, "collapsed_epoch": self.collapsed_epoch or None}

    def state(self) -> dict[str, float]:
        """All counts, for a checkpoint."""
        return {
            "collapsed_epoch": self.collapsed_epoch,
            "samples": self._samples,
            "at_bounds": int(self._at_bounds),
            "sum": float(self._sum),
        }

    def restore(self, state: dict[str, float]) -> None:
        """Go on from what `state` gave."""
        self.collapsed_epoch, self._samples = int(state["collapsed_epoch"]), int(state["samples"])
        self._at_bounds, self._sum = int(state["at_bounds"]), float(state["sum"])
