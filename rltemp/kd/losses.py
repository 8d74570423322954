"""Distillation losses: one value per sample, never averaged inside, in float32 (float64 for float64 logits)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.checks import check_shape
from rltemp.kd.classes import mean_over, softened
from rltemp.kd.divergences import forward_kl, log_softmax, softened_kl
from rltemp.kd.signals import Divergence, Signals, full_precision
from rltemp.kd.temperatures import Temperatures


def kd_loss(signals: Signals, temperatures: Temperatures, divergence: Divergence = forward_kl) -> Tensor:
    """Return weight * divergence(student / T_s, teacher / T_t) for every sample, in nats.

    Hinton et al. (2015), https://arxiv.org/abs/1503.02531, with a temperature for each sample and network; the
    divergence is KL(teacher || student) unless another one of `rltemp.kd.divergences` is given.

    Args:
        signals: Logits `[..., C]`; half-precision logits are computed with in float32.
        temperatures: `[...]` each; must be positive (see `rltemp.kd.checks.check_temperatures`).
        divergence: Of softened logits; see `rltemp.kd.divergences`.

    Returns:
        `[...]`, float32, not averaged; 0 where the mask has no sample.

    Raises:
        BadInputError: Where these are no signals and temperatures, or not one temperature for each sample: none is
            broadcast.

    >>> from rltemp import Signals, Temperatures
    >>> signals = Signals(torch.tensor([[2.0, 1.0, 0.5, -1.0]]), torch.tensor([[4.0, 1.0, 0.0, -1.0]]))
    >>> four = torch.tensor([4.0])
    >>> round(kd_loss(signals, Temperatures(four, four, four * four)).item(), 4)
    0.5883
    """
    if not isinstance(signals, Signals) or not isinstance(temperatures, Temperatures):
        got = f"{type(signals).__name__} and {type(temperatures).__name__}"
        raise BadInputError(f"kd_loss needs rltemp.Signals and rltemp.Temperatures; got {got}")
    # A single number is no mistake of shape: it serves all samples.
    if temperatures.student.dim() and temperatures.student.shape != signals.shape:
        check_shape(temperatures, signals.shape, "a temperature rule")
    if (mask := signals.mask) is not None:
        alone = replace(signals.made_safe(), mask=None)
        return kd_loss(alone, temperatures.within(mask), divergence).masked_fill(~mask, 0.0)
    student, teacher = signals.student_logits, signals.teacher_logits
    if signals.buckets is not None:
        if getattr(divergence, "compares_logits", False):
            raise BadInputError(
                "this divergence compares logits, which a sparse teacher has not: take kl or reverse_kl"
            )
        student, teacher = signals.buckets.softened(temperatures)
        one = torch.ones_like(temperatures.weight)
        temperatures = Temperatures(one, one, temperatures.weight)
    if divergence is forward_kl:
        return softened_kl(student, teacher, temperatures.student, temperatures.teacher, temperatures.weight)
    student, teacher = softened(student, temperatures.student), softened(teacher, temperatures.teacher)
    with signals.labels_named():
        return temperatures.weight * divergence(student, teacher, signals.labels)


def batch_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of a batch's values `[..., M]` over the samples that the mask leaves, `[...]`; 0 over none.

    >>> batch_mean(torch.tensor([1.0, 5.0, torch.nan]), torch.tensor([True, True, False]))
    tensor(3.)
    """
    if mask is None:
        return values.mean(-1)
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def cross_entropy(signals: Signals, label_smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy with the labels for every sample, `[...]`, in nats; 0 where the mask has no sample.

    Args:
        signals: With labels.
        label_smoothing: Share of the label that is spread evenly over all classes, 0 <= share < 1; Szegedy et al.
            (2016), https://arxiv.org/abs/1512.00567, as `torch.nn.functional.cross_entropy` has it.

    Raises:
        BadInputError: Where `signals` carries no labels.

    >>> signals = Signals(torch.tensor([[2.0, 0.0]]), torch.zeros(1, 2), torch.tensor([0]))
    >>> [round(cross_entropy(signals, share).item(), 4) for share in (0.0, 0.1)]
    [0.1269, 0.2269]
    """
    if signals.labels is None:
        raise BadInputError("cross-entropy needs labels; these signals carry none")
    if (mask := signals.mask) is not None:
        alone = replace(signals.made_safe(), mask=None)
        return cross_entropy(alone, label_smoothing).masked_fill(~mask, 0.0)
    if signals.buckets is not None:  # labels are among all classes
        whole = signals.buckets.student_logits
        return cross_entropy(Signals(whole, whole.detach(), signals.buckets.labels), label_smoothing)
    log_probs = log_softmax(full_precision(signals.student_logits))
    with signals.labels_named():
        loss = -log_probs.gather(-1, signals.labels.unsqueeze(-1)).squeeze(-1)
    if not label_smoothing:
        return loss
    absent = log_probs == -torch.inf  # what is spread is spread over the classes that are there
    return (1 - label_smoothing) * loss - label_smoothing * mean_over(log_probs, absent)
