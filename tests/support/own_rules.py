"""Rules as a user would write them, found by `module:attribute`."""

from __future__ import annotations

from rltemp import Signals, Temperatures
from rltemp.errors import BadInputError
from rltemp.kd.method import uniform


def of_five(signals: Signals) -> Temperatures:
    """A rule that cannot do with fewer than five classes."""
    if signals.num_classes < 5:
        raise BadInputError(f"needed: 5 classes; got {signals.num_classes}")
    return uniform(signals, 4.0)
