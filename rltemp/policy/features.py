"""State features: what a policy sees of a sample; `FEATURES` at the foot names them, `featurize` computes them.

Every feature is invariant to a shift of the logits and to what a new task changes (the number of classes, where that
makes sense), lies roughly between -1 and 1 and is clipped to `LIMIT`. Features are computed in float32 on detached
logits. To add one: one function of `Statistics` (and of the network, 0 the student, 1 the teacher, where both have it),
one entry in `FEATURES`, one hand-worked test. Raise the version of an entry whenever its numbers change: policy files
carry it, and a policy of another version is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.names import lookup
from rltemp.kd.rowwise import paired, rowwise
from rltemp.kd.signals import Signals

LIMIT = 10.0
"""Observations lie in [-LIMIT, LIMIT]."""

LOWEST = -3.4e38
"""About the lowest float32: the difference of two finite logits can be below it."""


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

    Nearly all of it is computed on the student's and the teacher's logits at once: at a hundred classes an operation
    costs little more on both than on one.
    """

    def __init__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, progress: float | Tensor) -> None:
        self.pair = paired(student.detach().float(), teacher.detach().float())
        self.progress = progress
        self.labels = labels

    @_Once
    def largest(self) -> tuple[Tensor, Tensor]:
        """The largest logits of both and where they stand, the first where several are equal, `[2, ..., 1]` each."""
        values, places = self.pair.max(-1, keepdim=True)
        return values, places

    @_Once
    def below(self) -> Tensor:
        """The logits of both less their largest, `[2, ..., C]`: at most 0, and finite where the logits are."""
        return (self.pair - self.largest[0]).clamp_min_(LOWEST)

    @_Once
    def gaps(self) -> Tensor:
        """The largest minus the second logit, of both, `[2, ...]`."""
        return -self.below.scatter(-1, self.largest[1], -math.inf).amax(-1)

    @_Once
    def margins(self) -> Tensor:
        """The largest minus the second logit, in standard deviations, minus 1, of both, `[2, ...]`."""
        return self.gaps / self.stds - 1

    @_Once
    def log_stds(self) -> Tensor:
        """Natural logarithm of the standard deviation of the logits, halved, of both, `[2, ...]`."""
        return self.stds.log() * 0.5

    @_Once
    def stds(self) -> Tensor:
        """Standard deviation of the logits, of both, `[2, ...]`."""
        # Not torch's `std`, which takes ten times as long. The floor keeps constant logits finite: their margin is 0
        # and the logarithm of their deviation a very negative, clipped number.
        classes = self.pair.shape[-1]
        centred = self.below - self.below.sum(-1, keepdim=True).div_(classes)
        norm: Tensor = torch.linalg.vector_norm(centred, dim=-1)
        return norm.mul_(classes**-0.5).clamp_(1e-6, -LOWEST)

    @_Once
    def terms(self) -> Tensor:
        """The numerators of the softmax at T = 1, the largest of which is 1, of both, `[2, ..., C]`."""
        return self.below.exp()

    @_Once
    def totals(self) -> Tensor:
        """The denominators of the softmax at T = 1, of both, `[2, ...]`."""
        return self.terms.sum(-1)

    @_Once
    def log_totals(self) -> Tensor:
        """Their logarithms: minus the log-probability of the largest logit, of both, `[2, ...]`."""
        return self.totals.log()


def progress(s: Statistics) -> Tensor:
    """How much of the run is done, from -1 (first step) to 1 (end)."""
    moved = 2 * s.progress - 1
    shape = s.pair.shape[1:-1]
    return moved.to(s.pair).reshape(()).expand(shape) if isinstance(moved, Tensor) else s.pair.new_full(shape, moved)


def margin(s: Statistics, network: int) -> Tensor:
    """The largest logit minus the second, in standard deviations of the logits, minus 1."""
    return s.margins[network]


def spread(s: Statistics, network: int) -> Tensor:
    """Natural logarithm of the standard deviation of the logits, halved."""
    return s.log_stds[network]


def relative_spread(s: Statistics) -> Tensor:
    """Natural logarithm of the student's over the teacher's standard deviation of logits, halved.

    Unlike the two deviations themselves it does not tell which task it is: what scales both leaves it alone.
    """
    return (s.stds[0] / s.stds[1]).log() / 2


def entropy(s: Statistics, network: int) -> Tensor:
    """Entropy of the prediction over its maximum log C, from -1 (certain) to 1 (uniform)."""
    mean = (s.terms[network] * s.below[network]).sum(-1) / s.totals[network]
    negative, classes = mean - s.log_totals[network], s.pair.shape[-1]
    if torch.compiler.is_compiling():  # the number of classes may be a variable, of which `math` would make a constant
        return negative * (-2 / s.pair.new_full((), classes).log()) - 1
    return negative * (-2 / math.log(classes)) - 1


def divergence(s: Statistics) -> Tensor:
    """log(1 + KL(teacher || student)) at T = 1, minus 1; the KL in nats."""
    mean = (s.terms[1] * (s.below[1] - s.below[0])).sum(-1) / s.totals[1]
    kl = mean + s.log_totals[0] - s.log_totals[1]
    return kl.clamp(min=0.0).log1p() - 1


def agreement(s: Statistics) -> Tensor:
    """Where the teacher's choice stands in the student: its logit minus the student's best other, in deviations."""
    behind = s.below[0].gather(-1, s.largest[1][1]).squeeze(-1)
    return torch.where(behind < 0, behind, s.gaps[0]) / s.stds[0]  # its own choice has the second as best other


def loss(s: Statistics, network: int) -> Tensor:
    """log(1 + cross-entropy with the label), minus 1; needs labels."""
    if s.labels is None:
        raise BadInputError("this policy's features need labels; the signals carry none")
    of_label = s.below[network].gather(-1, s.labels.unsqueeze(-1)).squeeze(-1) - s.log_totals[network]
    return (-of_label).log1p() - 1


def top_probability(s: Statistics, network: int) -> Tensor:
    """The largest probability at T = 1.

    With the one below the state of RLKD, Zhang et al. (2024), https://arxiv.org/abs/2407.00115, as the authors' code
    and page have it (the paper's text was not read), but for a slip in that code: see `student_probability_margin`.
    """
    return 1 / s.totals[network]


def student_probability_margin(s: Statistics) -> Tensor:
    """The student's largest probability minus its second largest, at T = 1: near 0 where it is unsure.

    RLKD's released code subtracts the second *smallest*, which repeats the largest as soon as classes are many.
    """
    return (-s.gaps[0]).expm1() / -s.totals[0]


def featurize(signals: Signals, names: Sequence[str]) -> Tensor:
    """Compute the named features of every sample.

    Args:
        signals: Logits `[..., C]`.
        names: Entries of `FEATURES`, in the order of the columns.

    Returns:
        `[..., F]`, float32, no graph, within [-LIMIT, LIMIT]; 0 where the mask has no sample.

    Raises:
        BadInputError: Where a feature needs labels or the progress and the signals carry none, where a label is no
            class, or where a name is unknown.
    """
    if (mask := signals.mask) is not None:
        found = featurize(replace(signals.made_safe(), mask=None), names)
        return found.masked_fill_(~mask.unsqueeze(-1), 0.0)
    computes = [lookup(FEATURES, name, "feature").compute for name in names]
    if "progress" in names:
        signals.need_progress("the feature 'progress'")

    def columns(student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        statistics = Statistics(student, teacher, labels, signals.progress)
        return tuple(compute(statistics) for compute in computes)

    labels = [] if signals.labels is None else [signals.labels]
    with torch.no_grad(), signals.labels_named():
        of_samples = rowwise(columns, signals.student_logits, signals.teacher_logits, *labels)
        return torch.stack(of_samples, -1).clamp_(-LIMIT, LIMIT)


@dataclass(frozen=True)
class Feature:
    """An entry of the feature table: how to compute it, its unit, the version of its definition, if it needs labels."""

    compute: Callable[[Statistics], Tensor]
    unit: str
    version: int = 1
    uses_labels: bool = False


FEATURES: dict[str, Feature] = {
    "progress": Feature(progress, "fraction of the run"),
    "student_margin": Feature(partial(margin, network=0), "deviations"),
    "teacher_margin": Feature(partial(margin, network=1), "deviations"),
    "student_spread": Feature(partial(spread, network=0), "log logits"),
    "teacher_spread": Feature(partial(spread, network=1), "log logits"),
    "relative_spread": Feature(relative_spread, "log ratio"),
    "student_entropy": Feature(partial(entropy, network=0), "fraction of log C"),
    "teacher_entropy": Feature(partial(entropy, network=1), "fraction of log C"),
    "divergence": Feature(divergence, "log nats"),
    "agreement": Feature(agreement, "deviations"),
    "student_loss": Feature(partial(loss, network=0), "log nats", uses_labels=True),
    "teacher_loss": Feature(partial(loss, network=1), "log nats", uses_labels=True),
    "student_top_probability": Feature(partial(top_probability, network=0), "probability"),
    "teacher_top_probability": Feature(partial(top_probability, network=1), "probability"),
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
