"""Classes that are not there: -inf among the logits of a network.

A masked class, or a row of a vocabulary that is ruled out, has a logit of -inf. Every rule, divergence and feature
gives the value over the classes that are there. A network's own statistics are over its own classes. KL(p || q) is
over the classes of q: p is renormalised over these, and a class that p alone lacks adds 0 log 0 = 0.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

from torch import Tensor

from rltemp.kd.signals import full_precision

log = logging.getLogger(__name__)

Alignment = Literal["equal", "shorter"]
"""What to do with networks of unlike numbers of classes: refuse them, or compare the first classes of both."""
ALIGNMENTS: dict[str, Alignment] = {"equal": "equal", "shorter": "shorter"}

ABSENT = -1e12
"""A logit that is not above it, -inf or the lowest float among them, means that the class is not there."""


def bounded_logits(logits: Tensor) -> Tensor:
    """Logits `[..., C]` in full precision, within -1e12 and 1e12: then no rule, divergence or gradient overflows.

    A class that is not there gets `ABSENT`, which is finite, and 0 after every softmax. A row with nan or inf, or
    without any class, becomes nan: whoever watches for it (a gradient scaler, a run's guards) still sees it.

    >>> import torch
    >>> bounded_logits(torch.tensor([[2.5, -torch.inf], [0.0, torch.inf]]))
    tensor([[ 2.5000e+00, -1.0000e+12],
            [        nan,         nan]])
    """
    exact = full_precision(logits)
    return exact.clamp(ABSENT, -ABSENT).add_(exact.detach().amax(-1, keepdim=True).mul_(0))


def softened(logits: Tensor, temperature: Tensor) -> Tensor:
    """Logits `[..., C]` over temperatures `[...]`, in full precision; `ABSENT` where a class is not there."""
    known = bounded_logits(logits)
    return (known / temperature.unsqueeze(-1)).masked_fill(known <= ABSENT, ABSENT)


def without(absent: Tensor, logits: Tensor) -> Tensor:
    """The logits of one network over the classes that another one has: `ABSENT` where the other's are."""
    return logits.masked_fill(absent <= ABSENT, ABSENT)


def mean_over(values: Tensor, absent: Tensor) -> Tensor:
    """The mean of values `[..., C]` over the classes that are not absent, bool `[..., C]`: `[...]`; 0 over none."""
    return values.masked_fill(absent, 0.0).sum(-1) / class_count(absent, values)


def class_count(absent: Tensor, like: Tensor) -> Tensor:
    """How many classes of `[..., C]` are not absent, `[...]`, at least 1, in the type of `like`."""
    return (absent.shape[-1] - absent.sum(-1, dtype=like.dtype)).clamp_(min=1)


def aligned(student: Tensor, teacher: Tensor, how: Alignment) -> tuple[Tensor, Tensor]:
    """Both logits as they are, or their first classes, as many as the shorter has: said once for every two sizes."""
    if how == "equal":
        return student, teacher
    own, other = student.shape[-1], teacher.shape[-1]
    if own != other:
        _tell_once(f"the student has {own} classes and the teacher {other}: the first {min(own, other)} are compared")
    return student[..., :other], teacher[..., :own]


@cache
def _tell_once(text: str) -> None:
    log.info(text)
