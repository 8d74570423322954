"""Distillation losses: one value per sample, never averaged inside, computed in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from rltemp.errors import BadInputError
from rltemp.types import Signals, Temperatures

_VECTOR_LANES = 16
"""Float32 numbers in one AVX-512 register."""


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
    student = log_softmax(signals.student_logits.float() / temperatures.student.unsqueeze(-1))
    teacher = log_softmax(signals.teacher_logits.float() / temperatures.teacher.unsqueeze(-1))
    return temperatures.weight * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def cross_entropy(signals: Signals) -> Tensor:
    """Return the cross-entropy with the labels for every sample, `[...]`, in nats.

    Raises:
        BadInputError: Where `signals` carries no labels.
    """
    if signals.labels is None:
        raise BadInputError("cross-entropy needs labels; these signals carry none")
    log_probs = log_softmax(signals.student_logits.float())
    return -log_probs.gather(-1, signals.labels.unsqueeze(-1)).squeeze(-1)


def log_softmax(logits: Tensor) -> Tensor:
    """Return log(softmax(logits)) along the last axis, `[..., C]`.

    torch's CPU kernel runs along the classes; where they do not fill a vector register, it takes ten times as
    long as one that runs along the samples: half of the step of a stack of small students.
    """
    if logits.shape[-1] >= _VECTOR_LANES:
        return F.log_softmax(logits, -1)
    return F.log_softmax(logits.movedim(-1, 0).contiguous(), 0).movedim(0, -1)
