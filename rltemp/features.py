"""State features: what a policy sees of a sample; `FEATURES` at the foot names them, `featurize` computes them.

Every feature is invariant to a shift of the logits and to what a new task changes (the number of classes, where that
makes sense), lies roughly between -1 and 1 and is clipped to `LIMIT`. Features are computed in float32 on detached
logits. To add one: one function of `Statistics`, one entry in `FEATURES`, one hand-worked test. Raise the version of
an entry whenever its numbers change: policy files carry it, and a policy of another version is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rltemp.divergences import log_softmax
from rltemp.errors import BadInputError
from rltemp.names import lookup
from rltemp.types import Signals

LIMIT = 10.0
"""Observations lie in [-LIMIT, LIMIT]."""


class Statistics:
    """What several features share of a batch of signals, each computed once and only if asked for.

    `student` and `teacher` are the logits in float32 without a graph, `[..., C]`.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self.student = signals.student_logits.detach().float()
        self.teacher = signals.teacher_logits.detach().float()

    @cached_property
    def student_log_probs(self) -> Tensor:
        """Log-probabilities of the student at T = 1, `[..., C]`."""
        return log_softmax(self.student)

    @cached_property
    def teacher_log_probs(self) -> Tensor:
        """Log-probabilities of the teacher at T = 1, `[..., C]`."""
        return log_softmax(self.teacher)

    @cached_property
    def teacher_probs(self) -> Tensor:
        """Probabilities of the teacher at T = 1, `[..., C]`."""
        return self.teacher_log_probs.exp()

    @cached_property
    def student_std(self) -> Tensor:
        """Standard deviation of the student's logits, `[...]`."""
        return _spread(self.student)

    @cached_property
    def teacher_std(self) -> Tensor:
        """Standard deviation of the teacher's logits, `[...]`."""
        return _spread(self.teacher)

    @property
    def labels(self) -> Tensor:
        """Labels, `[...]`; an error where the signals carry none."""
        if self.signals.labels is None:
            raise BadInputError("this policy's features need labels; the signals carry none")
        return self.signals.labels


def progress(s: Statistics) -> Tensor:
    """How much of the run is done, from -1 (first step) to 1 (end)."""
    return s.signals.full(2 * s.signals.progress - 1).float()


def student_margin(s: Statistics) -> Tensor:
    """The student's largest logit minus its second, in standard deviations of its logits, minus 1."""
    return _margin(s.student) / s.student_std - 1


def teacher_margin(s: Statistics) -> Tensor:
    """The teacher's largest logit minus its second, in standard deviations of its logits, minus 1."""
    return _margin(s.teacher) / s.teacher_std - 1


def student_spread(s: Statistics) -> Tensor:
    """Natural logarithm of the standard deviation of the student's logits, halved."""
    return s.student_std.log() / 2


def teacher_spread(s: Statistics) -> Tensor:
    """Natural logarithm of the standard deviation of the teacher's logits, halved."""
    return s.teacher_std.log() / 2


def relative_spread(s: Statistics) -> Tensor:
    """Natural logarithm of the student's over the teacher's standard deviation of logits, halved.

    Unlike the two spreads themselves it does not tell which task it is: what scales both leaves it alone.
    """
    return (s.student_std / s.teacher_std).log() / 2


def student_entropy(s: Statistics) -> Tensor:
    """Entropy of the student's prediction over its maximum log C, from -1 (certain) to 1 (uniform)."""
    return _entropy(s.student_log_probs)


def teacher_entropy(s: Statistics) -> Tensor:
    """Entropy of the teacher's prediction over its maximum log C, from -1 (certain) to 1 (uniform)."""
    return _entropy(s.teacher_log_probs)


def divergence(s: Statistics) -> Tensor:
    """log(1 + KL(teacher || student)) at T = 1, minus 1; the KL in nats."""
    kl = (s.teacher_probs * (s.teacher_log_probs - s.student_log_probs)).sum(-1)
    return kl.clamp_min(0).log1p() - 1


def agreement(s: Statistics) -> Tensor:
    """Where the teacher's choice stands in the student: its logit minus the student's best other, in deviations."""
    chosen = s.teacher.argmax(-1, keepdim=True)
    return _margin_of(s.student, chosen) / s.student_std


def student_loss(s: Statistics) -> Tensor:
    """log(1 + cross-entropy of the student with the label), minus 1; needs labels."""
    return _nll(s.student_log_probs, s.labels).log1p() - 1


def teacher_loss(s: Statistics) -> Tensor:
    """log(1 + cross-entropy of the teacher with the label), minus 1; needs labels."""
    return _nll(s.teacher_log_probs, s.labels).log1p() - 1


def student_top_probability(s: Statistics) -> Tensor:
    """The student's largest probability at T = 1.

    With the two below the state of RLKD, Zhang et al. (2024), https://arxiv.org/abs/2407.00115, as the authors' code
    and page have it (the paper's text was not read), but for a slip in that code: see `student_probability_margin`.
    """
    return s.student_log_probs.amax(-1).exp()


def teacher_top_probability(s: Statistics) -> Tensor:
    """The teacher's largest probability at T = 1."""
    return s.teacher_log_probs.amax(-1).exp()


def student_probability_margin(s: Statistics) -> Tensor:
    """The student's largest probability minus its second largest, at T = 1: near 0 where it is unsure.

    RLKD's released code subtracts the second *smallest*, which repeats the largest as soon as classes are many.
    """
    return _margin(s.student_log_probs.exp())


def featurize(signals: Signals, names: Sequence[str]) -> Tensor:
    """Compute the named features of every sample.

    Args:
        signals: Logits `[..., C]`.
        names: Entries of `FEATURES`, in the order of the columns.

    Returns:
        `[..., F]`, float32, no graph, within [-LIMIT, LIMIT].

    Raises:
        BadInputError: Where a feature needs labels and there are none, or a name is unknown.
    """
    with torch.no_grad():
        statistics = Statistics(signals)
        columns = [lookup(FEATURES, name, "feature").compute(statistics) for name in names]
        return torch.stack(columns, -1).clamp_(-LIMIT, LIMIT)


def _margin(logits: Tensor) -> Tensor:
    return _margin_of(logits, logits.max(-1, keepdim=True).indices)  # a third of the time of `topk`


def _margin_of(logits: Tensor, index: Tensor) -> Tensor:
    others = logits.scatter(-1, index, -math.inf).amax(-1)
    return logits.gather(-1, index).squeeze(-1) - others


def _spread(logits: Tensor) -> Tensor:
    # Not torch's `std`, which takes ten times as long. The floor keeps constant logits finite: their margin is 0 and
    # their spread a very negative, clipped number.
    centred = logits - logits.mean(-1, keepdim=True)
    return centred.square_().mean(-1).sqrt_().clamp_min(1e-6)


def _entropy(log_probs: Tensor) -> Tensor:
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return 2 * entropy / math.log(log_probs.shape[-1]) - 1


def _nll(log_probs: Tensor, labels: Tensor) -> Tensor:
    return -log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Feature:
    """An entry of the feature table: how to compute it, its unit and the version of its definition."""

    compute: Callable[[Statistics], Tensor]
    unit: str
    version: int = 1


FEATURES: dict[str, Feature] = {
    "progress": Feature(progress, "fraction of the run"),
    "student_margin": Feature(student_margin, "deviations"),
    "teacher_margin": Feature(teacher_margin, "deviations"),
    "student_spread": Feature(student_spread, "log logits"),
    "teacher_spread": Feature(teacher_spread, "log logits"),
    "relative_spread": Feature(relative_spread, "log ratio"),
    "student_entropy": Feature(student_entropy, "fraction of log C"),
    "teacher_entropy": Feature(teacher_entropy, "fraction of log C"),
    "divergence": Feature(divergence, "log nats"),
    "agreement": Feature(agreement, "deviations"),
    "student_loss": Feature(student_loss, "log nats"),
    "teacher_loss": Feature(teacher_loss, "log nats"),
    "student_top_probability": Feature(student_top_probability, "probability"),
    "teacher_top_probability": Feature(teacher_top_probability, "probability"),
    "student_probability_margin": Feature(student_probability_margin, "probability"),
}

DEFAULT_FEATURES = (
    "progress",
    "student_margin",
    "teacher_margin",
    "student_spread",
    "teacher_spread",
    "student_entropy",
    "divergence",
    "agreement",
)
"""What a policy sees unless it is told otherwise: no labels needed."""

RLKD_FEATURES = ("student_top_probability", "teacher_top_probability", "student_probability_margin")
"""The state of RLKD: two confidences and the student's uncertainty."""
