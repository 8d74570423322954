"""How often something safe stood in for what a rule would have answered, or a policy stepped aside."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import Tensor

from rltemp.kd.temperatures import Temperatures

log = logging.getLogger(__name__)

MUCH = 0.05
"""A larger share of guarded samples is worth a warning. A policy's ranges leave out a fifth of a percent a feature."""

TOLD_AT = frozenset(10**power for power in range(2, 10))
"""Calls after which a count is read and told: so rarely that nothing waits for it."""


@dataclass
class GuardCount:
    """Counts the samples that are `Temperatures.guarded`: a rule's guard stood in for its formula, or a policy faded.

    Attributes:
        calls: How often there was an answer.
    """

    calls: int = 0
    _samples: int | Tensor = 0
    _guarded: int | Tensor = 0  # on their device: no step waits for them

    def __call__(self, temperatures: Temperatures | None, mask: Tensor | None = None, name: str = "") -> None:
        """Count a step's, where it had some; of these, the samples that a mask leaves, off which nothing is guarded.

        With the rule's `name`, a large share is warned of now and then.
        """
        if temperatures is None:
            return
        self.calls += 1
        self._samples = self._samples + (temperatures.weight.numel() if mask is None else mask.sum())
        if temperatures.guarded is not None:
            self._guarded = self._guarded + temperatures.guarded.sum()
            if name and self.calls in TOLD_AT:
                warn_of_much(name, self.share)

    @property
    def samples(self) -> int:
        """How many samples so far."""
        return int(self._samples)

    @property
    def guarded(self) -> int:
        """How many of them were guarded."""
        return int(self._guarded)

    @property
    def share(self) -> float:
        """Of the samples so far, 0..1."""
        return self.guarded / max(self.samples, 1)


def warn_of_much(name: str, share: float) -> None:
    """Say so where a share of guarded samples is large."""
    if share > MUCH:
        log.warning(
            f"{name} was guarded on {100 * share:.1f} % of the samples: a policy keeps to its reference where it has "
            "seen nothing like them in training, a formula to a safe temperature where it has none, a teacher of which "
            "only the top is known to the highest that it can be softened by"
        )
