"""What a comparison rests on: means with their standard errors, paired differences, and what they are worth.

Students differ by about a point from seed to seed, rules by tenths of one. So methods are compared seed by seed,
on the differences, where most of what the seeds do to both methods cancels. `tests/experiments/test_error_rates.py`
measures how often these intervals cover the truth, and how often these tests reject where there is nothing to find.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import bootstrap, nct, norm, permutation_test, t, trim_mean, ttest_1samp

from rltemp.errors import BadInputError

RESAMPLES = 9_999
FEW = 8
LEVEL, POWER = 0.05, 0.8
"""Of the tests that `detectable` and `seeds_needed` speak of."""
TENTH = 0.1
BEYOND = 10**9
"""So many pairs are counted no more exactly."""

Row = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """The mean of a difference over `n` pairs and the interval around it, in the unit of the inputs.

    Args:
        mean: Of the differences.
        low: Of the interval.
        high: Likewise.
        n: Pairs.
        p: Of the permutation test that the two sides are alike; nan where there is none.
        p_corrected: The same by Holm's correction for the number of tests; nan where none was made.
        detectable: The least difference that so many pairs could have shown, in the same unit; see `detectable`.
        deviation: Standard deviation of the differences.
        seeds_for_tenth: How many pairs would have been needed to show a difference of 0.1; 0 where n is below 2.
    """

    mean: float
    low: float
    high: float
    n: int
    p: float = math.nan
    p_corrected: float = math.nan
    detectable: float = math.nan
    deviation: float = math.nan
    seeds_for_tenth: int = 0


def stored_pair(pair: Mapping[str, Any]) -> Paired:
    """A difference as a result holds it; JSON has null for what a single pair or a refused one does not have."""
    found = {field.name: number(pair.get(field.name)) for field in fields(Paired)}
    return Paired(**found | {"n": pair["n"], "seeds_for_tenth": pair.get("seeds_for_tenth", 0)})


def interval(mean: float, low: float, high: float, form: str = "+.2f") -> str:
    """A number with its interval where it has one; `-` where it is not finite.

    >>> interval(1.29, 0.87, 1.83)
    '+1.29 [+0.87, +1.83]'
    """
    if not math.isfinite(mean):
        return "-"
    return f"{mean:{form}}" + (f" [{low:{form}}, {high:{form}}]" if math.isfinite(low) else "")


def points(pair: Paired, digits: int = 2) -> str:
    """A difference with its interval, in points unless it is of something else."""
    return interval(pair.mean, pair.low, pair.high, f"+.{digits}f")


def number(value: float | None) -> float:
    """A number as a result holds it: JSON has no nan, and null stands for it."""
    return math.nan if value is None else value


def mean_and_error(values: ArrayLike) -> tuple[float, float]:
    """Return the mean and its standard error (sample standard deviation / sqrt(n)), in the unit of the input.

    Args:
        values: `[n]`, one value a seed. The standard error of a single value is nan.

    Raises:
        BadInputError: Where `values` is not one row of at least one finite number.

    >>> mean_and_error([0.25, 0.75])
    (0.5, 0.25)
    """
    row = _finite_row(values)
    error = float(row.std(ddof=1)) / math.sqrt(len(row)) if len(row) > 1 else math.nan
    return float(row.mean()), error


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95, tests: int = 1) -> Paired:
    """Return the mean of `a - b` over seeds with a BCa bootstrap interval (Efron 1987) and a permutation test.

    The interval is of 9,999 resamples, at a level that is widened for small n as Student's t is (the "expanded"
    interval of Hesterberg 2015, What Teachers Should Know About the Bootstrap): plain BCa covers the truth less often
    than it says. Fewer than 8 pairs get Student's t. The test changes the signs of the differences: in all ways up to
    13 pairs, in 9,999 above. Both are seeded: the same numbers give the same result. Where every seed has the same
    difference the interval is that value; a single pair has no interval (nan bounds).

    Args:
        a: `[n]`, one value a seed.
        b: `[n]`, the same seeds in the same order.
        confidence: Coverage of the interval, between 0 and 1.
        tests: How many such tests are made; `detectable` is for a test at 5 % divided by it.

    Raises:
        BadInputError: Where the two are not rows of one length, not finite, or `confidence` is out of range.

    >>> pair = paired_difference([3, 3], [1, 1])
    >>> pair.mean, pair.low, pair.high, pair.n, pair.p
    (2.0, 2.0, 2.0, 2, 0.5)
    """
    if not 0.0 < confidence < 1.0:
        raise BadInputError(f"confidence must be between 0 and 1, as in 0.95; got {confidence}")
    first, second = _finite_row(a), _finite_row(b)
    if len(first) != len(second):
        raise BadInputError(f"pairs need one value a seed on both sides; got {len(first)} and {len(second)} values")
    differences, n = _without_dust(first, second), len(first)
    mean, row = float(differences.mean()), tuple(differences.tolist())
    if n < 2:
        return Paired(mean, math.nan, math.nan, n)
    low, high = _interval(row, confidence, FEW, RESAMPLES)
    p, deviation = _sign_test(row, RESAMPLES), float(differences.std(ddof=1)) if np.ptp(differences) else 0.0
    return Paired(
        mean, low, high, n, p, p, detectable(deviation, n, tests), deviation, seeds_needed(deviation, TENTH, tests)
    )


def holm(values: Sequence[float]) -> list[float]:
    """Correct p values for their number by Holm's step-down method (1979); nan is no test and stays.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((place for place, value in enumerate(values) if not math.isnan(value)), key=values.__getitem__)
    found, largest = list(values), 0.0
    for done, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - done) * values[place]))
        found[place] = largest
    return found


def smallest_p(n: int) -> float:
    """The least p value that the permutation test of `n` pairs can give.

    >>> smallest_p(4)
    0.125
    """
    return max(2.0 ** (1 - n), 2 / (RESAMPLES + 1))


def detectable(deviation: float, n: int, tests: int = 1) -> float:
    """The least true difference that a paired t test of `n` pairs shows with a power of 80 %.

    Args:
        deviation: Of the differences, at least 0.
        n: Pairs; below 2 there is no such difference (nan).
        tests: The test is at 5 % divided by this number, which is Holm's first step.

    >>> round(detectable(1.0, 34), 3)  # Cohen's table: 34 pairs for half a deviation
    0.495
    """
    return _shift(n, max(tests, 1)) * deviation / math.sqrt(n) if n > 1 else math.nan


@functools.lru_cache(maxsize=4096)
def _shift(n: int, tests: int) -> float:
    """By how many standard errors a mean has to be off zero, to be shown."""
    threshold = float(t.isf(LEVEL / tests / 2, n - 1))

    def lacking(shift: float) -> float:
        return float(nct.sf(threshold, n - 1, shift)) - POWER  # of the other side there is less than a millionth

    highest = 4.0
    while lacking(highest) < 0:
        highest *= 2
    return float(brentq(lacking, 0.0, highest))


def seeds_needed(deviation: float, difference: float, tests: int = 1) -> int:
    """How many pairs such a test needs to show `difference`, above 0, with a power of 80 %.

    >>> seeds_needed(1.0, 0.5)
    34
    """
    threshold = float(norm.isf(LEVEL / max(tests, 1) / 2))
    normal = ((threshold + float(norm.ppf(POWER))) * deviation / difference) ** 2
    n = max(2, math.floor(normal + threshold**2 / 2))  # t needs that many more than the normal distribution does
    if n > BEYOND:  # as of losses of which some are astronomical: the two are the same there
        return n
    while detectable(deviation, n, tests) > difference:
        n += 1
    while n > 2 and detectable(deviation, n - 1, tests) <= difference:
        n -= 1
    return n


def interquartile_mean(rows: Sequence[ArrayLike], confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean of the middle half of all values, with a percentile interval of the stratified bootstrap.

    As Agarwal et al. (2021) propose for results over tasks: few outliers do not move it, and it rests on more values
    than a median does. Every row is resampled by itself.

    Args:
        rows: One row of values a task.
        confidence: Coverage of the interval.

    Returns:
        The mean, and the interval's bounds; nan where a task has one value only.

    >>> interquartile_mean([[0, 1, 2, 30], [0, 1, 2, 30]])[0]
    1.5
    """
    strata = [_finite_row(row) for row in rows]

    def middle(*resampled: Row, axis: int) -> Any:
        return trim_mean(np.concatenate(resampled, axis), 0.25, axis)

    mean = float(middle(*strata, axis=0))
    if min(map(len, strata)) < 2:
        return mean, math.nan, math.nan
    found = bootstrap(
        strata,
        middle,
        method="percentile",
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        batch=500,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return mean, float(found.low), float(found.high)


@functools.lru_cache(maxsize=4096)
def _interval(differences: tuple[float, ...], confidence: float, few: int, resamples: int) -> tuple[float, float]:
    row, n = np.array(differences), len(differences)
    if not np.ptp(row):
        return differences[0], differences[0]
    if n < few:
        found = ttest_1samp(row, 0.0).confidence_interval(confidence)
    else:
        tail = norm.cdf(math.sqrt(n / (n - 1)) * t.ppf((1 - confidence) / 2, n - 1))
        found = bootstrap(
            (row,),
            np.mean,
            method="BCa",
            n_resamples=resamples,
            confidence_level=1 - 2 * tail,
            random_state=np.random.default_rng(0),  # named `rng` from scipy 1.15 on, which still takes this name
        ).confidence_interval
    return float(found.low), float(found.high)


@functools.lru_cache(maxsize=4096)
def _sign_test(differences: tuple[float, ...], resamples: int) -> float:
    if not any(differences):
        return 1.0
    found = permutation_test(
        (np.array(differences),),
        np.mean,
        permutation_type="samples",  # of one sample: its signs
        vectorized=True,
        n_resamples=resamples,
        random_state=np.random.default_rng(0),
    )
    return float(found.pvalue)


def _without_dust(first: Row, second: Row) -> Row:
    """Differences, where 0.3 - 0.2 and 0.2 - 0.1, which differ in their last bits, are equal."""
    differences, dust = first - second, 1e-12 * max(np.abs(first).max(), np.abs(second).max())
    if np.ptp(differences) > dust:
        return differences
    mean = float(differences.mean())
    return np.full(len(differences), mean if abs(mean) > dust else 0.0)


def _finite_row(values: ArrayLike) -> Row:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or not len(row) or not np.isfinite(row).all():
        raise BadInputError(f"needed: one finite value a seed, shape [n]; got {np.array2string(row, threshold=8)}")
    return row
