"""The arms of a comparison and what is computed from them: the rows that every table and picture shows.

Accuracies come in as fractions (0.954) and go out as percent (95.40), differences as percentage points:
always paired by seed, with a 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from rltemp.errors import BadInputError
from rltemp.experiments.measures import MEASURES
from rltemp.experiments.statistics import Paired, holm, mean_and_error, paired_difference
from rltemp.kd.names import lookup


@dataclass(frozen=True)
class MethodResult:
    """One rule's students: accuracies as fractions, `[n]`, in the same order of seeds as every other arm's.

    Args:
        rule: Its name.
        test_accuracy: 0..1.
        validation_accuracy: 0..1.
        note: What has to be said of it.
        seeds: Of the students, where they are known.
        diverged: How many students' numbers are not finite at the end.
        guarded: The fraction of the samples for which a guard stood in for the rule's formula.
        alternatives: From how many it was chosen on validation data; 1 where it was not.
        degraded: Whether some were trained by more fallbacks than a rule's result may have.
        versions: Each set of versions that some were trained with, in words.
        measures: Of `rltemp.experiments.measures.MEASURES`, by name, `[n]` each; nan where a student has none.

    Raises:
        BadInputError: Where the accuracies and measures are not rows of one length.
    """

    rule: str
    test_accuracy: NDArray[np.float64]
    validation_accuracy: NDArray[np.float64]
    note: str = ""
    seeds: tuple[int, ...] = ()
    diverged: int = 0
    guarded: float = 0.0
    alternatives: int = 1
    degraded: bool = False
    versions: tuple[str, ...] = ()
    measures: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = np.shape(self.test_accuracy), np.shape(self.validation_accuracy)
        if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
            raise BadInputError(f"arm {self.rule!r} needs two accuracies a seed, shapes [n]; got {shapes}")
        for name, row in self.measures.items():
            if np.shape(row) != shapes[0]:
                raise BadInputError(f"arm {self.rule!r} needs one {name} a seed, {shapes[0]}; got {np.shape(row)}")


@dataclass(frozen=True)
class Row:
    """One line of the table: accuracy and standard error in percent, differences in points by baseline.

    A difference that is refused (see `unlike`) has nan for all its numbers, and n = 0. `measures` has mean and standard
    error of every measure, in the unit that it is shown in; nan where a student has none.
    """

    rule: str
    accuracy: float
    error: float
    differences: Mapping[str, Paired]
    n: int
    note: str = ""
    measures: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def table_rows(arms: Sequence[MethodResult], against: Sequence[str], allow_mixed: bool = False) -> list[Row]:
    """Return one row an arm, in the order given, with its paired differences to every arm named in `against`.

    The p values of the differences to one baseline are corrected for their number, and so is the least difference that
    could have been shown; the intervals are for one comparison by itself.

    Arms that are not alike have no difference, and a note that says why; with `allow_mixed` they have one, and the
    same note.

    Raises:
        BadInputError: Where there is no arm, a rule is there twice, or a baseline is no arm.
    """
    by_rule = {arm.rule: arm for arm in arms}
    if not arms or len(by_rule) != len(arms):
        raise BadInputError(f"a comparison needs arms of different names; got {[arm.rule for arm in arms]}")
    baselines = [lookup(by_rule, name, "baseline") for name in against]
    columns = {base.rule: _column(arms, base, allow_mixed) for base in baselines}
    rows = []
    for place, arm in enumerate(arms):
        accuracy, error = mean_and_error(100 * np.asarray(arm.test_accuracy))
        differences = {name: column[place] for name, column in columns.items()}
        note = "; ".join(filter(None, [arm.note, *_marks(arm, baselines, allow_mixed)]))
        measures = {name: _shown(name, row) for name, row in arm.measures.items() if name in MEASURES}
        rows.append(Row(arm.rule, accuracy, error, differences, len(arm.test_accuracy), note, measures))
    return rows


def _column(arms: Sequence[MethodResult], base: MethodResult, allow_mixed: bool) -> list[Paired]:
    """Every arm's difference to one baseline."""
    tests = len(arms) - 1
    pairs = [difference(arm, base, allow_mixed, tests if arm is not base else 1) for arm in arms]
    tested = [place for place, arm in enumerate(arms) if arm is not base]
    corrected = dict(zip(tested, holm([pairs[place].p for place in tested]), strict=True))
    return [replace(pair, p_corrected=corrected.get(place, pair.p)) for place, pair in enumerate(pairs)]


def _shown(name: str, row: NDArray[np.float64]) -> tuple[float, float]:
    scaled = MEASURES[name].scale * np.asarray(row, dtype=np.float64)
    return mean_and_error(scaled) if np.isfinite(scaled).all() else (math.nan, math.nan)


def difference(arm: MethodResult, base: MethodResult, allow_mixed: bool = False, tests: int = 1) -> Paired:
    """The paired difference of two arms' test accuracies, in points; nan and n = 0 where they are not alike.

    With `allow_mixed` it is taken in spite of that, over the seeds that both have. `tests` as for `paired_difference`.
    """
    ours, theirs = common_seeds(arm, base, allow_mixed)
    if not len(ours):
        return Paired(math.nan, math.nan, math.nan, 0)
    return paired_difference(100 * ours, 100 * theirs, tests=tests)


def common_seeds(
    arm: MethodResult, base: MethodResult, allow_mixed: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both arms' test accuracies over the seeds that both have, in the same order; none where they are not alike."""
    ours, theirs = _by_seed(arm), _by_seed(base)
    common = [seed for seed in ours if seed in theirs]
    if unlike(arm, base) and not allow_mixed:
        common = []
    return np.array([ours[seed] for seed in common]), np.array([theirs[seed] for seed in common])


def unlike(arm: MethodResult, base: MethodResult) -> str:
    """Why the difference of two arms would not be the rules' alone; empty where it is."""
    n, others, versions = len(arm.test_accuracy), len(base.test_accuracy), sorted({*arm.versions, *base.versions})
    reasons = []
    if n != others:
        reasons.append(f"n differs ({n}, of {base.rule} {others})")
    elif list(_by_seed(arm)) != list(_by_seed(base)):
        reasons.append(f"seeds differ from those of {base.rule}")
    if len(versions) > 1:
        reasons.append(f"versions differ ({' and '.join(versions)})")
    reasons += dict.fromkeys(f"{one.rule} is degraded" for one in (arm, base) if one.degraded)
    return ", ".join(reasons)


def _by_seed(arm: MethodResult) -> dict[int, float]:
    return dict(zip(arm.seeds or range(len(arm.test_accuracy)), arm.test_accuracy.tolist(), strict=True))


def _marks(arm: MethodResult, baselines: Sequence[MethodResult], allow_mixed: bool) -> list[str]:
    """The arm's own defects and, for each reason, what its differences are worth."""
    reasons = dict.fromkeys(filter(None, (unlike(arm, base) for base in baselines)))
    return [f"{'compared although' if allow_mixed else 'not compared:'} {reason}" for reason in reasons]


def side(pair: Paired) -> int:
    """1 or -1 where the interval lies above or below zero, else 0."""
    return int(pair.low > 0) - int(pair.high < 0)


def seeds(rows: Sequence[Row]) -> str:
    """How many seeds each arm has, in words: `n = 32 seeds`, `n = 16 to 32 seeds`."""
    least, most = min(row.n for row in rows), max(row.n for row in rows)
    return f"n = {most} {'seed' if most == 1 else 'seeds'}" if least == most else f"n = {least} to {most} seeds"


def short(name: str, most: int = 30) -> str:
    """`name` without its middle where it is longer than `most` characters."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}...{name[-(most // 2 - 2) :]}"
