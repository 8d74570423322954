"""What a temperature rule answers: temperatures and weights, one number of each for every sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rltemp.errors import BadInputError

OUTPUTS = ("student_temperature", "teacher_temperature", "weight")


@dataclass(frozen=True)
class Temperatures:
    """A rule's answer: two temperatures and a weight for every sample, each of shape `[...]`.

    Every published rule is a choice of exactly these three: `fixed` answers (T, T, T^2), DTKD (T_s, T_t, T_s T_t).
    The weight multiplies the sample's divergence.

    Args:
        student: Of the student's logits, above 0.
        teacher: Of the teacher's logits, above 0.
        weight: Of the sample's divergence, 0 or more.
        guarded: Where a safe value stands in for a formula's, or a policy fades, bool; None from rules without a guard.

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

    def __post_init__(self) -> None:
        given: dict[str, Any] = {"student": self.student, "teacher": self.teacher, "weight": self.weight}
        given |= {} if self.guarded is None else {"guarded": self.guarded}
        kinds = [name for name, value in given.items() if not isinstance(value, Tensor)]
        if kinds or any(value.shape != self.student.shape for value in given.values()):
            got = {name: type(one).__name__ if name in kinds else tuple(one.shape) for name, one in given.items()}
            raise BadInputError(f"temperatures need tensors of one shape, one value per sample; got {got}")

    def outputs(self) -> dict[str, Tensor]:
        """The three numbers of every sample by the names that programs of other makers know them by, `OUTPUTS`."""
        return dict(zip(OUTPUTS, (self.student, self.teacher, self.weight), strict=True))

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
        student, teacher = change(self.student, elsewhere), change(self.teacher, elsewhere)
        guarded = None if self.guarded is None else change(self.guarded, False)
        return Temperatures(student, teacher, change(self.weight, 0.0), guarded)

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
