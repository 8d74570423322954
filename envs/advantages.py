"""From the returns of runs to advantages: how each run did within its group, which shares all but the policy's draw.

To add one: a function of returns and groups, and an entry in `ADVANTAGES`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Judge = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]
"""From returns and groups to advantages, `[N]` each."""


def group_advantages(returns: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.float32]:
    """Each run's return less the mean return of the others of its group, in units of the standard deviation of all.

    To leave a run out of its own baseline keeps the gradient unbiased in a group of any size n: the difference is
    n / (n - 1) times that to the mean of the whole group.

    >>> found = group_advantages(np.array([3, 1, 5, 2, 2], np.float32), np.array([0, 0, 1, 1, 1]))
    >>> [round(value, 3) for value in found.tolist()]
    [0.964, -0.964, 1.447, -0.723, -0.723]

    Args:
        returns: `[N]`.
        groups: The number of each run's group, from 0, `[N]`; every group has two runs or more.
    """
    size = np.bincount(groups)
    if size.min() < 2:
        raise ValueError("a run without another of its group cannot be judged")
    mean = np.array([returns[groups == group].mean() for group in range(len(size))])
    left_out = size / (size - 1)
    # Relative to the largest: exactly 1 where all groups are of one size.
    centred = (returns - mean[groups]) * (left_out / left_out.max()).astype(np.float32)[groups]
    advantages: NDArray[np.float32] = centred / max(float(centred.std()), 1e-8)
    return advantages


def clipped_advantages(returns: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.float32]:
    """`group_advantages` of returns that are at most 1 away from the median of their group.

    A student that collapses then counts for much, and does not outweigh all others.

    >>> found = clipped_advantages(np.array([0, -6, 0.5, 0, 0, 0], np.float32), np.array([0, 0, 0, 1, 1, 1]))
    >>> [round(value, 2) for value in found.tolist()]
    [0.38, -1.89, 1.51, 0.0, 0.0, 0.0]
    """
    middle = np.array([np.median(returns[groups == group]) for group in range(int(groups.max()) + 1)])
    near = middle[groups] + (returns - middle[groups]).clip(-1, 1)
    return group_advantages(near.astype(np.float32), groups)


def ranks(returns: NDArray[np.float32], groups: NDArray[np.int64]) -> NDArray[np.float32]:
    """Each run's rank within its group, from -1 (the lowest return) to 1; equal returns share the mean of their ranks.

    What a point is worth differs from task to task, and a student that collapses would outweigh all others.

    >>> ranks(np.array([3, 1, 5, 2, 2], np.float32), np.array([0, 0, 1, 1, 1])).tolist()
    [1.0, -1.0, 1.0, -0.5, -0.5]
    """
    found = np.zeros(len(returns), np.float32)
    for group in range(int(groups.max()) + 1):
        own = groups == group
        found[own] = (2 * rankdata(returns[own]) - own.sum() - 1) / (own.sum() - 1)
    return found


ADVANTAGES: dict[str, Judge] = {"difference": group_advantages, "clipped": clipped_advantages, "rank": ranks}
