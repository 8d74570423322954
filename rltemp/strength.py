"""How hard a sample's divergence pulls on the student's logits, in closed form, and weights that pull alike."""

from __future__ import annotations

import torch
from torch import Tensor

from rltemp.divergences import log_softmax
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
    student = full_precision(signals.student_logits.detach()) / temperatures.student.unsqueeze(-1)
    teacher = full_precision(signals.teacher_logits.detach()) / temperatures.teacher.unsqueeze(-1)
    difference = log_softmax(student).exp() - log_softmax(teacher).exp()
    return temperatures.weight / temperatures.student * difference.square_().sum(-1).sqrt_()


@torch.no_grad()
def balance(signals: Signals, temperatures: Temperatures) -> Tensor:
    """Return the factor with which a batch pulls as hard, on average, as at T = 4 for all: `[...]`, one a batch.

    Where it does not pull at all the factor is 0: nothing can be balanced there.
    """
    same = signals.full(BALANCE_TEMPERATURE)
    plain = _mean(signals, gradient_length(signals, Temperatures(same, same, same.square())))
    length = _mean(signals, gradient_length(signals, temperatures))
    factor = torch.where(length > 0, plain / length.clamp(min=1e-30), 0.0)
    rows = factor.expand(-1, signals.shape.numel() // len(factor))
    return rows.reshape(signals.shape)


def _mean(signals: Signals, lengths: Tensor) -> Tensor:
    """The mean over each student's batch, `[G, 1]`; samples that the mask leaves out do not count."""
    if signals.mask is None:
        return signals.groups(lengths).mean(1, keepdim=True)
    return lengths[signals.mask].mean().view(1, 1)
