"""What a training step sees, and what a temperature rule answers: the two types that everything here is made of.

Shapes: C is the number of classes and always the last axis of logits; `...` is any leading shape, `[B]` for a batch,
`[S, B]` for S students that are trained as one stack. Every field of `Temperatures` has exactly the leading shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rltemp.errors import BadInputError


@dataclass(frozen=True, repr=False)
class Signals:
    """What a distillation step can see of its samples before it chooses their temperatures.

    Args:
        student_logits: `[..., C]`, with the student's graph attached.
        teacher_logits: `[..., C]`, no graph.
        labels: `[...]` integers in 0..C-1, or None where the loop has none (rules that need them say so).
        progress: How much of the run is done, 0 (first step) to 1 (after the last): a number; or a tensor of one, which
            is kept within 0 and 1 and never read, so that no step waits for it and no compiled step is compiled anew.
            nan where the loop does not know it: whatever needs it says so.
        mask: `[...]` bool, False where there is no sample (padding of a token batch); None: all are samples. What
            stands in such a place, nan among it, reaches neither a loss nor a gradient.
        stacked: The first axis counts students of a stack that know nothing of each other: a rule that compares a
            sample with its batch then compares it with the batch of its own student. Each has its own mask.
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

    def __post_init__(self) -> None:
        for name in ("student_logits", "teacher_logits", "labels", "mask"):
            if not isinstance(value := getattr(self, name), Tensor) and (value is not None or name.endswith("logits")):
                raise BadInputError(f"{name} must be a tensor; got {type(value).__name__}")
        student, teacher = self.student_logits.shape, self.teacher_logits.shape
        if len(student) < 1 or student != teacher:
            raise BadInputError(
                f"student has {student[-1] if student else 0} class outputs, teacher {teacher[-1] if teacher else 0} "
                f"(shapes {tuple(student)} and {tuple(teacher)}): "
                "both need logits of one shape [..., C], on the same samples"
            )
        if student[-1] < 2:
            raise BadInputError(f"logits need at least 2 classes on their last axis; got shape {tuple(student)}")
        if self.labels is not None and self.labels.shape != student[:-1]:
            raise BadInputError(f"labels have shape {tuple(self.labels.shape)}, needed: {tuple(student[:-1])}")
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
        elif not (0.0 <= self.progress <= 1.0 or math.isnan(self.progress)):
            raise BadInputError(f"progress must be between 0 and 1; got {self.progress}")

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


OUTPUTS = ("student_temperature", "teacher_temperature", "weight", "label_weight")


@dataclass(frozen=True)
class Temperatures:
    """A rule's answer: two temperatures and a weight for every sample, each of shape `[...]`.

    Every published rule is a choice of exactly these three: `fixed` answers (T, T, T^2), DTKD (T_s, T_t, T_s T_t).
    The weight multiplies the sample's divergence. A policy may answer a fourth, for the sample's label.

    Args:
        student: Of the student's logits, above 0.
        teacher: Of the teacher's logits, above 0.
        weight: Of the sample's divergence, 0 or more.
        guarded: Where a safe value stands in for a formula's, or a policy fades, bool; None from rules without a guard.
        label_weight: Of the sample's cross-entropy with its label, 0 or more, where the method has one; None: 1.

    Raises:
        BadInputError: Where one is no tensor, or shapes differ. A `[B, 1]` beside a `[B]` would broadcast to `[B, B]`
            and average away which weight belongs to which sample; it is refused by name.

    >>> Temperatures(torch.tensor([4.0]), torch.tensor([2.0]), torch.tensor([8.0]))
    Temperatures(student=tensor([4.]), teacher=tensor([2.]), weight=tensor([8.]), guarded=None)
    """

    student: Tensor
    teacher: Tensor
    weight: Tensor
    guarded: Tensor | None = None
    label_weight: Tensor | None = None

    def __post_init__(self) -> None:
        given: dict[str, Any] = {"student": self.student, "teacher": self.teacher, "weight": self.weight}
        optional = {"guarded": self.guarded, "label_weight": self.label_weight}
        given |= {name: value for name, value in optional.items() if value is not None}
        kinds = [name for name, value in given.items() if not isinstance(value, Tensor)]
        if kinds or any(value.shape != self.student.shape for value in given.values()):
            got = {name: type(one).__name__ if name in kinds else tuple(one.shape) for name, one in given.items()}
            raise BadInputError(f"temperatures need tensors of one shape, one value per sample; got {got}")

    def outputs(self) -> dict[str, Tensor]:
        """The four numbers of every sample by the names that programs of other makers know them by, `OUTPUTS`."""
        label_weight = torch.ones_like(self.weight) if self.label_weight is None else self.label_weight
        return dict(zip(OUTPUTS, (self.student, self.teacher, self.weight, label_weight), strict=True))

    def detach(self) -> Temperatures:
        """The same numbers as constants of the graph."""
        return self.each(lambda values, _: values.detach())

    def within(self, mask: Tensor, elsewhere: float = 1.0) -> Temperatures:
        """The same where the mask is true; one temperature and weight 0 elsewhere, without a gradient."""
        out = ~mask
        return self.each(lambda values, fill: values.masked_fill(out, fill), elsewhere)

    def of_samples(self, mask: Tensor | None) -> Temperatures:
        """Those of the samples that the mask leaves, `[M]`; all, where there is none."""
        return self if mask is None else self.each(lambda values, _: values[mask])

    def spread(self, mask: Tensor, elsewhere: float = 1.0) -> Temperatures:
        """`[M]` of them where the mask is true, one temperature and weight 0 elsewhere: `[...]`, with their graph."""
        return self.each(lambda values, fill: scatter(values, mask, fill), elsewhere)

    def each(self, change: Callable[[Tensor, float], Tensor], elsewhere: float = 1.0) -> Temperatures:
        """Its fields that are there, changed one by one; `change` is told what each is where there is no sample."""

        def of(values: Tensor | None, fill: float) -> Tensor | None:
            return None if values is None else change(values, fill)

        student, teacher = change(self.student, elsewhere), change(self.teacher, elsewhere)
        weight, guarded, label_weight = change(self.weight, 0.0), of(self.guarded, False), of(self.label_weight, 1.0)
        return Temperatures(student, teacher, weight, guarded, label_weight)

    @staticmethod
    def stack(each: Sequence[Temperatures]) -> Temperatures:
        """Temperatures `[...]` of several students as those of a stack, `[S, ...]`."""
        return Temperatures._of_all(each, torch.stack)

    @staticmethod
    def joined(each: Sequence[Temperatures]) -> Temperatures:
        """Temperatures `[N, ...]` of several parts, one after the other."""
        return Temperatures._of_all(each, torch.cat)

    @staticmethod
    def _of_all(each: Sequence[Temperatures], join: Callable[[list[Tensor]], Tensor]) -> Temperatures:
        columns = {field.name: [getattr(one, field.name) for one in each] for field in fields(Temperatures)}
        whole = {name: own for name, own in columns.items() if all(value is not None for value in own)}
        return Temperatures(**{name: join(own) for name, own in whole.items()})


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


def scatter(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    """Put `values`, `[M]`, where the mask is true, and `fill` elsewhere: `[...]`, with the graph of the values."""
    return torch.full(mask.shape, fill, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


NETWORKS = ("teacher", "student")
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}


def temperature_scalars(temperatures: Temperatures) -> dict[str, float]:
    """Mean and quantiles over the batch of both networks' temperatures, and the fraction that a guard has set.

    >>> found = temperature_scalars(Temperatures(torch.ones(3), torch.tensor([1.0, 2.0, 6.0]), torch.ones(3)))
    >>> found["temperature/teacher_mean"], found["temperature/teacher_q50"]
    (3.0, 2.0)
    """
    guarded = temperatures.guarded
    found = {"temperature/guarded": 0.0 if guarded is None else float(guarded.float().mean())}
    for network in NETWORKS:
        values = getattr(temperatures, network).detach().float().flatten()
        quantiles = values.quantile(torch.tensor(list(QUANTILES.values()), device=values.device)).tolist()
        found[f"temperature/{network}_mean"] = float(values.mean())
        found |= {f"temperature/{network}_{q}": v for q, v in zip(QUANTILES, quantiles, strict=True)}
    return found
