"""Rules of how sure the networks are of a sample: CIST, entropy, and gates that answer the weight alone.

Their temperatures and weights are constants of the graph, except the student's temperature by CIST. A gate has T = 1
for every sample: what it leaves out has weight 0, and what it keeps 1.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import fraction, positive
from rltemp.kd.classes import ABSENT, bounded_logits, class_count, mean_over
from rltemp.kd.divergences import entropy as entropy_in_nats
from rltemp.kd.divergences import forward_kl
from rltemp.kd.names import lookup
from rltemp.kd.rowwise import rowwise
from rltemp.kd.signals import Signals
from rltemp.kd.temperature_rule import TemperatureRule, per_batch, per_sample
from rltemp.kd.temperatures import Temperatures

LOWEST_HEIGHT = 0.01
"""Logits whose largest is less above their mean are taken to have it so far above: a temperature stays above zero."""


def cist(ratio: float = 2.0) -> TemperatureRule:
    """Give each network the temperature at which its largest logit is the same: DTKD's aim, without a shared sum.

    Only the abstract of the source and a digest were read: the formula is inferred from them, the ratio is ours, and so
    are centring and guard. The source also weighs by the teacher's confidence and the student's difficulty, in a
    formula that we do not know: that is left out.

    Formula: T_t = max u / ratio, T_s = max v / ratio, weight T_t T_s; u, v the logits of teacher and student less
    their mean. Gradient flows through max v, as in DTKD's code, but not through the weight.
    Source: inferred from the abstract of CIST (2026), https://arxiv.org/abs/2605.20357.
    Labels: no
    Bounds: 0.005 to inf
    Invariant: shift, equivariant
    Guard: a largest logit less than 0.01 above the mean counts as 0.01.

    Args:
        ratio: What the largest of the softened, centred logits is, > 0.
    """
    value = positive(ratio, "cist", "ratio")

    # Were T_s a constant, a student that is too sharp would shrink its logits, and T_s with them, without end.
    @per_sample
    def rule(signals: Signals) -> Temperatures:
        heights = [rowwise(_height, each) for each in (signals.student_logits, signals.teacher_logits.detach())]
        student, teacher = (height.clamp(min=LOWEST_HEIGHT) / value for height in heights)
        return Temperatures(student, teacher, student.detach() * teacher, torch.minimum(*heights) < LOWEST_HEIGHT)

    return rule


def entropy(sure: float = 2.0, unsure: float = 6.0) -> TemperatureRule:
    """Move the temperature with the teacher's entropy: up where it is unsure, or down, with `sure` above `unsure`.

    Only the abstract of the source was read, which has no formula: the straight line and its ends are ours. The source
    also orders samples by their entropy, which is left out.

    Formula: T = sure + (unsure - sure) H / log C, weight T^2; H the entropy of the teacher's distribution at T = 1.
    Source: inferred from the abstract of EGAD (2026), https://arxiv.org/abs/2605.01732.
    Labels: no
    Bounds: 2 to 6
    Invariant: shift
    Guard: none.

    Args:
        sure: T where the teacher is certain, > 0.
        unsure: T where it knows nothing, > 0.
    """
    low, high = positive(sure, "entropy", "sure"), positive(unsure, "entropy", "unsure")

    @per_sample
    def rule(signals: Signals) -> Temperatures:
        temperature = low + (high - low) * rowwise(_entropy, signals.teacher_logits.detach())
        return Temperatures(temperature, temperature, temperature.square())

    return rule


def entropy_gate(
    lowest: float = 0.2, highest: float = 1.0, network: Literal["teacher", "student"] = "teacher"
) -> TemperatureRule:
    """Leave out the samples on which a network is too sure, or too unsure: weight 0 or 1, at T = 1.

    The source takes the reverse divergence below its threshold, and adds the forward one over the teacher's largest
    classes above. Here what the gate leaves out has the labels alone.

    Formula: T = 1, weight 1 where lowest <= H / log C <= highest, 0 elsewhere; H the network's entropy at T = 1.
    Source: inferred from the abstract of EOPD (2026), https://arxiv.org/abs/2603.07079; the threshold is ours.
    Labels: no
    Bounds: 1 to 1
    Invariant: shift
    Guard: none.

    Args:
        lowest: Of what is kept, 0..1.
        highest: Likewise, 0..1; the other sign is `lowest=0,highest=0.2`.
        network: Whose entropy.
    """
    low, high = fraction(lowest, "entropy_gate", "lowest"), fraction(highest, "entropy_gate", "highest")
    if low >= high:
        raise BadInputError(f"entropy_gate: lowest must be below highest; got {lowest} and {highest}")
    logits = lookup({"teacher": "teacher_logits", "student": "student_logits"}, network, "network")

    @per_sample
    def rule(signals: Signals) -> Temperatures:
        found = rowwise(_entropy, getattr(signals, logits).detach())
        return _gate(signals, (found >= low) & (found <= high))

    return rule


def tip(share: float = 0.5) -> TemperatureRule:
    """Keep the part of the batch on which the student is unsure or far from its teacher: weight 0 or 1, at T = 1.

    Which divergence the source takes was not read; here it is KL.

    Formula: T = 1, weight 1 on the `share` of the batch with the highest 1 - (1 - h)(1 - d), 0 elsewhere; h the
    student's entropy, d the divergence from the teacher at T = 1, both from 0 to 1 over the batch.
    Source: the equations of TIP (2026), https://arxiv.org/abs/2604.14084.
    Labels: no
    Bounds: 1 to 1
    Invariant: shift
    Batch: compared
    Guard: where all are equal in one of the two, it counts as 0. What ties with the last that is kept is kept, too.

    Args:
        share: Of the batch, above 0, to 1; at least one sample is kept.
    """
    part = fraction(share, "tip", "share")
    if part == 0:
        raise BadInputError("tip: share must be above 0; got 0")

    @per_batch
    def rule(signals: Signals) -> Temperatures:
        student, teacher = signals.student_logits.detach(), signals.teacher_logits.detach()
        doubt, distance = rowwise(_entropy, student), rowwise(_distance, student, teacher)
        if not doubt.numel():  # a batch that is all mask has no range
            return _gate(signals, doubt > 0)
        score = 1 - (1 - _ranged(signals.groups(doubt))) * (1 - _ranged(signals.groups(distance)))
        kept = math.ceil(part * score.shape[1])
        return _gate(signals, (score >= score.topk(kept).values[:, -1:]).view(doubt.shape))

    return rule


def _height(logits: Tensor) -> Tensor:
    """How far the largest logit is above the mean, `[...]`."""
    logits = bounded_logits(logits)
    return logits.amax(-1) - mean_over(logits, logits <= ABSENT)


def _entropy(logits: Tensor) -> Tensor:
    """Entropy of the distribution at T = 1 as a share of its maximum, log C, 0..1."""
    found = entropy_in_nats(logits)
    classes = class_count(bounded_logits(logits) <= ABSENT, found)
    return found.div_(classes.clamp(min=2).log()).clamp_(0.0, 1.0)


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    """KL at T = 1, in nats."""
    return forward_kl(bounded_logits(student), bounded_logits(teacher))


def _ranged(values: Tensor) -> Tensor:
    """Values `[G, N]` from 0 to 1 over each batch; 0 where they are equal."""
    low, high = values.aminmax(dim=-1, keepdim=True)
    return ((values - low) / (high - low)).masked_fill(high <= low, 0.0)


def _gate(signals: Signals, kept: Tensor) -> Temperatures:
    one = signals.full(1.0)
    return Temperatures(one, one, kept.to(one.dtype))
