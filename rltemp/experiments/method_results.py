"""The results of a comparison's methods, and what is computed from them: the rows that every table and picture shows.

Accuracies come in as fractions (0.954) and go out as percent (95.40), differences as percentage points; losses of
tokens come and go in nats. Differences are always paired by seed, with a 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rltemp.errors import BadInputError
from rltemp.experiments.measures import ACCURACY, MEASURES, ON_VALIDATION, Quantity
from rltemp.experiments.recorder import TemperatureTrace
from rltemp.experiments.statistics import (
    Paired,
    holm,
    mean_and_error,
    number,
    paired_difference,
    stored_pair,
)
from rltemp.kd.names import lookup


@dataclass(frozen=True)
class MethodResult:
    """What a method's students came to: accuracies as fractions, `[n]`, in the order of seeds of every other method.

    Args:
        rule: The name of the method.
        test_accuracy: 0..1.
        validation_accuracy: 0..1.
        note: What has to be said of it.
        seeds: Of the students, where they are known.
        diverged: How many students' numbers are not finite at the end.
        guarded: The fraction of the samples for which a guard stood in for the rule's formula, or a policy faded.
        alternatives: From how many it was chosen on validation data; 1 where it was not.
        degraded: Whether some were trained by more fallbacks than a rule's result may have.
        versions: Each set of versions that some were trained with, in words.
        measures: Of `rltemp.experiments.measures`, by name, `[n]` each; nan where a student has none.

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
            raise BadInputError(f"method {self.rule!r} needs two accuracies a seed, shapes [n]; got {shapes}")
        for name, row in self.measures.items():
            if np.shape(row) != shapes[0]:
                raise BadInputError(f"method {self.rule!r} needs one {name} a seed, {shapes[0]}; got {np.shape(row)}")

    def of(self, quantity: Quantity) -> NDArray[np.float64]:
        """A quantity of every student, `[n]`; nan where a student has none."""
        accuracies = {"test_accuracy": self.test_accuracy, "validation_accuracy": self.validation_accuracy}
        nothing = np.full(len(self.test_accuracy), math.nan)
        return np.asarray({**self.measures, **accuracies}.get(quantity.measured, nothing), dtype=np.float64)

    def chosen_by(self, quantity: Quantity) -> float:
        """How good it is on validation data by a quantity: more is better."""
        mean = float(self.of(ON_VALIDATION[quantity.name]).mean())
        return quantity.better * mean if math.isfinite(mean) else -math.inf


@dataclass(frozen=True)
class Comparison:
    """What was found in one comparison.

    Args:
        results: One for each method, in the order given.
        names: The rule that was reported, by the rule as written (`fixed:1|2` may be reported as `fixed:2`).
        trace: Temperatures of the first policy among the rules, if there is one.
        files: SHA-256 of the files of the rules that have one, by rule.
        showcases: The files of the students that the page shows, by the rule that was reported.
        quantity: What alternatives were chosen by, and what people read first.
        compiled: Whether steps are compiled, of students that were trained now.
    """

    results: list[MethodResult]
    names: dict[str, str]
    trace: TemperatureTrace | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    showcases: Mapping[str, Path] = field(default_factory=dict)
    quantity: Quantity = ACCURACY
    compiled: bool = False

    def of(self, rule: str) -> MethodResult:
        """The result of a rule as it was written."""
        return next(result for result in self.results if result.rule == self.names[rule])


@dataclass(frozen=True)
class Row:
    """One line of a table: mean and standard error of a quantity, its differences by baseline, as they are shown.

    A difference that is refused (see `unlike`), or of which a student has no number, has nan for all its numbers, and
    n = 0. `measures` has mean and standard error of every measure, in the unit that it is shown in; nan where a student
    has none.
    """

    rule: str
    mean: float
    error: float
    differences: Mapping[str, Paired]
    n: int
    note: str = ""
    measures: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    quantity: Quantity = ACCURACY

    def side(self, baseline: str) -> int:
        """1 or -1 where the interval of the difference says better or worse than the baseline, else 0."""
        return self.quantity.better * side(self.differences[baseline])

    def as_json(self) -> dict[str, Any]:
        """The numbers of the quantity, as `result.json` holds them."""
        pairs = {name: asdict(pair) for name, pair in self.differences.items()}
        return dict(zip(self.quantity.keys, (self.mean, self.error, pairs), strict=True))


def table_rows(
    results: Sequence[MethodResult],
    against: Sequence[str],
    allow_mixed: bool = False,
    quantity: Quantity = ACCURACY,
) -> list[Row]:
    """Return one row a method, in the order given, with its paired differences to every method named in `against`.

    The p values of the differences to one baseline are corrected for their number, and so is the least difference that
    could have been shown; the intervals are for one comparison by itself.

    Results that are not alike have no difference, and a note that says why; with `allow_mixed` they have one, and the
    same note.

    Raises:
        BadInputError: Where there is no result, a method is there twice, or a baseline is not among them.
    """
    by_rule = {result.rule: result for result in results}
    if not results or len(by_rule) != len(results):
        raise BadInputError(f"a comparison needs methods of different names; got {[result.rule for result in results]}")
    baselines = [lookup(by_rule, name, "baseline") for name in against]
    columns = {base.rule: _column(results, base, allow_mixed, quantity) for base in baselines}
    rows = []
    for place, result in enumerate(results):
        mean, error = _shown(result.of(quantity), quantity.scale)
        differences = {name: column[place] for name, column in columns.items()}
        marked = marks((unlike(result, base) for base in baselines), allow_mixed)
        note = "; ".join(filter(None, (result.note, marked)))
        measures = {
            name: _shown(row, MEASURES[name].scale) for name, row in result.measures.items() if name in MEASURES
        }
        rows.append(Row(result.rule, mean, error, differences, len(result.test_accuracy), note, measures, quantity))
    return rows


def _column(results: Sequence[MethodResult], base: MethodResult, allow_mixed: bool, quantity: Quantity) -> list[Paired]:
    """The difference of every method to one baseline."""
    tests = len(results) - 1
    pairs = [difference(result, base, allow_mixed, tests if result is not base else 1, quantity) for result in results]
    tested = [place for place, result in enumerate(results) if result is not base]
    corrected = dict(zip(tested, holm([pairs[place].p for place in tested]), strict=True))
    return [replace(pair, p_corrected=corrected.get(place, pair.p)) for place, pair in enumerate(pairs)]


def _shown(row: NDArray[np.float64], scale: float) -> tuple[float, float]:
    scaled = scale * np.asarray(row, dtype=np.float64)
    return mean_and_error(scaled) if np.isfinite(scaled).all() else (math.nan, math.nan)


def difference(
    result: MethodResult,
    base: MethodResult,
    allow_mixed: bool = False,
    tests: int = 1,
    quantity: Quantity = ACCURACY,
) -> Paired:
    """The paired difference of two methods on test data, as it is shown; nan and n = 0 where they are not alike.

    With `allow_mixed` it is taken in spite of that, over the seeds that both have. `tests` as for `paired_difference`.
    """
    ours, theirs = common_seeds(result, base, allow_mixed, quantity)
    if not len(ours) or not np.isfinite([ours, theirs]).all():
        return Paired(math.nan, math.nan, math.nan, 0)
    return paired_difference(quantity.scale * ours, quantity.scale * theirs, tests=tests)


def common_seeds(
    result: MethodResult, base: MethodResult, allow_mixed: bool = False, quantity: Quantity = ACCURACY
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A quantity of both over the seeds that both results have, in one order; none where they are not alike."""
    ours, theirs = _by_seed(result, quantity), _by_seed(base, quantity)
    common = [seed for seed in ours if seed in theirs]
    if unlike(result, base) and not allow_mixed:
        common = []
    return np.array([ours[seed] for seed in common]), np.array([theirs[seed] for seed in common])


def unlike(result: MethodResult, base: MethodResult) -> str:
    """Why the difference of two results would not be that of the methods alone; empty where it is."""
    n, others, versions = len(result.test_accuracy), len(base.test_accuracy), sorted({*result.versions, *base.versions})
    reasons = []
    if n != others:
        reasons.append(f"n differs ({n}, of {base.rule} {others})")
    elif list(_by_seed(result)) != list(_by_seed(base)):
        reasons.append(f"seeds differ from those of {base.rule}")
    if len(versions) > 1:
        reasons.append(f"versions differ ({' and '.join(versions)})")
    reasons += dict.fromkeys(f"{one.rule} is degraded" for one in (result, base) if one.degraded)
    return ", ".join(reasons)


def _by_seed(result: MethodResult, quantity: Quantity = ACCURACY) -> dict[int, float]:
    return dict(zip(result.seeds or range(len(result.test_accuracy)), result.of(quantity).tolist(), strict=True))


def marks(reasons: Iterable[str], allow_mixed: bool) -> str:
    """Why differences are refused, or what they are worth."""
    word = "compared although" if allow_mixed else "not compared:"
    return "; ".join(f"{word} {reason}" for reason in dict.fromkeys(reasons) if reason)


def side(pair: Paired) -> int:
    """1 or -1 where the interval lies above or below zero, else 0."""
    return int(pair.low > 0) - int(pair.high < 0)


def ranked(rows: Iterable[Row]) -> list[Row]:
    """The rows, the best mean first; those without one come last."""
    return sorted(rows, key=lambda row: -row.quantity.better * row.mean if math.isfinite(row.mean) else math.inf)


def seeds(rows: Sequence[Row]) -> str:
    """How many seeds each method has, in words: `n = 32 seeds`, `n = 16 to 32 seeds`."""
    least, most = min(row.n for row in rows), max(row.n for row in rows)
    return f"n = {most} {'seed' if most == 1 else 'seeds'}" if least == most else f"n = {least} to {most} seeds"


def short(name: str, most: int = 30) -> str:
    """`name` without its middle where it is longer than `most` characters."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}...{name[-(most // 2 - 2) :]}"


def stored_rows(point: Mapping[str, Any], seeds: int, quantity: Quantity = ACCURACY) -> list[Row]:
    """The rows of a point as `result.json` holds it, ranked; none, where it does not hold the quantity.

    Results of before have no `n` and had one row a seed.
    """
    rows = []
    for one in point["arms"]:
        if not all(key in one for key in quantity.keys):
            return []
        mean, error, differences = (one[key] for key in quantity.keys)
        pairs = {name: stored_pair(pair) for name, pair in differences.items()}
        n, note = one.get("n", seeds), one["note"]
        rows.append(Row(one["rule"], number(mean), number(error), pairs, n, note, quantity=quantity))
    return ranked(rows)
