"""What a training step sees of its samples: with `rltemp.kd.temperatures` the types that everything here is made of.

Shapes: C is the number of classes and always the last axis of logits; `...` is any leading shape, `[B]` for a batch,
`[S, B]` for S students that are trained as one stack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.temperatures import Temperatures


class Buckets(Protocol):
    """All logits of the student, and what is known of the teacher; `rltemp.kd.sparse_teacher` has the real one."""

    @property
    def student_logits(self) -> Tensor:
        """All of them, `[..., C]`."""

    @property
    def labels(self) -> Tensor | None:
        """Among all classes, `[...]`."""

    def softened(self, temperatures: Temperatures) -> tuple[Tensor, Tensor]:
        """Both networks' logits of the buckets over their temperatures, `[..., K + 1]`."""

    def capped(self, temperatures: Temperatures) -> Temperatures:
        """The same as far as the teacher can be softened."""


@dataclass(frozen=True, repr=False)
class Signals:
    """What a distillation step can see of its samples before it chooses their temperatures.

    Args:
        student_logits: `[..., C]`, with the student's graph attached; -inf where a class is not there.
        teacher_logits: `[..., C]`, no graph.
        labels: `[...]` integers of any type in 0..C-1, or None where the loop has none (rules that need them say so).
        progress: How much of the run is done, 0 (first step) to 1 (after the last): a number; or a tensor of one, which
            is kept within 0 and 1 and never read, so that no step waits for it and no compiled step is compiled anew.
            nan where the loop does not know it: whatever needs it says so.
        mask: `[...]` bool, False where there is no sample (padding of a token batch); None: all are samples. What
            stands in such a place, nan among it, reaches neither a loss nor a gradient.
        stacked: The first axis counts students of a stack that know nothing of each other: a rule that compares a
            sample with its batch then compares it with the batch of its own student. Each has its own mask.
        buckets: Of a teacher of whom only the top is known (`rltemp.kd.sparse_teacher`): the whole of which the logits
            here are buckets at T = 1. A loss is worked out of it; rules see the buckets.
        safe: What stands in the places that the mask leaves out has been made harmless; see `made_safe`.

    Raises:
        BadInputError: Where one is no tensor, or shapes disagree; the message names the fields and both shapes.

    >>> Signals(torch.zeros(8, 10), torch.zeros(8, 10), labels=torch.arange(8), progress=0.5)
    Signals(8 samples of 10 classes, labels, progress=0.5)
    """

    student_logits: Tensor
    teacher_logits: Tensor
    labels: Tensor | None = None
    progress: float | Tensor = math.nan
    mask: Tensor | None = None
    stacked: bool = False
    safe: bool = False
    buckets: Buckets | None = None

    def __post_init__(self) -> None:
        for name in ("student_logits", "teacher_logits", "labels", "mask"):
            if not isinstance(value := getattr(self, name), Tensor) and (value is not None or name.endswith("logits")):
                raise BadInputError(f"{name} must be a tensor; got {type(value).__name__}")
        student, teacher = self.student_logits.shape, self.teacher_logits.shape
        if len(student) < 1 or student != teacher:
            classes = [shape[-1] if shape else 0 for shape in (student, teacher)]
            padded = ' For vocabularies padded unlike: Controller(..., align_classes="shorter")'
            raise BadInputError(
                f"student has {classes[0]} class outputs, teacher {classes[1]} "
                f"(shapes {tuple(student)} and {tuple(teacher)}): "
                f"both need logits of one shape [..., C], on the same samples.{padded if len({*classes}) > 1 else ''}"
            )
        if any(logits.is_complex() for logits in (self.student_logits, self.teacher_logits)):
            raise BadInputError("logits must be real numbers; got complex ones")
        if student[-1] < 2:
            raise BadInputError(f"logits need at least 2 classes on their last axis; got shape {tuple(student)}")
        if self.labels is not None and self.labels.shape != student[:-1]:
            raise BadInputError(f"labels have shape {tuple(self.labels.shape)}, needed: {tuple(student[:-1])}")
        if self.labels is not None and self.labels.dtype != torch.int64:
            if self.labels.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32):
                raise BadInputError(f"labels must be integers; got {self.labels.dtype}")
            object.__setattr__(self, "labels", self.labels.long())
        if self.mask is not None and (self.mask.shape != student[:-1] or self.mask.dtype != torch.bool):
            raise BadInputError(
                f"mask has shape {tuple(self.mask.shape)} and type {self.mask.dtype}; "
                f"needed: {tuple(student[:-1])}, torch.bool"
            )
        if self.stacked and len(student) < 3:
            raise BadInputError(f"a stack needs logits [S, ..., C]; got shape {tuple(student)}")
        if isinstance(self.progress, Tensor):
            if self.progress.numel() != 1:
                raise BadInputError(f"progress must be one number; got shape {tuple(self.progress.shape)}")
            object.__setattr__(self, "progress", self.progress.clamp(0.0, 1.0))
        elif not isinstance(self.progress, Real) or not (0.0 <= self.progress <= 1.0 or math.isnan(self.progress)):
            raise BadInputError(f"progress must be a number between 0 and 1; got {self.progress!r:.80}")

    def __repr__(self) -> str:
        known = "".join(f"{name}, " for name in ("labels", "mask") if getattr(self, name) is not None)
        size = f"{' x '.join(map(str, self.shape)) or 1} samples of {self.num_classes} classes"
        return f"Signals({size}, {known}progress={self.progress})"

    @property
    def shape(self) -> torch.Size:
        """The leading shape: one entry a sample."""
        return self.student_logits.shape[:-1]

    @property
    def num_classes(self) -> int:
        """C, the size of the last axis."""
        return self.student_logits.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """What temperatures and losses are computed in: float32, or float64 where either network's logits are."""
        exact = self.student_logits.dtype == torch.float64 or self.teacher_logits.dtype == torch.float64
        return torch.float64 if exact else torch.float32

    def need_progress(self, owner: str) -> None:
        """Refuse signals that do not say how much of the run is done, in the name of who needs it."""
        if not isinstance(self.progress, Tensor) and not 0.0 <= self.progress <= 1.0:  # as torch.compile can follow
            raise BadInputError(f"{owner} uses the progress of the run: give progress, 0 to 1, as in step / steps")

    @contextmanager
    def labels_named(self) -> Iterator[None]:
        """Turn torch's refusal of a label that is no class into one line that names it and its place.

        Nothing is read unless torch refuses; on an accelerator its own error ends the process.
        """
        try:
            yield
        except (IndexError, RuntimeError):
            if self.labels is None or not self.labels.is_cpu:
                raise
            wrong = ((self.labels < 0) | (self.labels >= self.num_classes)).nonzero().tolist()
            if not wrong:
                raise
            place = wrong[0]
            raise BadInputError(
                f"label {int(self.labels[tuple(place)])} at {place} is no class; needed: 0 to {self.num_classes - 1}, "
                "and a mask (mask=labels >= 0) for samples without a label"
            ) from None

    def full(self, value: float | Tensor) -> Tensor:
        """`value` once per sample, float32 (float64 for float64 logits), on the logits' device."""
        if isinstance(value, Tensor):
            return value.detach().to(self.student_logits.device, self.dtype).reshape(()).expand(self.shape)
        return torch.full(self.shape, float(value), dtype=self.dtype, device=self.student_logits.device)

    def groups(self, values: Tensor) -> Tensor:
        """Values `[...]` as `[G, N]`: a row for each batch whose samples may be compared, one or one a student."""
        return values.flatten(1) if self.stacked else values.reshape(1, -1)

    def means(self, values: Tensor) -> Tensor:
        """The mean of values `[...]` over each batch, `[G, 1]`, of the samples that the mask leaves; 0 over none."""
        if self.mask is None:
            return self.groups(values).mean(1, keepdim=True)
        kept = self.groups(values.masked_fill(~self.mask, 0.0))
        return kept.sum(1, keepdim=True) / self.groups(self.mask).sum(1, keepdim=True).clamp(min=1)

    def of_batches(self, numbers: Tensor) -> Tensor:
        """One number a batch, `[G, 1]` as of `means`, for each of the batch's samples, `[...]`."""
        leading = (-1, *[1] * (len(self.shape) - 1)) if self.stacked else ()
        return numbers.view(leading).expand(self.shape)

    def made_safe(self) -> Signals:
        """The same with zeros for logits and labels where the mask has no sample: finite, and without a gradient.

        No shape depends on the mask, so no step waits for its device, as `samples` has to.
        """
        if self.mask is None or self.safe:
            return self
        out = ~self.mask
        student, teacher = (
            each.masked_fill(out.unsqueeze(-1), 0.0) for each in (self.student_logits, self.teacher_logits)
        )
        labels = None if self.labels is None else self.labels.masked_fill(out, 0)
        return replace(self, student_logits=student, teacher_logits=teacher, labels=labels, safe=True)

    def students(self) -> list[Signals]:
        """What each student of a stack sees, by itself: `[..., C]` of `[S, ..., C]`."""

        def own(field: Tensor | None, student: int) -> Tensor | None:
            return None if field is None else field[student]

        return [
            Signals(student, teacher, own(self.labels, place), self.progress, own(self.mask, place), safe=self.safe)
            for place, (student, teacher) in enumerate(zip(self.student_logits, self.teacher_logits, strict=True))
        ]

    def samples(self) -> Signals:
        """The samples that the mask leaves, as `[M, C]` without a mask; the whole, where there is none."""
        if self.mask is None:
            return self
        labels = None if self.labels is None else self.labels[self.mask]
        return Signals(self.student_logits[self.mask], self.teacher_logits[self.mask], labels, self.progress)


Divergence = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
"""Of softened logits of student and teacher, `[..., C]`, and labels: one value a sample, `[...]`. One that needs the
labels has an attribute `uses_labels` that is true."""


def full_precision(logits: Tensor) -> Tensor:
    """Logits in the type that temperatures and losses are computed in: float32, or float64 where they come so.

    >>> full_precision(torch.zeros(2, dtype=torch.bfloat16)).dtype, full_precision(torch.zeros(2).double()).dtype
    (torch.float32, torch.float64)
    """
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def bounded(values: Tensor) -> Tensor:
    """The same in full precision, within -1e12 and 1e12: then no rule, divergence or gradient of one overflows.

    What is not finite becomes nan: whoever watches for it (a gradient scaler, a run's guards) still sees it.

    >>> bounded(torch.tensor([2.5, -3e38, torch.inf]))
    tensor([ 2.5000e+00, -1.0000e+12,         nan])
    """
    exact = full_precision(values)
    return exact.clamp(-1e12, 1e12).add_(exact, alpha=0)
