"""Divergences between softened distributions, one value a sample; `DIVERGENCES` at the foot names them.

A divergence maps the student's logits over its temperature, the teacher's over its own (`[..., C]`, float32 or
float64) and the labels (`[...]`, or None) to `[...]`, in nats. A class that is not there has the finite logit
`rltemp.kd.classes.ABSENT`. No temperature, weight or mean is in it: `kd_loss`
divides before and multiplies after. To add one, write a factory whose parameters are its options and put it into the
table. The lines `Formula:` to `Guard:` of a docstring are what `rltemp rules` shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from rltemp.errors import BadInputError
from rltemp.kd.checks import not_negative, switch
from rltemp.kd.classes import ABSENT, bounded_logits, mean_over, without
from rltemp.kd.rowwise import Formula, Slopes, rowwise
from rltemp.kd.signals import Divergence
from rltemp.kd.token_divergences import multi, todi, top_k, veto

VECTOR_LANES = 16
"""Float32 numbers in one AVX-512 register."""


def kl() -> Divergence:
    """Kullback-Leibler divergence of the student from the teacher: what distillation minimises since Hinton.

    Formula: sum_k p_k (log p_k - log q_k), p the teacher's and q the student's softened distribution.
    Source: Hinton, Vinyals and Dean (2015), https://arxiv.org/abs/1503.02531.
    Labels: no
    Guard: none; computed from log-probabilities, so that no class underflows.
    """
    return forward_kl


def reverse_kl() -> Divergence:
    """Kullback-Leibler divergence of the teacher from the student: it punishes mass where the teacher has none.

    Formula: sum_k q_k (log q_k - log p_k).
    Source: Gu et al. (2023), https://arxiv.org/abs/2306.08543, for language models.
    Labels: no
    Guard: none; computed from log-probabilities.
    """
    return lambda student, teacher, labels: forward_kl(teacher, student, labels)


def jensen_shannon() -> Divergence:
    """Jensen-Shannon divergence: the mean divergence of both from their mixture; between 0 and log 2.

    Formula: KL(p||m)/2 + KL(q||m)/2 with m = (p+q)/2.
    Source: Agarwal et al. (2023), https://arxiv.org/abs/2306.13649, with beta = 1/2.
    Labels: no
    Guard: none; the mixture is formed from log-probabilities.
    """

    def divergence(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        q, p = log_softmax(student), log_softmax(teacher)
        mixture = torch.logaddexp(p, q) - math.log(2)
        return (p.exp() * (p - mixture) + q.exp() * (q - mixture)).sum(-1) / 2

    return divergence


def mse() -> Divergence:
    """Mean squared difference of the softened logits: regression, no distribution.

    Formula: mean_k (v_k / T_s - u_k / T_t)^2.
    Source: Ba and Caruana (2014), https://arxiv.org/abs/1312.6184.
    Labels: no
    Guard: none.
    """

    def divergence(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        absent = torch.minimum(student, teacher) <= ABSENT
        return mean_over((student - teacher).masked_fill(absent, 0.0).square(), absent)

    divergence.compares_logits = True  # type: ignore[attr-defined]  # read by `rltemp.kd.losses.kd_loss`
    return divergence


def dkd(target: float = 1.0, non_target: float = 8.0, published: bool = False) -> Divergence:
    """Weigh what the teacher says of the target class apart from what it says of the others.

    With b = (p_y, 1 - p_y): TCKD = KL(b_t || b_s), NCKD the divergence over the other classes, renormalised. So
    KL = TCKD + (1 - p_y) NCKD, where p_y is the teacher's.

    Formula: target TCKD + non_target NCKD.
    Source: Zhao et al. (2022), https://arxiv.org/abs/2203.08679.
    Labels: yes
    Guard: 1 - p is formed from the other classes' log-probabilities. The published code takes the log of a sum of
    probabilities, which underflows (a gap of 120 between two logits gives nan); published=true computes it so.

    Args:
        target: Weight of TCKD (the paper's alpha), >= 0.
        non_target: Weight of NCKD (beta), >= 0; 2 to 8 in the paper, by pair.
        published: Compute as the authors' code does, underflow included.
    """
    alpha, beta = not_negative(target, "dkd", "target"), not_negative(non_target, "dkd", "non_target")
    if not alpha and not beta:
        raise BadInputError("dkd: target or non_target must be above 0; got 0 and 0")
    parts = _published_parts if switch(published, "dkd", "published") else _decoupled_parts

    def divergence(student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise BadInputError("DKD tells the target class from the others and needs labels; these signals carry none")
        if student.shape[-1] < 2:
            raise BadInputError(f"DKD needs at least 2 classes; got logits of shape {tuple(student.shape)}")
        target_part, non_target_part = parts(student, teacher, labels)
        # A part that is not asked for adds no zero times nan.
        kept = [weight * part for weight, part in ((alpha, target_part), (beta, non_target_part)) if weight]
        return sum(kept, torch.zeros_like(target_part))

    divergence.uses_labels = True  # type: ignore[attr-defined]  # read by `rltemp.kd.method.needs_labels`
    return divergence


def tckd() -> Divergence:
    """The target-class part of DKD alone: how sure the teacher is of the label.

    Formula: KL((p_y, 1-p_y) || (q_y, 1-q_y)).
    Source: Zhao et al. (2022), https://arxiv.org/abs/2203.08679.
    Labels: yes
    Guard: as dkd.
    """
    return dkd(target=1.0, non_target=0.0)


def nckd() -> Divergence:
    """The part of DKD over the other classes alone: the dark knowledge.

    Formula: KL of the distributions over the classes other than y.
    Source: Zhao et al. (2022), https://arxiv.org/abs/2203.08679.
    Labels: yes
    Guard: as dkd; 0 for two classes, where nothing is left to compare.
    """
    return dkd(target=0.0, non_target=1.0)


def forward_kl(student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) for every sample."""
    log_student, log_teacher = log_softmax(student), log_softmax(without(student, teacher))
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)


def softened_kl(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor, weight: Tensor) -> Tensor:
    """Weights `[...]` times `forward_kl` of logits `[..., C]`, of any floating type, over temperatures `[...]`.

    One node of torch's graph, in blocks of rows where the logits are many.

    >>> softened_kl(torch.zeros(3, 2), torch.zeros(3, 2), *torch.ones(3, 3))
    tensor([0., 0., 0.])
    """
    lead = student.shape[:-1]
    vectors = [value if value.shape == lead else value.expand(lead) for value in (student_t, teacher_t, weight)]
    if student.dtype != teacher.dtype:  # not foreseen by the slopes
        return _weighted_kl(student, teacher, *vectors)
    found: Tensor = rowwise(_SOFTENED_KL, student, teacher, *vectors)
    return found


def _weighted_kl(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor, weight: Tensor) -> Tensor:
    student = bounded_logits(student)
    teacher = without(student, bounded_logits(teacher))
    log_q, log_p = log_softmax(student / student_t.unsqueeze(-1)), log_softmax(teacher / teacher_t.unsqueeze(-1))
    return weight * ((log_p - log_q) * log_p.exp()).sum(-1)


def _kl_slopes(
    needed: Sequence[bool], student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor, weight: Tensor
) -> Slopes:
    """Derivatives by the student's logits v, both temperatures and the weight.

    By v / T_s the divergence's derivative is q - p, so by v it is (q - p) / T_s and by T_s it is - sum (q - p) v /
    T_s^2; by T_t it is - sum p (log p - log q - KL) u / T_t^2.
    """
    student = bounded_logits(student)
    teacher = without(student, bounded_logits(teacher))
    log_q, log_p = log_softmax(student / student_t.unsqueeze(-1)), log_softmax(teacher / teacher_t.unsqueeze(-1))
    p, terms = log_p.exp(), log_p.sub_(log_q)
    divergence = (terms * p if needed[3] else terms.mul_(p)).sum(-1)
    by_student = log_q.exp_().sub_(p).mul_((weight / student_t).unsqueeze(-1))
    by_student_t = (by_student * student).sum(-1).div_(-student_t) if needed[2] else None
    by_teacher_t = None
    if needed[3]:
        # Centred before they are summed: what cancels would take float32's digits with it.
        terms = terms.sub_(divergence.unsqueeze(-1)).mul_(p).mul_(teacher)
        by_teacher_t = terms.sum(-1).mul_(weight).div_(-teacher_t.square())
    by_weight = divergence if needed[4] else None
    return weight * divergence, (by_student, None, by_student_t, by_teacher_t, by_weight), ()


def log_softmax(logits: Tensor) -> Tensor:
    """Return log(softmax(logits)) along the last axis, `[..., C]`.

    torch's CPU kernel runs along the classes; where they do not fill a vector register, it takes ten times as
    long as one that runs along the samples: half of the step of a stack of small students.
    """
    if torch.compiler.is_compiling() or logits.shape[-1] >= VECTOR_LANES:
        return logits.log_softmax(-1)
    return logits.movedim(-1, 0).contiguous().log_softmax(0).movedim(0, -1)


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the prediction at T = 1, `[..., C]` to `[...]`, in nats, over the classes that are there.

    >>> entropy(torch.tensor([[1.0, 1.0, -torch.inf]]))
    tensor([0.6931])
    """
    log_probs = log_softmax(bounded_logits(logits))
    return -(log_probs.exp() * log_probs).sum(-1)


def _decoupled_parts(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    own, teacher = labels.unsqueeze(-1), without(student, teacher)
    is_own = torch.zeros_like(student, dtype=torch.bool).scatter(-1, own, True)
    log_q, log_p = log_softmax(student), log_softmax(teacher)
    rest_q, rest_p = (value.masked_fill(is_own, -math.inf).logsumexp(-1, keepdim=True) for value in (log_q, log_p))
    own_q, own_p = log_q.gather(-1, own), log_p.gather(-1, own)
    target = own_p.exp() * (own_p - own_q) + rest_p.exp() * (rest_p - rest_q)
    # Filled before they are multiplied: the masked class adds a zero, and its gradient none.
    others_p = (log_p - rest_p).masked_fill(is_own, 0.0)
    others_q = (log_q - rest_q).masked_fill(is_own, 0.0)
    non_target = (others_p.exp().masked_fill(is_own, 0.0) * (others_p - others_q)).sum(-1)
    return target.squeeze(-1), non_target


def _published_parts(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    own = labels.unsqueeze(-1)
    is_own = torch.zeros_like(student).scatter(-1, own, 1.0)
    q, p = (
        torch.stack([(value * is_own).sum(-1), (value * (1 - is_own)).sum(-1)], -1)
        for value in (student.softmax(-1), teacher.softmax(-1))
    )
    target = F.kl_div(q.log(), p, reduction="none").sum(-1)
    return target, forward_kl(student - 1000 * is_own, teacher - 1000 * is_own)


_SOFTENED_KL = Formula(_weighted_kl, _kl_slopes, foreign=1)

DIVERGENCES: dict[str, Callable[..., Divergence]] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "dkd": dkd,
    "tckd": tckd,
    "nckd": nckd,
    "mse": mse,
    "todi": todi,
    "veto": veto,
    "multi": multi,
    "top_k": top_k,
}
