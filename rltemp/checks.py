"""Checks of what goes into a rule and of what comes out of one."""

from __future__ import annotations

import math
import sys

import torch

from rltemp.errors import BadInputError
from rltemp.types import Temperatures

LARGEST = sys.float_info.max
"""An integer above it is finite and no float."""


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


def switch(value: bool, owner: str, option: str) -> bool:
    """Return `value`, or refuse one that is neither true nor false."""
    if not isinstance(value, bool):
        raise BadInputError(f"{owner}: {option} must be true or false; got {value!r}")
    return value
