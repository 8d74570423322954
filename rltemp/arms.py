"""The arms of a comparison and what is computed from them: the rows that every table and picture shows.

Accuracies come in as fractions (0.954) and go out as percent (95.40), differences as percentage points:
always paired by seed, with a 95 % interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rltemp.errors import BadInputError
from rltemp.names import lookup
from rltemp.stats import Paired, mean_and_error, paired_difference


@dataclass(frozen=True)
class Arm:
    """One rule's students: accuracies as fractions, `[n]`, in the same order of seeds as every other arm's.

    Raises:
        BadInputError: Where the two accuracies are not rows of one length.
    """

    rule: str
    test_accuracy: NDArray[np.float64]
    validation_accuracy: NDArray[np.float64]
    note: str = ""

    def __post_init__(self) -> None:
        shapes = np.shape(self.test_accuracy), np.shape(self.validation_accuracy)
        if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
            raise BadInputError(f"arm {self.rule!r} needs two accuracies a seed, shapes [n]; got {shapes}")


@dataclass(frozen=True)
class Row:
    """One line of the table: accuracy and standard error in percent, differences in points by baseline."""

    rule: str
    accuracy: float
    error: float
    differences: Mapping[str, Paired]
    n: int
    note: str = ""


def table_rows(arms: Sequence[Arm], against: Sequence[str]) -> list[Row]:
    """Return one row an arm, in the order given, with its paired differences to every arm named in `against`.

    Raises:
        BadInputError: Where there is no arm, a rule is there twice, a baseline is no arm, or the numbers of
            seeds differ.
    """
    by_rule = {arm.rule: arm for arm in arms}
    if not arms or len(by_rule) != len(arms):
        raise BadInputError(f"a comparison needs arms of different names; got {[arm.rule for arm in arms]}")
    baselines = [lookup(by_rule, name, "baseline") for name in against]
    rows = []
    for arm in arms:
        percent = 100 * np.asarray(arm.test_accuracy)
        accuracy, error = mean_and_error(percent)
        differences = {
            base.rule: paired_difference(percent, 100 * np.asarray(base.test_accuracy)) for base in baselines
        }
        rows.append(Row(arm.rule, accuracy, error, differences, len(percent), arm.note))
    return rows


def side(pair: Paired) -> int:
    """1 or -1 where the interval lies above or below zero, else 0."""
    return int(pair.low > 0) - int(pair.high < 0)


def seeds(rows: Sequence[Row]) -> str:
    """How many seeds each arm has, in words: `n = 32 seeds`."""
    return f"n = {rows[0].n} {'seed' if rows[0].n == 1 else 'seeds'}"


def short(name: str, most: int = 30) -> str:
    """`name` without its middle where it is longer than `most` characters."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}...{name[-(most // 2 - 2) :]}"
