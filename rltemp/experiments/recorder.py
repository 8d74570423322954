"""Records what methods see and answer while they train students.

What is kept are columns, numbers by name for every sample: `rltemp.experiments.showcase`, `recorded_controls` and
`explain` each say which. The picture of a comparison shows `temperature_columns`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.kd.signals import Signals
from rltemp.kd.temperatures import Temperatures
from rltemp.policy.features import featurize
from rltemp.policy.rule import Policy
from rltemp.training.distill import Distillation

Columns = Callable[[Signals, Temperatures | None], Mapping[str, Tensor]]
"""From the signals and answers of a step (None where the rule was not asked) to what is recorded, by name: `[B]` or
`[S, B]` each. Nothing leaves the step out."""


class Recorder:
    """Records columns of every step that `rltemp.experiments.students.train_stack` tells it; students do not change.

    Sums are over all samples of a step. Single samples are drawn: of every student as many, and the same ones.

    Args:
        columns: What is recorded.
        steps: Of a run.
        points: About how many samples of each student's run are kept.
    """

    def __init__(self, columns: Columns, steps: int, points: int) -> None:
        self.steps = steps
        self.names: tuple[str, ...] = ()
        self._columns = columns
        self._every, self._per_step = -(-steps // points), max(1, points // steps)
        self._generator = torch.Generator().manual_seed(0)
        self._runs: list[list[Tensor]] = []
        self._sums = torch.zeros(steps, 0, dtype=torch.float64)
        self._counts = torch.zeros(steps, 1, dtype=torch.float64)

    def begin(self) -> None:
        """The next run begins."""
        self._runs.append([])

    def end(self, run: Distillation) -> None:
        """Take what is wanted of a run after its last step; here nothing."""

    @torch.no_grad()
    def keep(self, signals: Signals, temperatures: Temperatures | None) -> None:
        """Record one step: of the samples that the mask leaves."""
        signals = signals.made_safe()
        values = self._columns(signals, temperatures)
        if not values:
            return
        rows = torch.stack([value.detach().double().reshape(-1, signals.shape[-1]) for value in values.values()])
        if not self.names:
            self.names, self._sums = tuple(values), self._sums.new_zeros(self.steps, len(values))
        mask = torch.ones_like(rows[0], dtype=torch.bool)
        if signals.mask is not None:  # of the first student alone, where the columns are
            mask = signals.mask.view(-1, signals.shape[-1])[: len(mask)]
            rows = rows.masked_fill(~mask, 0.0)
        step = round(float(signals.progress) * self.steps)
        self._sums[step] += rows.sum((1, 2)).cpu()
        self._counts[step] += int(mask.sum())
        if step % self._every == 0:
            order = torch.randperm(rows.shape[-1], generator=self._generator).to(rows.device)
            places = _kept_first(order, mask)[:, : self._per_step]
            self._runs[-1].append(rows.take_along_dim(places.expand(len(rows), -1, -1), -1).cpu())

    def samples(self) -> dict[str, Tensor]:
        """The samples of all students, `[S, steps, k]` each, float64; nothing where nothing was kept."""
        kept = [torch.stack(run, 2) for run in self._runs if run]
        return dict(zip(self.names, torch.cat(kept, 1), strict=True)) if kept else {}

    def means(self) -> dict[str, float]:
        """The mean of every column over all samples and steps."""
        return dict(zip(self.names, (self._sums.sum(0) / self._counts.sum()).tolist(), strict=True))

    def course(self) -> dict[str, list[float]]:
        """The means of every step; a step without any (a warm-up's first) has those of the next."""
        known = self._counts[:, 0].nonzero()[:, 0]
        nearest = known[torch.searchsorted(known, torch.arange(self.steps)).clamp(max=len(known) - 1)]
        return dict(zip(self.names, (self._sums[nearest] / self._counts[nearest]).T.tolist(), strict=True))


def _kept_first(order: Tensor, mask: Tensor) -> Tensor:
    """An order of places `[B]` without those that the mask `[S, B]` leaves out: its others again, `[S, B]`."""
    kept_first = order[(~mask[:, order]).long().argsort(dim=-1, stable=True)]
    turn = torch.arange(len(order), device=order.device) % mask.sum(-1, keepdim=True).clamp(min=1)
    return kept_first.gather(-1, turn)


@dataclass(frozen=True)
class TemperatureTrace:
    """The temperatures that a rule gave, over samples drawn from whole runs; every array is `[N]`.

    Args:
        progress: How much of the run was done, 0 to 1.
        teacher_margin: The teacher's first minus its second logit, in standard deviations of its logits. (The
            difference of probabilities is near 1 for almost every sample of a good teacher, and shows nothing.)
        student_temperature: Positive.
        teacher_temperature: Positive.
        reference: The temperature that an idle policy would give.

    Raises:
        BadInputError: Where the four arrays are not rows of one length, or a temperature is not positive.
    """

    progress: NDArray[np.float64]
    teacher_margin: NDArray[np.float64]
    student_temperature: NDArray[np.float64]
    teacher_temperature: NDArray[np.float64]
    reference: float

    def __post_init__(self) -> None:
        names = ("progress", "teacher_margin", "student_temperature", "teacher_temperature")
        shapes = {name: np.shape(getattr(self, name)) for name in names}
        if len(set(shapes.values())) != 1 or len(shapes["progress"]) != 1 or shapes["progress"] == (0,):
            raise BadInputError(f"a trace needs four rows of one length; got {shapes}")
        temperatures = np.append(self.student_temperature, self.teacher_temperature)
        if not (np.isfinite(temperatures) & (temperatures > 0)).all() or not 0 < self.reference < math.inf:
            raise BadInputError("a trace needs temperatures that are positive and finite, for its log axis")


def temperature_columns(policy: Policy) -> Columns:
    """What a `TemperatureTrace` holds of a policy, or of a control of it."""

    def columns(signals: Signals, temperatures: Temperatures | None) -> dict[str, Tensor]:
        if temperatures is None:
            return {}
        reference: Any = policy.reference.rule
        return {
            "progress": signals.full(signals.progress),
            "margin": teacher_margin(signals),
            "student": temperatures.student,
            "teacher": temperatures.teacher,
            "reference": reference(signals).teacher,
        }

    return columns


def temperature_trace(recorder: Recorder) -> TemperatureTrace | None:
    """What a recorder of `temperature_columns` has kept; None where the policy was never asked."""
    if not (samples := recorder.samples()):
        return None
    progress, margin, student, teacher, reference = (value.flatten().numpy() for value in samples.values())
    return TemperatureTrace(progress, margin, student, teacher, float(reference.mean()))


def teacher_margin(signals: Signals) -> Tensor:
    """The teacher's first minus its second logit, in standard deviations of its logits, `[...]`."""
    return featurize(signals, ["teacher_margin"])[..., 0] + 1  # the feature is the margin less one
