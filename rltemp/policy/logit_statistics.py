"""What the features of a policy share of a batch of logits, each computed once: `Statistics`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rltemp.kd.classes import class_count
from rltemp.kd.rowwise import paired

LOWEST = -3.4e38
"""About the lowest float32: the difference of two finite logits can be below it."""


Value = TypeVar("Value")


class _Once(Generic[Value]):
    """A property that is computed once; the one of `functools` takes a lock, which torch.compile cannot follow."""

    def __init__(self, compute: Callable[[Statistics], Value]) -> None:
        self.compute = compute

    def __set_name__(self, owner: type[Statistics], name: str) -> None:
        self.name = name

    def __get__(self, statistics: Statistics, owner: type[Statistics]) -> Value:
        value = self.compute(statistics)
        setattr(statistics, self.name, value)  # found before this descriptor from now on
        return value


class Statistics:
    """What several features share of a batch of logits, each computed once and only if asked for.

    Nearly all of it is computed on the student's and the teacher's logits at once: at a hundred classes an operation
    costs little more on both than on one.
    """

    def __init__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, progress: float | Tensor) -> None:
        self.pair = paired(student.detach().float(), teacher.detach().float())
        self.progress = progress
        self.labels = labels

    @_Once
    def absent(self) -> Tensor:
        """Which classes are not there, of both, bool `[2, ..., C]`."""
        return self.below <= LOWEST

    @_Once
    def classes(self) -> Tensor:
        """How many classes are there, of both, `[2, ...]`."""
        return class_count(self.absent, self.below)

    @_Once
    def log_classes(self) -> Tensor:
        """The entropy of a uniform prediction, log C, of both, `[2, ...]`; that of two classes where there is one."""
        return self.classes.clamp(min=2).log()

    @_Once
    def largest(self) -> tuple[Tensor, Tensor]:
        """The largest logits of both and where they stand, the first where several are equal, `[2, ..., 1]` each."""
        values, places = self.pair.max(-1, keepdim=True)
        return values, places

    @_Once
    def below(self) -> Tensor:
        """The logits of both less their largest, `[2, ..., C]`: at most 0, and finite where the logits are."""
        return (self.pair - self.largest[0]).clamp_min_(LOWEST)

    @_Once
    def gaps(self) -> Tensor:
        """The largest minus the second logit, of both, `[2, ...]`."""
        return -self.below.scatter(-1, self.largest[1], -math.inf).amax(-1)

    @_Once
    def margins(self) -> Tensor:
        """The largest minus the second logit, in standard deviations, minus 1, of both, `[2, ...]`."""
        return self.gaps / self.stds - 1

    @_Once
    def log_stds(self) -> Tensor:
        """Natural logarithm of the standard deviation of the logits, halved, of both, `[2, ...]`."""
        return self.stds.log() * 0.5

    @_Once
    def stds(self) -> Tensor:
        """Standard deviation of the logits, of both, `[2, ...]`."""
        # Not torch's `std`, which takes ten times as long. The floor keeps constant logits finite: their margin is 0
        # and the logarithm of their deviation a very negative, clipped number.
        mean = self.below.masked_fill(self.absent, 0.0).sum(-1).div_(self.classes)
        centred = (self.below - mean.unsqueeze(-1)).masked_fill_(self.absent, 0.0)
        norm: Tensor = torch.linalg.vector_norm(centred, dim=-1)
        return norm.div_(self.classes.sqrt()).clamp_(1e-6, -LOWEST)

    @_Once
    def terms(self) -> Tensor:
        """The numerators of the softmax at T = 1, the largest of which is 1, of both, `[2, ..., C]`."""
        return self.below.exp()

    @_Once
    def totals(self) -> Tensor:
        """The denominators of the softmax at T = 1, of both, `[2, ...]`."""
        return self.terms.sum(-1)

    @_Once
    def log_totals(self) -> Tensor:
        """Their logarithms: minus the log-probability of the largest logit, of both, `[2, ...]`."""
        return self.totals.log()
