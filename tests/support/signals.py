"""Random batches for tests of rules and methods, and what is read off a rule's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rltemp import Method, Signals, Temperatures
from rltemp.rules.curriculum import Learned


def drawn(
    shape: tuple[int, ...],
    classes: int,
    seed: int = 0,
    scale: float = 3.0,
    dtype: torch.dtype = torch.float32,
    progress: float | None = None,
) -> Signals:
    """Normal logits and labels, at a random moment of the run if none is given."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, *shape, classes, generator=generator) * scale).to(dtype)
    labels = torch.randint(0, classes, shape, generator=generator)
    moment = torch.rand((), generator=generator).item()
    return Signals(student, teacher, labels, moment if progress is None else progress)


def uneven(*shape: int, classes: int = 10, stacked: bool = False) -> Signals:
    """Signals of float64 in the middle of a run, students and samples of very different sharpness."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, *shape, classes, generator=generator, dtype=torch.float64)
    sharper = torch.linspace(0.5, 5, student[..., 0].numel(), dtype=torch.float64).view(*shape, 1)
    labels = torch.randint(0, classes, shape, generator=generator)
    return Signals((sharper * student).requires_grad_(), sharper * teacher, labels, 0.4, stacked=stacked)


def started(made: Any, classes: int, seeds: int | Sequence[int] = 0) -> Any:
    """This rule or method; what learns, as it starts."""
    rule = getattr(made, "rule", made)
    if isinstance(rule, Learned):
        rule.initialise(classes, seeds)
    return made


def columns(temperatures: Temperatures) -> Tensor:
    """Student, teacher and weight, `[..., 3]`."""
    return torch.stack([temperatures.student, temperatures.teacher, temperatures.weight], -1)


def gradient_norm(method: Method, signals: Signals) -> Tensor:
    """Mean norm over the batch of the soft term's gradient on the student's logits, `[]` or `[S]`."""
    loss = replace(method, ce_weight=0.0).loss(signals)
    gradient: Tensor = torch.autograd.grad(loss.sum(), signals.student_logits)[0]
    return gradient.square().sum(-1).sqrt().mean(-1)
