"""What a comparison rests on: a mean with its standard error, and a paired difference with its interval.

Students differ by about a point from seed to seed, rules by tenths of one. So arms are compared seed by seed,
on the differences, where most of what the seeds do to both arms cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, ttest_1samp

from rltemp.errors import BadInputError

RESAMPLES = 9_999
FEW = 8


@dataclass(frozen=True)
class Paired:
    """The mean of a difference over `n` pairs and the interval around it, in the unit of the inputs."""

    mean: float
    low: float
    high: float
    n: int


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


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Paired:
    """Return the mean of `a - b` over seeds with a BCa bootstrap interval (Efron 1987) of 9,999 resamples.

    Fewer than 8 pairs get Student's t: resampling three values covers the truth far less often than it says. The
    resampling is seeded: the same numbers give the same interval. Where every seed has the same difference the
    interval is that value; a single pair has no interval (nan bounds).

    Args:
        a: `[n]`, one value a seed.
        b: `[n]`, the same seeds in the same order.
        confidence: Coverage of the interval, between 0 and 1.

    Raises:
        BadInputError: Where the two are not rows of one length, not finite, or `confidence` is out of range.

    >>> paired_difference([3, 3], [1, 1])
    Paired(mean=2.0, low=2.0, high=2.0, n=2)
    """
    if not 0.0 < confidence < 1.0:
        raise BadInputError(f"confidence must be between 0 and 1, as in 0.95; got {confidence}")
    first, second = _finite_row(a), _finite_row(b)
    if len(first) != len(second):
        raise BadInputError(f"pairs need one value a seed on both sides; got {len(first)} and {len(second)} values")
    differences = first - second
    mean, n = float(differences.mean()), len(differences)
    if n < 2:
        return Paired(mean, math.nan, math.nan, n)
    # 0.3 - 0.2 and 0.2 - 0.1 differ in their last bits: equal means equal up to such dust.
    if np.ptp(differences) <= 1e-12 * max(np.abs(first).max(), np.abs(second).max()):
        return Paired(mean, mean, mean, n)
    if n < FEW:
        narrow = ttest_1samp(differences, 0.0).confidence_interval(confidence)
        return Paired(mean, float(narrow.low), float(narrow.high), n)
    interval = bootstrap(
        (differences,),
        np.mean,
        method="BCa",
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        random_state=np.random.default_rng(0),  # named `rng` from scipy 1.15 on, which still takes this name
    ).confidence_interval
    return Paired(mean, float(interval.low), float(interval.high), n)


def _finite_row(values: ArrayLike) -> NDArray[np.float64]:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or not len(row) or not np.isfinite(row).all():
        raise BadInputError(f"needed: one finite value a seed, shape [n]; got {np.array2string(row, threshold=8)}")
    return row
