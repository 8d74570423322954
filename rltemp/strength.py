"""How hard a sample's divergence pulls on the student's logits, in closed form, and weights that pull alike."""

from __future__ import annotations

import torch
from torch import Tensor

from rltemp.blocks import rowwise
from rltemp.types import Signals, Temperatures, full_precision

BALANCE_TEMPERATURE = 4.0
"""Plain distillation's, which a balance is struck with."""


@torch.no_grad()
def gradient_length(signals: Signals, temperatures: Temperatures) -> Tensor:
    """Return the length of each sample's gradient on the student's logits, `[...]`.

    The loss is weight * KL(teacher / T_t || student / T_s), whose gradient is
    weight / T_s * (softmax(student / T_s) - softmax(teacher / T_t)).

    >>> signals = Signals(torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 0.0]]))
    >>> two = torch.tensor([2.0])
    >>> round(gradient_length(signals, Temperatures(two, two, two * two)).item(), 4)  # 2 * 0.2311 * sqrt(2)
    0.6535
    """
    distance: Tensor = rowwise(
        _distance,
        signals.student_logits.detach(),
        signals.teacher_logits.detach(),
        temperatures.student,
        temperatures.teacher,
    )
    return temperatures.weight / temperatures.student * distance


@torch.no_grad()
def balance(signals: Signals, temperatures: Temperatures) -> Tensor:
    """Return the factor with which a batch pulls as hard, on average, as at T = 4 for all: `[...]`, one a batch.

    Where it does not pull at all the factor is 0: nothing can be balanced there.
    """
    logits = signals.student_logits.detach(), signals.teacher_logits.detach()
    plain, own = rowwise(_both_distances, *logits, temperatures.student, temperatures.teacher)
    # At T = 4 the weight is 16, and a gradient 4 times the distance. Over nothing at all the factor is 0.
    wanted, length = (
        signals.means(plain * BALANCE_TEMPERATURE),
        signals.means(temperatures.weight / temperatures.student * own),
    )
    factor = (wanted / length).nan_to_num_(nan=0.0, posinf=0.0)
    return (
        factor.view(-1, *[1] * (len(signals.shape) - 1)).expand(signals.shape)
        if signals.stacked
        else factor.view(()).expand(signals.shape)
    )


def _both_distances(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor) -> tuple[Tensor, Tensor]:
    """`_distance` at the balance's own temperature and at the given ones."""
    plain = torch.full_like(student_t, BALANCE_TEMPERATURE)
    found = _distance(student, teacher, torch.stack([plain, student_t]), torch.stack([plain, teacher_t]))
    return found[0], found[1]


def _distance(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor) -> Tensor:
    """Length of softmax(student / T_s) - softmax(teacher / T_t), `[K, ...]` for temperatures of that shape."""
    (q, all_q), (p, all_p) = _exponentials(student, student_t), _exponentials(teacher, teacher_t)
    difference = torch.addcmul(q, p, all_q / all_p, value=-1)
    length: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    return length / all_q.squeeze(-1)


def _exponentials(logits: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """A softened softmax's numerators `[K, ..., C]` and denominator `[K, ..., 1]`."""
    logits = full_precision(logits)
    terms = (logits - logits.amax(-1, keepdim=True)).mul(temperature.reciprocal().unsqueeze(-1)).exp_()
    return terms, terms.sum(-1, keepdim=True)
