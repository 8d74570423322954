"""What a temperature is rewarded for: a student's progress on probe data.

A *potential* measures how good a student is, on probe samples, in eval mode, without any temperature in it (a
reward that contains its own temperature is maximised by the temperature alone). A step's reward is the
potential's change, so a run's rewards sum to its whole improvement.

To add a potential: a `PotentialFunction`, and entries in `POTENTIALS`, `WORST` and `BEST`.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Potential = Literal["margin", "log_odds", "log_likelihood", "accuracy"]
"""Names of `POTENTIALS`."""

MARGIN_SLOPE = 20.0
"""Slope of the smooth accuracy, per standard deviation of a sample's logits."""


class PotentialFunction(Protocol):
    """From probe logits and labels to one number a student."""

    def __call__(self, logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
        """Measure students.

        Args:
            logits: `[..., N, C]`.
            labels: `[N]` or `[..., N]`.
            mask: Likewise, bool: False where there is no sample; what stands there changes nothing. None: all are.

        Returns:
            `[...]`; nan where a mask leaves no sample.
        """
        ...


def margin(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """A smooth accuracy: the mean sigmoid of a steep multiple of the true class's standardised margin.

    It does not see the scale of the logits, which temperatures change without changing a single prediction. Between 0
    and 1; arguments as `PotentialFunction` has them.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    standardised = centred / centred.square().mean(-1, keepdim=True).clamp_min(1e-12).sqrt()
    index = _index(logits, labels, mask)
    true = standardised.gather(-1, index).squeeze(-1)
    best_other = standardised.scatter(-1, index, -torch.inf).amax(-1)
    return _mean(torch.sigmoid(MARGIN_SLOPE * (true - best_other)), mask)


def log_likelihood(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean log-probability of the labels at T = 1, in nats, at most 0; arguments as in `margin`."""
    return _mean(F.log_softmax(logits, -1).gather(-1, _index(logits, labels, mask)).squeeze(-1), mask)


def log_odds(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """The log-odds of the smooth accuracy `margin`: between tasks, a point at 97 % is worth more than one at 50 %.

    Without it the tasks on which students know little decide what a policy of many tasks learns, and a student that
    collapses costs no more than they gain. Between -6.9 and 6.9 (0.1 and 99.9 %); arguments as in `margin`.
    """
    accuracy = margin(logits, labels, mask).clamp(0.001, 0.999)
    return torch.log(accuracy / (1 - accuracy))


def accuracy(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """The share of samples that are predicted right, between 0 and 1; shapes as in `margin`, which is less noisy.

    It stands for every metric between 0 and 1 that a loop of somebody else's measures itself.
    """
    return _mean((logits.argmax(-1) == labels).float(), mask)


def _index(logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    """The labels to gather by, `[..., N, 1]`; 0 where the mask has no sample."""
    classes = labels if mask is None else labels.where(mask, 0)
    return classes.expand(logits.shape[:-1]).unsqueeze(-1)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean(-1)
    kept = mask.expand(values.shape)
    return values.where(kept, 0.0).sum(-1) / kept.sum(-1)


POTENTIALS: dict[str, PotentialFunction] = {
    "margin": margin,
    "log_odds": log_odds,
    "log_likelihood": log_likelihood,
    "accuracy": accuracy,
}

WORST: dict[str, float] = {"margin": 0.0, "log_odds": -6.9, "log_likelihood": -20.0, "accuracy": 0.0}
"""No potential is below this; that of a student whose numbers are not finite."""

BEST: dict[str, float] = {"margin": 1.0, "log_odds": 6.91, "log_likelihood": 0.0, "accuracy": 1.0}
"""No potential is above this."""


def bounded(potential: Tensor, metric: str) -> Tensor:
    """The potential of each student; the worst for one that is lost, whether its number is finite or not."""
    worst = WORST[metric]
    return torch.where(potential.isfinite(), potential.clamp_min(worst), worst)
