"""Batches with a mask, and what a loss under one must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rltemp import Signals

GARBAGE = (torch.nan, torch.inf, -torch.inf, 1e30, -1e30)
"""What may stand where the mask has no sample."""


def masked_stack(mask: Tensor, classes: int = 7, seed: int = 0, *, labels: bool = True) -> Signals:
    """Signals of a stack with this mask `[S, ...]`, garbage and label -100 where it is false."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, *mask.shape, classes, generator=generator) * 2
    drawn = torch.randint(0, classes, mask.shape, generator=generator).masked_fill(~mask, -100)
    garbage = torch.tensor(GARBAGE)[torch.randint(0, len(GARBAGE), (2, *student.shape), generator=generator)]
    student, teacher = (torch.where(mask[..., None], *pair) for pair in zip((student, teacher), garbage, strict=True))
    return Signals(student.requires_grad_(), teacher, drawn if labels else None, 0.5, mask, stacked=True)


def each_alone(signals: Signals) -> list[Signals]:
    """Every student's own samples, without those that its mask leaves out and without a mask."""
    kept = [own.samples() for own in signals.students()]
    return [replace(own, student_logits=own.student_logits.detach().requires_grad_()) for own in kept]


def assert_each_is_as_alone(signals: Signals, found: Tensor, alone: Callable[[int, Signals], Tensor]) -> None:
    """Hold a stack's values `[S, ...]` and their gradient to what `alone` gives for each student's own samples."""
    mask = signals.mask
    assert mask is not None
    gradient = torch.autograd.grad(found.sum(), signals.student_logits)[0]
    assert found.shape == signals.shape
    assert (found[~mask] == 0).all()
    assert (gradient[~mask] == 0).all()
    for place, own in enumerate(each_alone(signals)):
        kept, wanted = mask[place], alone(place, own)
        # Rows lie elsewhere in the vector registers; T^2 is up to 240 times the divergence's last digit.
        torch.testing.assert_close(found[place][kept], wanted, rtol=1e-5, atol=5e-5)
        if wanted.numel():
            slope = torch.autograd.grad(wanted.sum(), own.student_logits)[0]
            torch.testing.assert_close(gradient[place][kept], slope, rtol=1e-4, atol=1e-5)
