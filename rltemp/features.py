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
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rltemp.blocks import rowwise
from rltemp.divergences import log_softmax
from rltemp.errors import BadInputError
from rltemp.names import lookup
from rltemp.types import Signals

LIMIT = 10.0
"""Observations lie in [-LIMIT, LIMIT]."""


Value = TypeVar("Value")


class _Once(Generic[Value]):
    """A property that is computed once; the one of `functools` takes a lock, which torch.compile cannot follow."""

    def __init__(self, compute: Callable[[Statistics], Value]) -> None:
        self.compute = compute

    def __set_name__(self, owner: type[Statistics], name: str) -> None:
        self.name = name

    def __get__(self, statistics: Statistics, owner: type[Statistics]) -> Value:
        value = self.compute(statistics)
        setattr(statistics, self.name, value)  # found before this descriptor from now on
        return value


class Statistics:
    """What several features share of a batch of logits, each computed once and only if asked for.

    `pair` holds the student's and the teacher's logits in float32 without a graph, `[2, ..., C]`: at a hundred classes
    an operation costs little more on both than on one.
    """

    def __init__(
        self, student: Tensor, teacher: Tensor, labels: Tensor | None = None, progress: float | Tensor = 0.0
    ) -> None:
        self.pair = torch.stack([student.detach().float(), teacher.detach().float()])
        self.student, self.teacher = self.pair.unbind(0)
        self.progress = progress
        self._labels = labels

    @_Once
    def largest(self) -> tuple[Tensor, Tensor]:
        """The largest logits of both, and where they stand, `[2, ..., 1]` each."""
        values, indices = self.pair.max(-1, keepdim=True)  # a third of the time of `topk`
        return values, indices

    @_Once
    def margins(self) -> tuple[Tensor, ...]:
        """The largest minus the second logit, in standard deviations, minus 1, of both, `[...]`."""
        values, indices = self.largest
        others = self.pair.scatter(-1, indices, -math.inf).amax(-1)
        return ((values.squeeze(-1) - others) / self._stds).sub_(1).unbind(0)

    @_Once
    def spreads(self) -> tuple[Tensor, ...]:
        """Natural logarithm of the standard deviation of the logits, halved, of both, `[...]`."""
        return self._stds.log().mul_(0.5).unbind(0)

    @_Once
    def stds(self) -> tuple[Tensor, ...]:
        """Standard deviation of the logits, of both, `[...]`."""
        return self._stds.unbind(0)

    @_Once
    def _stds(self) -> Tensor:
        # Not torch's `std`, which takes ten times as long. The floor keeps constant logits finite: their margin is 0
        # and their spread a very negative, clipped number.
        centred = self.pair - self.pair.mean(-1, keepdim=True)
        return centred.square_().mean(-1).sqrt_().clamp_min_(1e-6)

    @_Once
    def log_probs(self) -> tuple[Tensor, ...]:
        """Log-probabilities at T = 1, of both, `[..., C]`."""
        return log_softmax(self.pair).unbind(0)

    @_Once
    def probs(self) -> tuple[Tensor, ...]:
        """Probabilities at T = 1, of both, `[..., C]`."""
        return tuple(each.exp() for each in self.log_probs)

    @property
    def labels(self) -> Tensor:
        """Labels, `[...]`; an error where the signals carry none."""
        if self._labels is None:
            raise BadInputError("this policy's features need labels; the signals carry none")
        return self._labels


def progress(s: Statistics) -> Tensor:
    """How much of the run is done, from -1 (first step) to 1 (end)."""
    value = 2 * s.progress - 1
    if isinstance(value, Tensor):
        return value.to(s.student).reshape(()).expand(s.student.shape[:-1])
    return s.student.new_full(s.student.shape[:-1], value)


def student_margin(s: Statistics) -> Tensor:
    """The student's largest logit minus its second, in standard deviations of its logits, minus 1."""
    return s.margins[0]


def teacher_margin(s: Statistics) -> Tensor:
    """The teacher's largest logit minus its second, in standard deviations of its logits, minus 1."""
    return s.margins[1]


def student_spread(s: Statistics) -> Tensor:
    """Natural logarithm of the standard deviation of the student's logits, halved."""
    return s.spreads[0]


def teacher_spread(s: Statistics) -> Tensor:
    """Natural logarithm of the standard deviation of the teacher's logits, halved."""
    return s.spreads[1]


def relative_spread(s: Statistics) -> Tensor:
    """Natural logarithm of the student's over the teacher's standard deviation of logits, halved.

    Unlike the two spreads themselves it does not tell which task it is: what scales both leaves it alone.
    """
    return (s.stds[0] / s.stds[1]).log() / 2


def student_entropy(s: Statistics) -> Tensor:
    """Entropy of the student's prediction over its maximum log C, from -1 (certain) to 1 (uniform)."""
    return _entropy(s, 0)


def teacher_entropy(s: Statistics) -> Tensor:
    """Entropy of the teacher's prediction over its maximum log C, from -1 (certain) to 1 (uniform)."""
    return _entropy(s, 1)


def divergence(s: Statistics) -> Tensor:
    """log(1 + KL(teacher || student)) at T = 1, minus 1; the KL in nats."""
    student, teacher = s.log_probs
    kl = (s.probs[1] * (teacher - student)).sum(-1)
    return kl.clamp_min(0).log1p() - 1


def agreement(s: Statistics) -> Tensor:
    """Where the teacher's choice stands in the student: its logit minus the student's best other, in deviations."""
    chosen = s.largest[1][1]
    others = s.student.scatter(-1, chosen, -math.inf).amax(-1)
    return (s.student.gather(-1, chosen).squeeze(-1) - others) / s.stds[0]


def student_loss(s: Statistics) -> Tensor:
    """log(1 + cross-entropy of the student with the label), minus 1; needs labels."""
    return _nll(s.log_probs[0], s.labels).log1p() - 1


def teacher_loss(s: Statistics) -> Tensor:
    """log(1 + cross-entropy of the teacher with the label), minus 1; needs labels."""
    return _nll(s.log_probs[1], s.labels).log1p() - 1


def student_top_probability(s: Statistics) -> Tensor:
    """The student's largest probability at T = 1.

    With the two below the state of RLKD, Zhang et al. (2024), https://arxiv.org/abs/2407.00115, as the authors' code
    and page have it (the paper's text was not read), but for a slip in that code: see `student_probability_margin`.
    """
    return s.log_probs[0].amax(-1).exp()


def teacher_top_probability(s: Statistics) -> Tensor:
    """The teacher's largest probability at T = 1."""
    return s.log_probs[1].amax(-1).exp()


def student_probability_margin(s: Statistics) -> Tensor:
    """The student's largest probability minus its second largest, at T = 1: near 0 where it is unsure.

    RLKD's released code subtracts the second *smallest*, which repeats the largest as soon as classes are many.
    """
    largest = s.largest[1][0]
    return s.probs[0].gather(-1, largest).squeeze(-1) - s.probs[0].scatter(-1, largest, 0.0).amax(-1)


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
    computes = [lookup(FEATURES, name, "feature").compute for name in names]

    def columns(student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        statistics = Statistics(student, teacher, labels, signals.progress)
        return tuple(compute(statistics) for compute in computes)

    inputs = [signals.student_logits, signals.teacher_logits]
    with torch.no_grad():
        found = rowwise(columns, *inputs, *([] if signals.labels is None else [signals.labels]))
        return torch.stack(found, -1).clamp_(-LIMIT, LIMIT)


def _entropy(s: Statistics, network: int) -> Tensor:
    negative = (s.probs[network] * s.log_probs[network]).sum(-1)
    classes = s.pair.shape[-1]
    if torch.compiler.is_compiling():  # the number of classes may be a variable, of which `math` would make a constant
        return negative * (-2 / s.pair.new_full((), classes).log()) - 1
    return negative.mul_(-2 / math.log(classes)).sub_(1)


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
