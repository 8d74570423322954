"""Distillation losses: one value per sample, never averaged inside, computed in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rltemp.types import Signals, Temperatures


def kd_loss(signals: Signals, temperatures: Temperatures) -> Tensor:
    """Return weight * KL(softmax(teacher / T_t) || softmax(student / T_s)) for every sample, in nats.

    Hinton et al. (2015), https://arxiv.org/abs/1503.02531, with a temperature for each sample and network.

    Args:
        signals: Logits `[..., C]`; half-precision logits are computed with in float32.
        temperatures: `[...]` each; must be positive (see `rltemp.rules.check_temperatures`).

    Returns:
        `[...]`, float32, not averaged.

    >>> import torch
    >>> from rltemp import Signals, Temperatures
    >>> signals = Signals(torch.tensor([[2.0, 1.0, 0.5, -1.0]]), torch.tensor([[4.0, 1.0, 0.0, -1.0]]))
    >>> four = torch.tensor([4.0])
    >>> round(kd_loss(signals, Temperatures(four, four, four * four)).item(), 4)
    0.5883
    """
    student = F.log_softmax(signals.student_logits.float() / temperatures.student.unsqueeze(-1), dim=-1)
    teacher = F.log_softmax(signals.teacher_logits.float() / temperatures.teacher.unsqueeze(-1), dim=-1)
    return temperatures.weight * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def cross_entropy(signals: Signals) -> Tensor:
    """Return the cross-entropy with the labels for every sample, `[...]`, in nats.

    Raises:
        ValueError: Where `signals` carries no labels.
    """
    if signals.labels is None:
        raise ValueError("cross-entropy needs labels; these signals carry none")
    logits = signals.student_logits.float().flatten(0, -2)
    return F.cross_entropy(logits, signals.labels.flatten(), reduction="none").view(signals.shape)
