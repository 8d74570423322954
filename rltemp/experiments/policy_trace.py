"""What a policy saw and answered in training, and what it would have answered with one feature shuffled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rltemp.errors import BadInputError
from rltemp.experiments.recorder import TRACE_POINTS
from rltemp.kd.divergences import log_softmax
from rltemp.kd.losses import cross_entropy
from rltemp.kd.method import Method
from rltemp.kd.signals import Signals, Temperatures, full_precision
from rltemp.kd.temperature_rule import TemperatureRule, per_batch
from rltemp.policy.features import featurize
from rltemp.policy.rule import Policy
from rltemp.rules.difficulty import random
from rltemp.training.distill import Distillation

LEAST_WEIGHT = 1e-12
"""What a weight of zero counts as in logarithms."""

THIRDS = ("first third", "middle third", "last third")
ANSWERS = ("student", "teacher", "weight")
NAMES = {
    "student": "student temperature",
    "teacher": "teacher temperature",
    "weight": "weight",
    "reference_student": "student temperature, reference alone",
    "reference_teacher": "teacher temperature, reference alone",
}

Trace = Mapping[str, NDArray[np.float64]]
"""What was kept, by name, each `[S, steps, k]`: k samples of every step of S students.

`progress` 0..1; `margin`: the teacher's first minus its second logit, in deviations; `confidence`: the student's
largest probability; `agreement`: 1 where both choose the same class; `difficulty`: the student's loss at the label, in
nats; `student_sharpness` and `teacher_sharpness`: largest minus mean logit; `student`, `teacher`, `weight`: the answer;
`reference_student`, `reference_teacher`: what the reference rule alone answers.
"""


class Probe:
    """A policy whose answer can be had with one feature shuffled.

    Args:
        path: The policy file.
        sha256: That it must have, where one is pinned.
    """

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        self.policy = Policy.load(path, sha256)
        self.features = [feature.name for feature in self.policy.manifest.features]

    def answer(self, signals: Signals, reference: Temperatures, feature: str | None = None) -> Temperatures:
        """What the policy answers, `[...]`, where `feature` comes from another sample of the batch.

        Progress is the same for a whole batch, so it is drawn from the whole run instead. Who gets whose depends on
        the batch's teacher logits and its progress alone: no state, the same for every stack size.
        """
        seen = featurize(signals, self.features)
        if feature is not None:
            place = self.features.index(feature)
            seen[..., place] = _moved(signals, seen[..., place], place, across_run=feature == "progress")
        return self.policy.scale.apply(signals, reference, self.policy.action_of(seen))

    def shuffled(self, feature: str) -> Method:
        """The policy's method, with one feature shuffled in all that it sees."""
        return replace(
            self.policy.method(f"{feature} shuffled"),
            rule=per_batch(lambda signals: self.answer(signals, self.reference(signals), feature)),
        )

    def reference(self, signals: Signals) -> Temperatures:
        """What the reference rule answers, `[...]`."""
        return self.policy.reference.rule(signals)

    @torch.no_grad()
    def changes(self, signals: Signals) -> Tensor:
        """How far each answer's logarithm moves where a feature is shuffled: mean over the samples, `[F, 3]`."""
        reference = self.reference(signals).detach()
        intact = _logarithms(self.answer(signals, reference))
        moved = [_logarithms(self.answer(signals, reference, feature)) for feature in self.features]
        return torch.stack([(one - intact).abs().flatten(0, -2).mean(0) for one in moved]).cpu()


class Watch(TemperatureRule):
    """A rule that answers as the policy does and keeps a part of what it saw and answered; see `Trace`.

    Args:
        probe: The policy.
        steps: Of a run.
        points: About how many samples are kept of a run.
    """

    def __init__(self, probe: Probe, steps: int, points: int = TRACE_POINTS) -> None:
        self.probe = probe
        self._per_step = max(1, points // steps)
        self._runs: list[list[dict[str, Tensor]]] = []
        self._changes: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(0)

    def begin(self, run: Distillation) -> Method:
        """A maker (`rltemp.experiments.compare.Maker`): the policy's method, watched, for the next stack's run."""
        self._runs.append([])
        method = self.probe.policy.method("watched")
        return replace(method, rule=self)

    def answer(self, signals: Signals) -> Temperatures:
        """What the policy answers."""
        found = self.probe.policy(signals)
        values = observed(signals) | self._answers(signals, found.detach())
        rows = {name: value.reshape(-1, signals.shape[-1]) for name, value in values.items()}
        drawn = torch.randperm(signals.shape[-1], generator=self._generator)[: self._per_step]
        self._runs[-1].append({name: row[:, drawn.to(row.device)].cpu() for name, row in rows.items()})
        self._changes.append(self.probe.changes(signals) * len(rows["student"]))
        return found

    def trace(self) -> Trace:
        """What was kept of all runs."""
        names = self._runs[0][0]
        runs = {name: [torch.stack([step[name] for step in run], 1) for run in self._runs] for name in names}
        return {name: torch.cat(parts).double().numpy() for name, parts in runs.items()}

    def changes(self) -> NDArray[np.float64]:
        """Mean over all students, steps and samples of `Probe.changes`, `[F, 3]`."""
        students = sum(len(run[0]["student"]) * len(run) for run in self._runs)
        mean: NDArray[np.float64] = (torch.stack(self._changes).double().sum(0) / students).numpy()
        return mean

    def _answers(self, signals: Signals, found: Temperatures) -> dict[str, Tensor]:
        reference = self.probe.reference(signals).detach()
        answers = {name: getattr(found, name) for name in ANSWERS}
        return answers | {"reference_student": reference.student, "reference_teacher": reference.teacher}


@torch.no_grad()
def observed(signals: Signals) -> dict[str, Tensor]:
    """What a `Trace` holds of signals with labels beside the answers, `[...]` each."""
    student, teacher = full_precision(signals.student_logits.detach()), full_precision(signals.teacher_logits)
    return {
        "progress": signals.full(signals.progress),
        "margin": featurize(signals, ["teacher_margin"])[..., 0] + 1,  # the feature is the margin less one
        "confidence": log_softmax(student).amax(-1).exp(),
        "agreement": (student.argmax(-1) == teacher.argmax(-1)).float(),
        "difficulty": cross_entropy(signals).detach(),
        "student_sharpness": student.amax(-1) - student.mean(-1),
        "teacher_sharpness": teacher.amax(-1) - teacher.mean(-1),
    }


def thirds(trace: Trace) -> list[Trace]:
    """The trace of each third of the steps at which the policy was asked: all, but where a warm-up leaves some out."""
    steps = np.arange(trace["progress"].shape[1])
    if len(steps) < len(THIRDS):
        raise BadInputError(f"thirds of a run need at least 3 steps under the policy; this one has {len(steps)}")
    return [{name: values[:, here] for name, values in trace.items()} for here in np.array_split(steps, len(THIRDS))]


def geometric_mean(values: NDArray[np.float64]) -> float:
    """Of all values; a zero counts as `LEAST_WEIGHT`."""
    return float(np.exp(np.log(np.maximum(values, LEAST_WEIGHT)).mean()))


def _moved(signals: Signals, column: Tensor, seed: int, across_run: bool) -> Tensor:
    """A feature `[...]` with each sample's from its neighbour in a random order, or drawn evenly from -1 to 1."""
    drawn = random(1.0, math.e, seed=3_000 + seed)(signals).student.log()
    if across_run:
        return (2 * drawn - 1).to(column.dtype)
    order = signals.groups(drawn).argsort(-1)
    source = order.scatter(-1, order, order.roll(1, -1))
    return signals.groups(column).gather(-1, source).reshape(column.shape)


def _logarithms(found: Temperatures) -> Tensor:
    """Natural logarithms of the three answers, `[..., 3]`; a weight of zero counts as `LEAST_WEIGHT`."""
    return torch.stack([found.student, found.teacher, found.weight], -1).clamp(min=LEAST_WEIGHT).log()
