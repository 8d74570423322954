"""The norm of a sample's distillation gradient on the student's logits, in closed form, and gradient matching."""

from __future__ import annotations

import torch
from torch import Tensor

from rltemp.kd.rowwise import rowwise
from rltemp.kd.signals import Signals, Temperatures, full_precision

MATCHED_TEMPERATURE = 4.0
"""Plain distillation's temperature, whose gradient norm is matched."""


@torch.no_grad()
def gradient_norm(signals: Signals, temperatures: Temperatures) -> Tensor:
    """Return the Euclidean norm of each sample's gradient on the student's logits, `[...]`.

    The loss is weight * KL(teacher / T_t || student / T_s), whose gradient is
    weight / T_s * (softmax(student / T_s) - softmax(teacher / T_t)).

    >>> signals = Signals(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 0.0]]))
    >>> two = torch.tensor([2.0])
    >>> round(gradient_norm(signals, Temperatures(two, two, two * two)).item(), 4)  # 2 * 0.2311 * sqrt(2)
    0.6535
    """
    logits = signals.student_logits.detach(), signals.teacher_logits.detach()
    distance: Tensor = rowwise(_distance, *logits, temperatures.student, temperatures.teacher)
    return temperatures.weight / temperatures.student * distance


@torch.no_grad()
def matching_factor(signals: Signals, temperatures: Temperatures) -> Tensor:
    """Return what the weights of a batch are multiplied by so that its mean gradient norm is that of T = 4 for all.

    `[...]`, one number a batch; 0 where the gradient under `temperatures` is zero, which nothing can match.
    """
    logits = signals.student_logits.detach(), signals.teacher_logits.detach()
    plain, own = rowwise(_both_distances, *logits, temperatures.student, temperatures.teacher)
    # At T = 4 the weight is 16, and the norm 4 times the distance.
    wanted = signals.means(plain * MATCHED_TEMPERATURE)
    norm = signals.means(temperatures.weight / temperatures.student * own)
    factor = (wanted / norm).nan_to_num_(nan=0.0, posinf=0.0)
    leading = factor.view(-1, *[1] * (len(signals.shape) - 1)) if signals.stacked else factor.view(())
    return leading.expand(signals.shape)


def _both_distances(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor) -> tuple[Tensor, Tensor]:
    """`_distance` at T = 4 and at the given temperatures."""
    own = torch.stack([student_t, teacher_t])
    found = _distances(student, teacher, torch.stack([torch.full_like(own, MATCHED_TEMPERATURE), own]))
    return found[0], found[1]


def _distance(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor) -> Tensor:
    return _distances(student, teacher, torch.stack([student_t, teacher_t]).unsqueeze(0))[0]


def _distances(student: Tensor, teacher: Tensor, temperatures: Tensor) -> Tensor:
    """Norm of softmax(student / T_s) - softmax(teacher / T_t), `[K, ...]`, at K temperatures `[K, 2, ...]`."""
    pair = torch.stack([full_precision(student), full_precision(teacher)])
    terms = ((pair - pair.amax(-1, keepdim=True)) * (1 / temperatures).unsqueeze(-1)).exp_()
    totals = terms.sum(-1)
    student_terms, teacher_terms = terms[:, 0], terms[:, 1]
    teacher_terms *= (totals[:, 0] / totals[:, 1]).unsqueeze(-1)
    student_terms -= teacher_terms
    norm: Tensor = torch.linalg.vector_norm(student_terms, dim=-1)
    return norm / totals[:, 0]
