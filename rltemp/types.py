"""The three types that everything here is made of: what a training step sees, what a rule answers, and a rule.

Shapes: C is the number of classes and always the last axis of logits; `...` is any leading shape, `[B]` for a batch,
`[S, B]` for S students that are trained as one stack. Every field of `Temperatures` has exactly the leading shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rltemp.errors import BadInputError


@dataclass(frozen=True)
class Signals:
    """What a distillation step can see of its samples before it chooses their temperatures.

    Args:
        student_logits: `[..., C]`, with the student's graph attached.
        teacher_logits: `[..., C]`, no graph.
        labels: `[...]` integers in 0..C-1, or None where the loop has none (rules that need them say so).
        progress: How much of the run is done, 0 (first step) to 1 (after the last).

    Raises:
        BadInputError: Where shapes disagree; the message names the fields and both shapes.
    """

    student_logits: Tensor
    teacher_logits: Tensor
    labels: Tensor | None = None
    progress: float = 0.0

    def __post_init__(self) -> None:
        student, teacher = tuple(self.student_logits.shape), tuple(self.teacher_logits.shape)
        if len(student) < 1 or student != teacher:
            raise BadInputError(
                f"student has {student[-1] if student else 0} class outputs, teacher {teacher[-1] if teacher else 0} "
                f"(shapes {student} and {teacher}): both need logits of one shape [..., C], on the same samples"
            )
        if student[-1] < 2:
            raise BadInputError(f"logits need at least 2 classes on their last axis; got shape {student}")
        if self.labels is not None and tuple(self.labels.shape) != student[:-1]:
            raise BadInputError(f"labels have shape {tuple(self.labels.shape)}, needed: {student[:-1]}")
        if not 0.0 <= self.progress <= 1.0:
            raise BadInputError(f"progress must be between 0 and 1; got {self.progress}")

    @property
    def shape(self) -> torch.Size:
        """The leading shape: one entry a sample."""
        return self.student_logits.shape[:-1]

    @property
    def num_classes(self) -> int:
        """C, the size of the last axis."""
        return self.student_logits.shape[-1]

    def full(self, value: float) -> Tensor:
        """`value` once per sample, float32, on the logits' device."""
        return torch.full(self.shape, float(value), device=self.student_logits.device)


@dataclass(frozen=True)
class Temperatures:
    """A rule's answer: two temperatures and a weight for every sample, each of shape `[...]`.

    Every published rule is a choice of exactly these three: `fixed` answers (T, T, T^2), DTKD (T_s, T_t, T_s T_t).
    The weight multiplies the sample's divergence.

    Raises:
        BadInputError: Where the three shapes differ. A `[B, 1]` beside a `[B]` would broadcast to `[B, B]` and
            average away which weight belongs to which sample; it is refused by name.
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor

    def __post_init__(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in ("student", "teacher", "weight")}
        if len(set(shapes.values())) != 1:
            raise BadInputError(f"temperatures need one shape, one value per sample; got {shapes}")

    def detach(self) -> Temperatures:
        """The same numbers as constants of the graph."""
        return Temperatures(self.student.detach(), self.teacher.detach(), self.weight.detach())


TemperatureRule = Callable[[Signals], Temperatures]
