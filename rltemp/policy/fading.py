"""How a policy steps aside: outside what it has seen in training, a sample gets less of its action, and then none.

The range of each feature stands in the policy file, see `rltemp.policy.manifest`; a policy without ranges never fades.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rltemp.errors import BadInputError

MARGIN = 0.25
"""Over how much of a range's width the action falls to 0 beyond it.

A range is about six standard deviations wide, so that this is one and a half: as far as the mean of a new task may lie
off without a feature being strange. A network that was never asked there answers much as at the edge; a range's width
farther out nothing is known of it. At 0 the action would jump from one step to the next.
"""

OUTSIDE = 0.001
"""Share of the observations that lies below a range, and above it."""

LEAST_WIDTH = 1e-3
"""Of a range, in the feature's unit: one that was the same for all samples gets a range, too."""

Ranges = Sequence[tuple[float, float]]
"""Lowest and highest value of each feature."""


def fade(features: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How much of its action each sample keeps: 1 within all ranges, falling linearly to 0 over `MARGIN` beyond one.

    Args:
        features: `[..., F]`, as `featurize` computes them.
        low: `[F]`, in the same units.
        high: `[F]`, above `low`.

    Returns:
        `[...]`, 0..1, by the feature that is farthest out in widths of its range; nan where a feature is.

    >>> import torch
    >>> fade(torch.tensor([[0.5], [2.25], [9.0]]), torch.tensor([-2.0]), torch.tensor([2.0]))
    tensor([1.0000, 0.7500, 0.0000])
    """
    beyond = (low - features).maximum(features - high) / (high - low)
    return (1 - beyond.amax(-1) / MARGIN).clamp(0.0, 1.0)


def seen_ranges(observations: Tensor, names: Sequence[str]) -> Ranges:
    """The ranges of features that a policy saw: from the 0.1 % to the 99.9 % quantile of each.

    Every run goes from its start to its end, so that the progress has its whole range, -1 to 1.

    Args:
        observations: `[N, F]`, as `featurize` computes them; all finite.
        names: Of the features, in their order.

    Raises:
        BadInputError: Where the observations have another shape, are none, or are not finite.
    """
    if observations.ndim != 2 or observations.shape[1] != len(names) or not len(observations):
        raise BadInputError(f"ranges need observations [N, {len(names)}]; got {list(observations.shape)}")
    if not bool(observations.isfinite().all()):
        raise BadInputError("ranges need finite observations; leave out those of students that diverged")
    values = observations.detach().cpu().double().numpy()
    ends = np.quantile(values, (OUTSIDE, 1 - OUTSIDE), axis=0).T.tolist()
    return [
        (-1.0, 1.0) if name == "progress" else (low, max(high, low + LEAST_WIDTH))
        for name, (low, high) in zip(names, ends, strict=True)
    ]
