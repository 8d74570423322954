"""Divergences that the distillation of language models brought: each token, or each class of it, gets its own mixture.

They are entries of `rltemp.kd.divergences.DIVERGENCES`, which says what a divergence is, and serve any classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import positive, whole
from rltemp.kd.signals import Divergence


def todi() -> Divergence:
    """Mix both Kullback-Leibler divergences class by class: up where the student has too little, down where too much.

    The shares are constants of the graph. The value is that of KL(p||q) + KL(q||p); the gradient is another.

    Formula: sum_k s_k p_k log(p_k / q_k) + (1 - s_k) q_k log(q_k / p_k), s_k = p_k / (p_k + q_k) held still.
    Source: Jung et al. (2025), https://arxiv.org/abs/2505.16297 (ToDi), and the code beside it.
    Labels: no
    Guard: none; computed from log-probabilities.
    """

    def divergence(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
        ratio = log_p - log_q
        share = ratio.detach().sigmoid()
        return ((share * log_p.exp() - (1 - share) * log_q.exp()) * ratio).sum(-1)

    return divergence


def veto(beta: float = 0.3) -> Divergence:
    """Divergence from a target between teacher and student: the product of both distributions, one held still.

    The one held still is the student's. It is zero where q = p^(1 / (1 - beta)), not where q = p: a student that it
    trains gets sharper than its teacher.
    The published beta falls to 0 over the run; a divergence knows no progress, so here it stays.

    Formula: KL(t || q), t = softmax(u / T_t + beta v / T_s), in which v is a constant; u, v the logits.
    Source: Jang et al. (2026), https://arxiv.org/abs/2601.07155 (Veto), and the code beside it: beta from 0.3 to 0.
    Labels: no
    Guard: none; computed from log-probabilities.

    Args:
        beta: The student's power in the product, above 0, below 1.
    """
    if positive(beta, "veto", "beta") >= 1:
        raise BadInputError(f"veto: beta must be above 0 and below 1; got {beta!r}")

    def divergence(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        target = (teacher + beta * student.detach()).log_softmax(-1)
        return _kl(student.log_softmax(-1), target)

    return divergence


def multi(lowest: float = 0.5, highest: float = 1.5, count: int = 5) -> Divergence:
    """Mean divergence over several temperatures, evenly spaced around the rule's own.

    By default `fixed:4` then compares at 2, 3, 4, 5 and 6, as MLKD does, which adds up where this takes the mean; a
    temperature T counts T^2, as there.

    Formula: mean over f of f^2 KL at the temperatures f T_s and f T_t, f from `lowest` to `highest` in `count` steps.
    Source: the code of MLKD (CVPR 2023), https://github.com/Jin-Ying/Multi-Level-Logit-Distillation, its part for each
    sample.
    Labels: no
    Guard: none; computed from log-probabilities.

    Args:
        lowest: Smallest factor, > 0.
        highest: Largest factor.
        count: How many temperatures, 2 or more.
    """
    first, last = positive(lowest, "multi", "lowest"), positive(highest, "multi", "highest")
    if first >= last:
        raise BadInputError(f"multi: lowest must be below highest; got {lowest} and {highest}")
    steps = whole(count, 2, "multi", "count") - 1
    factors = [first + (last - first) * step / steps for step in range(steps + 1)]

    def divergence(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        at_each = [
            factor**2 * _kl((student / factor).log_softmax(-1), (teacher / factor).log_softmax(-1))
            for factor in factors
        ]
        return torch.stack(at_each).mean(0)

    return divergence


def top_k(count: int = 64) -> Divergence:
    """Divergence over the teacher's most probable classes and one bucket for all the others.

    What a teacher can say of which only the top is kept, here from all its logits. It is never above `kl`.

    Formula: KL over count + 1 outcomes: the teacher's `count` largest classes, and the rest of either's mass.
    Source: the tail bucket of distillation from top-k log-probabilities, as TRL's server teacher has it at T = 1.
    Labels: no
    Guard: the rest is summed as log-probabilities, so that it does not underflow. Up to `count` classes it is `kl`.

    Args:
        count: How many classes stand alone, 1 or more.
    """
    kept = whole(count, 1, "top_k", "count")

    def divergence(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        both = student.log_softmax(-1), teacher.log_softmax(-1)
        if kept >= teacher.shape[-1]:
            return _kl(*both)
        places = teacher.topk(kept, -1).indices
        return _kl(*(_with_tail(values, places) for values in both))

    return divergence


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL of q from p, both as log-probabilities over the last axis."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _with_tail(log_probs: Tensor, places: Tensor) -> Tensor:
    """Log-probabilities `[..., K]` at the places, and of all others together: `[..., K + 1]`."""
    rest = log_probs.scatter(-1, places, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, places), rest], -1)
