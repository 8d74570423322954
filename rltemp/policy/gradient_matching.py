"""Gradient matching: weights at which a batch's gradient is as long as plain distillation's, in closed form.

The gradient of weight * KL(teacher / T_t || student / T_s) on the student's logits is
weight / T_s * (softmax(student / T_s) - softmax(teacher / T_t)); its norm is the Euclidean one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rltemp.kd.method import PLAIN_TEMPERATURE
from rltemp.kd.rowwise import paired, rowwise
from rltemp.kd.signals import Signals, full_precision
from rltemp.kd.temperatures import Temperatures


@torch.no_grad()
def matching_factor(signals: Signals, temperatures: Temperatures) -> Tensor:
    """Return what the weights of a batch are multiplied by so that its mean gradient norm is that of T = 4 for all.

    `[...]`, one number a batch; 0 where the gradient under `temperatures` is zero, which nothing can match.
    """
    logits = signals.student_logits.detach(), signals.teacher_logits.detach()
    plain, own = rowwise(_distances, *logits, temperatures.student, temperatures.teacher)
    # At T = 4 the weight is 16, and the norm 4 times the distance.
    wanted = signals.means(plain * PLAIN_TEMPERATURE)
    norm = signals.means(temperatures.weight / temperatures.student * own)
    return signals.of_batches((wanted / norm).nan_to_num_(nan=0.0, posinf=0.0))


def _distances(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor) -> tuple[Tensor, Tensor]:
    """Norm of softmax(student / T_s) - softmax(teacher / T_t), `[...]`, at T = 4 for both and at the given ones."""
    own = torch.stack([student_t, teacher_t])
    temperatures = torch.stack([torch.full_like(own, PLAIN_TEMPERATURE), own])
    pair = paired(full_precision(student), full_precision(teacher))
    terms = ((pair - pair.amax(-1, keepdim=True)) * (1 / temperatures).unsqueeze(-1)).exp_()
    totals = terms.sum(-1)
    student_terms, teacher_terms = terms[:, 0], terms[:, 1]
    teacher_terms *= (totals[:, 0] / totals[:, 1]).unsqueeze(-1)
    student_terms -= teacher_terms
    norms = torch.linalg.vector_norm(student_terms, dim=-1) / totals[:, 0]
    return norms[0], norms[1]
