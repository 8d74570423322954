"""Checks of what goes into a rule and of what comes out of one."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.temperatures import Temperatures

LARGEST = sys.float_info.max
"""An integer above it is finite and no float."""

Bounds = tuple[float, float]
"""Lowest and highest temperature."""


def bounds_of(rule: object) -> Bounds | None:
    """The bounds that a rule states of its answers, as an attribute `bounds`; None where it states none.

    Raises:
        BadInputError: Where they are not two numbers, 0 < lowest < highest.
    """
    stated = getattr(rule, "bounds", None)
    if stated is None:
        return None
    try:
        low, high = (float(bound) for bound in stated)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not 0 < low < high < math.inf:
        raise BadInputError(f"a rule's bounds must be two numbers, 0 < lowest < highest; got {stated!r}")
    return low, high


def check_shape(temperatures: object, shape: tuple[int, ...], source: str) -> None:
    """Refuse what is no `Temperatures`, or has not one value for each sample: nothing is broadcast.

    Raises:
        BadInputError: Naming both shapes and `source`.
    """
    if not isinstance(temperatures, Temperatures):
        raise BadInputError(f"{source} answered a {type(temperatures).__name__}; needed: rltemp.Temperatures")
    if temperatures.student.shape != shape:
        raise BadInputError(
            f"temperatures have shape {tuple(temperatures.student.shape)}, the samples {tuple(shape)}: needed is one "
            f"value a sample, from {source}"
        )


def check_temperatures(temperatures: Temperatures, source: str, bounds: Bounds | None = None) -> None:
    """Refuse temperatures that are not finite, zero, negative or out of bounds, and weights below 0.

    A negative temperature gives a finite loss and finite gradients of the wrong ranking, so nothing downstream sees it;
    the same goes for a negative weight. (A weight that is not finite makes the loss so, which is its student's alone.)
    One number is read from the device.

    Raises:
        BadInputError: Naming the field, the value, what it must be (within `bounds`, if any), the sample and `source`.
    """
    if bool(unlawful(temperatures, bounds).any()):
        raise BadInputError(f"{fault(temperatures, bounds)} from {source}")


def unlawful(temperatures: Temperatures, bounds: Bounds | None) -> Tensor:
    """Tell which samples break the law (within `bounds`, or finite and above 0), bool `[...]`; nothing is read."""
    good = lawful(temperatures.student, bounds)
    if temperatures.teacher is not temperatures.student:
        good = good & lawful(temperatures.teacher, bounds)
    return ~good | (temperatures.weight < 0)


def fault(temperatures: Temperatures, bounds: Bounds | None, words_for: Bounds | None = None) -> str:
    """The first value that breaks the law, in words; `words_for` are named where no bounds are checked."""
    for name in ("student", "teacher", "weight"):
        values = getattr(temperatures, name).detach()
        bad = values < 0 if name == "weight" else ~lawful(values, bounds)
        if bool(bad.any()):
            limits = bounds or words_for
            law = f"in [{limits[0]:g}, {limits[1]:g}]" if limits else "above 0"
            needed = "must be at least 0" if name == "weight" else f"temperature must be finite and {law}"
            sample = int(torch.nonzero(bad.flatten())[0])
            return f"{name} {needed}; got {float(values.flatten()[sample])} for sample {sample}"
    raise ValueError("these temperatures break no law")


def lawful(values: Tensor, bounds: Bounds | None) -> Tensor:
    """Which temperatures are allowed, bool."""
    low, high = bounds or (0.0, math.inf)
    return (values >= low) & (values <= high) if bounds else (values > low) & (values < high)


def positive(value: float, owner: str, option: str) -> float:
    """Return `value` as a float, or refuse one that is not a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= LARGEST:
        raise BadInputError(f"{owner}: {option} must be finite and above 0; got {value!r}")
    return float(value)


def not_negative(value: float, owner: str, option: str) -> float:
    """Return `value` as a float, or refuse one that is not a finite number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST:
        raise BadInputError(f"{owner}: {option} must be finite and at least 0; got {value!r}")
    return float(value)


def fraction(value: float, owner: str, option: str) -> float:
    """Return `value` as a float, or refuse one that is not between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise BadInputError(f"{owner}: {option} is a fraction, 0 to 1; got {value!r}")
    return float(value)


def whole(value: int, lowest: int, owner: str, option: str) -> int:
    """Return `value`, or refuse one that is not a whole number of `lowest` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise BadInputError(f"{owner}: {option} must be a whole number of {lowest} or more; got {value!r}")
    return value


def switch(value: bool, owner: str, option: str) -> bool:
    """Return `value`, or refuse one that is neither true nor false."""
    if not isinstance(value, bool):
        raise BadInputError(f"{owner}: {option} must be true or false; got {value!r}")
    return value


def below(minimum: float, maximum: float, owner: str) -> None:
    """Refuse a lowest temperature that is not below the highest."""
    if minimum >= maximum:
        raise BadInputError(f"{owner}: minimum must be below maximum; got {minimum} and {maximum}")
