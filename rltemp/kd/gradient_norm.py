"""How hard a sample's divergence pulls on the student's logits, in closed form, and weights that pull alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rltemp.kd.rowwise import rowwise
from rltemp.kd.signals import Signals, Temperatures, full_precision
from rltemp.policy.arrays import NUMPY, TORCH, Arrays
from rltemp.policy.features import Statistics

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
    logits = signals.student_logits.detach(), signals.teacher_logits.detach()
    distance: Tensor = rowwise(_distance, *logits, temperatures.student, temperatures.teacher)
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


def small_balance(small: Statistics, temperatures: Any, weight: Any) -> float:
    """`balance` by NumPy, of a small batch without a mask: temperatures `[2, ...]` of both and weights `[...]`."""
    terms = np.empty((2, *small.below.shape), np.float32)
    # At T = 4 the terms are the fourth roots of those at T = 1, which the features have computed.
    np.sqrt(small.terms, out=terms[0])
    np.sqrt(terms[0], out=terms[0])
    np.multiply(small.below, (1 / temperatures)[..., None], out=terms[1])
    np.exp(terms[1], out=terms[1])
    plain, own = _lengths(NUMPY, terms)
    factor = BALANCE_TEMPERATURE * plain.sum() / (weight / temperatures[0] * own).sum()
    return float(factor) if math.isfinite(factor) else 0.0


def _both_distances(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor) -> tuple[Tensor, Tensor]:
    """`_distance` at the balance's own temperature and at the given ones."""
    own = torch.stack([student_t, teacher_t])
    pair = torch.stack([full_precision(student), full_precision(teacher)])
    found = _distances(pair, torch.stack([torch.full_like(own, BALANCE_TEMPERATURE), own]))
    return found[0], found[1]


def _distance(student: Tensor, teacher: Tensor, student_t: Tensor, teacher_t: Tensor) -> Tensor:
    pair = torch.stack([full_precision(student), full_precision(teacher)])
    found: Tensor = _distances(pair, torch.stack([student_t, teacher_t]).unsqueeze(0))[0]
    return found


def _distances(pair: Tensor, temperatures: Tensor) -> Tensor:
    """Length of softmax(student / T_s) - softmax(teacher / T_t), `[K, ...]`, of `[2, ..., C]` and `[K, 2, ...]`."""
    terms = (pair - pair.amax(-1, keepdim=True)) * (1 / temperatures)[..., None]
    found: Tensor = _lengths(TORCH, terms.exp_())
    return found


def _lengths(arrays: Arrays, terms: Any) -> Any:
    """`_distances` of the numerators of the softmaxes, `[K, 2, ..., C]`, which are written over."""
    totals = arrays.total(terms)
    student, teacher = terms[:, 0], terms[:, 1]
    teacher *= (totals[:, 0] / totals[:, 1])[..., None]
    student -= teacher
    return arrays.length(student) / totals[:, 0]
