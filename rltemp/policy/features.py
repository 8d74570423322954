"""State features: what a policy sees of a sample; `FEATURES` at the foot names them, `featurize` computes them.

Every feature is invariant to a shift of the logits and to what a new task changes (the number of classes, where that
makes sense), lies roughly between -1 and 1 and is clipped to `LIMIT`. Features are computed in float32 on detached
logits. To add one: one function of `Statistics` (and of the network, 0 the student, 1 the teacher, where both have it),
one entry in `FEATURES`, one hand-worked test. Raise the version of an entry whenever its numbers change: policy files
carry it, and a policy of another version is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from rltemp.kd.method import PLAIN_TEMPERATURE
from rltemp.kd.names import lookup
from rltemp.kd.rowwise import rowwise
from rltemp.kd.signals import Signals
from rltemp.policy.logit_statistics import Statistics

LIMIT = 10.0
"""Observations lie in [-LIMIT, LIMIT]."""
LEAST_TOTAL = 1e-30
"""Stands in where the student has none of the classes that the teacher gives mass to."""


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
    return (mean - s.log_totals[network]) * (-2 / s.log_classes[network]) - 1


def divergence(s: Statistics) -> Tensor:
    """log(1 + KL(teacher || student)) at T = 1, minus 1; the KL in nats."""
    terms = s.terms[1].masked_fill(s.absent[0], 0.0)  # the teacher over the classes that the student has
    total = terms.sum(-1).clamp_(min=LEAST_TOTAL)
    kl = (terms * (s.below[1] - s.below[0])).sum(-1) / total + s.log_totals[0] - total.log()
    return kl.clamp(min=0.0).log1p() - 1


def agreement(s: Statistics) -> Tensor:
    """Where the teacher's choice stands in the student: its logit minus the student's best other, in deviations."""
    behind = s.below[0].gather(-1, s.largest[1][1]).squeeze(-1)
    return torch.where(behind < 0, behind, s.gaps[0]) / s.stds[0]  # its own choice has the second as best other


def loss(s: Statistics, network: int) -> Tensor:
    """log(1 + cross-entropy with the label), minus 1."""
    return _cross_entropy(s, network).log1p() - 1


def relative_loss(s: Statistics, network: int) -> Tensor:
    """Cross-entropy with the label over that of a uniform prediction, log C, minus 1."""
    return _cross_entropy(s, network) / s.log_classes[network] - 1


def gradient_ratio(s: Statistics) -> Tensor:
    """Natural logarithm of the gradient norm of plain distillation (T = 4) over that of cross-entropy, halved.

    Both on the student's logits, plus 0.05 each, so that a sample that is learned counts little.
    """
    softened = (s.below / PLAIN_TEMPERATURE).softmax(-1)
    plain = torch.linalg.vector_norm(softened[0] - softened[1], dim=-1) * PLAIN_TEMPERATURE
    true = (-_cross_entropy(s, 0)).exp()  # the probability of the label
    squared = (s.terms[0].square().sum(-1) / s.totals[0].square()) + 1 - 2 * true
    found: Tensor = ((plain + 0.05) / (squared.clamp_min(0.0).sqrt() + 0.05)).log() / 2
    return found


def class_count(s: Statistics) -> Tensor:
    """Natural logarithm of the number of the student's classes, halved, minus 1."""
    return s.log_classes[0] / 2 - 1


def _cross_entropy(s: Statistics, network: int) -> Tensor:
    """Of the label; where there are no labels the teacher's choice stands in."""
    label = s.largest[1][1] if s.labels is None else s.labels.unsqueeze(-1)
    return s.log_totals[network] - s.below[network].gather(-1, label).squeeze(-1)


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
        BadInputError: Where a feature needs the progress and the signals carry none, where a label is no class, or
            where a name is unknown.
    """
    wanted = [lookup(FEATURES, name, "feature") for name in names]
    computes = list(dict.fromkeys(feature.compute for feature in wanted))
    if any(feature.compute is progress for feature in wanted):
        signals.need_progress("the feature 'progress'")
    signals = signals.made_safe()

    def columns(student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        statistics = Statistics(student, teacher, labels, signals.progress)
        return tuple(compute(statistics) for compute in computes)

    labels = [] if signals.labels is None else [signals.labels]
    with torch.no_grad(), signals.labels_named():
        values = rowwise(columns, signals.student_logits, signals.teacher_logits, *labels)
        found = torch.stack(values, -1).clamp_(-LIMIT, LIMIT)
        if [feature.compute for feature in wanted] != computes or any(feature.over != "sample" for feature in wanted):
            own = dict(zip(computes, found.unbind(-1), strict=True))
            found = torch.stack([_over(feature.over, own[feature.compute], signals) for feature in wanted], -1)
            found = found.clamp_(-LIMIT, LIMIT)
        return found if signals.mask is None else found.masked_fill_(~signals.mask.unsqueeze(-1), 0.0)


def _over(over: Over, values: Tensor, signals: Signals) -> Tensor:
    """A feature's values `[...]` as the feature has them: a sample's own, the mean over its batch, or what is left."""
    if over == "sample":
        return values
    mean = signals.of_batches(signals.means(values))
    return mean if over == "batch" else values - mean


Over = Literal["sample", "batch", "deviation"]
"""What a column shows: a sample's own value, the mean over its batch, or the sample's deviation from that mean."""


@dataclass(frozen=True)
class Feature:
    """An entry of the feature table: how to compute it, its unit, the version of its definition, over what."""

    compute: Callable[[Statistics], Tensor]
    unit: str
    version: int = 1
    over: Over = "sample"


_OF_SAMPLES: dict[str, Feature] = {
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
    "student_loss": Feature(partial(loss, network=0), "log nats"),
    "teacher_loss": Feature(partial(loss, network=1), "log nats"),
    "student_top_probability": Feature(partial(top_probability, network=0), "probability"),
    "teacher_top_probability": Feature(partial(top_probability, network=1), "probability"),
    "student_probability_margin": Feature(student_probability_margin, "probability"),
    "student_relative_loss": Feature(partial(relative_loss, network=0), "fraction of log C"),
    "teacher_relative_loss": Feature(partial(relative_loss, network=1), "fraction of log C"),
    "gradient_ratio": Feature(gradient_ratio, "log ratio"),
    "class_count": Feature(class_count, "log classes"),
}

FEATURES: dict[str, Feature] = _OF_SAMPLES | {
    f"{over}_{name}": replace(feature, over=over)
    for over in get_args(Over)[1:]
    for name, feature in _OF_SAMPLES.items()
    if name not in ("progress", "class_count")  # the same for all samples
}
"""Every feature by name; `batch_NAME` is the mean of NAME over the batch, `deviation_NAME` a sample's own less that."""

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

UNIVERSAL_FEATURES = (
    "progress",
    "class_count",
    "batch_student_relative_loss",
    "batch_teacher_relative_loss",
    "batch_student_spread",
    "batch_teacher_spread",
    "batch_divergence",
    "batch_agreement",
    "batch_student_entropy",
    "batch_teacher_entropy",
    "batch_gradient_ratio",
    "deviation_student_loss",
    "deviation_teacher_loss",
    "deviation_divergence",
    "deviation_student_margin",
    "deviation_teacher_margin",
    "deviation_agreement",
    "deviation_teacher_entropy",
    "deviation_gradient_ratio",
)
"""What `universal` sees: how far the run and its batch have come, and in what a sample differs from its batch."""

RLKD_FEATURES = ("student_top_probability", "teacher_top_probability", "student_probability_margin")
"""The state of RLKD: two confidences and the student's uncertainty."""
