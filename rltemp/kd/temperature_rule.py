"""A temperature rule: from what a step sees to two temperatures and a weight for every sample.

Rules of this project are made by `@per_sample` or `@per_batch` from a function, or derive from `TemperatureRule` and
define `answer`. A plain function of a user's becomes one where a `Method` is made of it (`as_rule`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import Bounds, bounds_of
from rltemp.kd.signals import Signals
from rltemp.kd.temperatures import Temperatures

RuleFunction = Callable[[Signals], Temperatures]
"""What a user may write: any callable; its attributes that `TemperatureRule` has, `bounds` say, are read once."""


class TemperatureRule:
    """Maps `Signals` to `Temperatures`; `answer` is what a rule defines, everything else has a default.

        class Warm(rltemp.TemperatureRule):
            per_sample = True

            def answer(self, signals: rltemp.Signals) -> rltemp.Temperatures:
                four = signals.full(4.0)
                return rltemp.Temperatures(student=four, teacher=four, weight=four.square())

    A call takes signals with a mask too: the answer is T = 1, or the nearest bound, and weight 0 where the mask has no
    sample.

    Attributes:
        per_sample: Whether the answer for a sample depends on no other, but those that the mask leaves. Then a mask
            costs no wait for the device; the samples of a mask are gathered for any other rule, student by student.
        uses_progress: Whether the answer depends on the progress of the run; a call without it is refused then.
        uses_labels: Whether the answer depends on the labels; see `rltemp.kd.method.needs_labels`.
        bounds: Lowest and highest temperature that the rule promises, which is checked; None where it promises none.
        limits: Between which temperatures a policy chooses; None for a formula. A run warns where it sees one alone.
        checked: Whether the answers are lawful (finite, above 0) for all finite logits, so that no step checks them.
        pure: Whether the answer depends on the signals and on `tensors` alone, and nothing else changes: such a rule
            may be compiled as it stands.
    """

    per_sample: bool = False
    uses_progress: bool = False
    uses_labels: bool = False
    bounds: Bounds | None = None
    limits: Bounds | None = None
    checked: bool = False
    pure: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return type(self).__name__

    @property
    def tensors(self) -> list[Tensor]:
        """What differs between the rules of two runs by one method: a graph takes it as an input."""
        return []

    def holding(self, tensors: Sequence[Tensor]) -> TemperatureRule:
        """The same rule with other `tensors`."""
        return self

    @property
    def structure(self) -> Hashable:
        """What the answer depends on beside the signals and `tensors`: rules that are equal in it share a graph."""
        return self

    def answer(self, signals: Signals) -> Temperatures:
        """Temperatures `[...]`; of signals with a mask, which a rule may ignore, if it is `per_sample`."""
        raise NotImplementedError

    def __call__(self, signals: Signals) -> Temperatures:
        """Temperatures `[...]`.

        Raises:
            BadInputError: Where the rule needs the progress, or labels, and the signals carry none; where it answers
                what is no `Temperatures`.
        """
        if self.uses_progress:
            signals.need_progress(self.name)
        found = self._masked(signals)
        return found if signals.buckets is None else signals.buckets.capped(found)

    def _masked(self, signals: Signals) -> Temperatures:
        if (mask := signals.mask) is None:
            return self._answered(signals)
        low, high = self.bounds or (1.0, 1.0)
        lawful = min(max(1.0, low), high)
        if self.per_sample:
            return self._answered(signals.made_safe()).within(mask, lawful)
        if signals.stacked:
            return Temperatures.stack([self(own) for own in signals.students()])
        return self._answered(signals.samples()).spread(mask, lawful)

    def _answered(self, signals: Signals) -> Temperatures:
        found = self.answer(signals)
        if not isinstance(found, Temperatures):  # of a user's own
            raise BadInputError(f"{self.name} answered a {type(found).__name__}; needed: rltemp.Temperatures")
        return found

    def __repr__(self) -> str:
        return f"<temperature rule {self.name}>"


@dataclass(eq=False, repr=False)
class FunctionRule(TemperatureRule):
    """A function as a rule; the fields are the members of `TemperatureRule`."""

    function: RuleFunction
    name: str = ""
    per_sample: bool = False
    uses_progress: bool = False
    uses_labels: bool = False
    bounds: Bounds | None = None
    limits: Bounds | None = None
    checked: bool = False
    pure: bool = False

    def __post_init__(self) -> None:
        if not self.name:  # of a factory's inner function, the factory's
            named = getattr(self.function, "__qualname__", type(self.function).__name__)
            self.name = named.partition(".<locals>")[0]

    def answer(self, signals: Signals) -> Temperatures:
        """What the function answers."""
        return self.function(signals)


per_batch = FunctionRule
"""Decorator: makes a rule of a function that compares the samples of a batch."""

per_sample = partial(FunctionRule, per_sample=True)
"""Decorator: makes a rule of a function whose answer for a sample depends on that sample alone."""

over_time = partial(FunctionRule, per_sample=True, uses_progress=True)
"""Decorator: the same, of a function that uses the progress of the run."""


def _of_inner(member: str) -> Any:
    return property(lambda rule: getattr(rule.inner, member))


@dataclass(eq=False, repr=False)
class WrappedRule(TemperatureRule):
    """A rule that asks another one, which heeds a mask, and promises what that one promises at this moment.

    Args:
        inner: The other one.
        ask: From the signals and the other one to the answer.
    """

    inner: TemperatureRule
    ask: Ask

    per_sample = True
    name, uses_progress, uses_labels = _of_inner("name"), _of_inner("uses_progress"), _of_inner("uses_labels")
    bounds, limits, checked = _of_inner("bounds"), _of_inner("limits"), _of_inner("checked")

    def answer(self, signals: Signals) -> Temperatures:
        """What is made of the other one's answer."""
        return self.ask(signals, self.inner)


Ask = Callable[[Signals, TemperatureRule], Temperatures]
"""What a wrapped rule does with the rule that it wraps."""


def as_rule(rule: TemperatureRule | RuleFunction) -> TemperatureRule:
    """Return a rule as it is, and any other callable as a rule, with the attributes that its author gave it.

    >>> def mine(signals):
    ...     return Temperatures(*(signals.full(value) for value in (2.0, 2.0, 4.0)))
    >>> mine.bounds = (1, 8)
    >>> as_rule(mine), as_rule(mine).bounds, as_rule(mine).per_sample
    (<temperature rule mine>, (1.0, 8.0), False)

    Raises:
        BadInputError: Where it cannot be called, or its bounds are not two numbers, 0 < lowest < highest.
    """
    if isinstance(rule, TemperatureRule):
        return rule
    if not callable(rule):
        raise BadInputError(f"{rule!r:.80} is no temperature rule; needed: a function of rltemp.Signals")
    given = {name: bool(getattr(rule, name, False)) for name in ("per_sample", "uses_progress", "uses_labels")}
    limits = getattr(rule, "limits", None)
    return FunctionRule(rule, getattr(rule, "__name__", ""), **given, bounds=bounds_of(rule), limits=limits)


def entry(rule: TemperatureRule, name: str, checked: bool = True) -> TemperatureRule:
    """Return a rule of a table under its name there; tests hold it to be pure and to answer what is lawful."""
    return replace(rule, name=name, checked=checked, pure=True) if isinstance(rule, FunctionRule) else rule
