"""What students are worth on samples that they are not trained on: a run's potential, look by look."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rltemp.envs.finite import broken_potentials, explain_potential
from rltemp.envs.rewards import POTENTIALS, bounded
from rltemp.kd.names import lookup
from rltemp.models.stack import logits_of
from rltemp.training.distill import Distillation


class Measured(NamedTuple):
    """One look at the probe.

    Args:
        potential: Of each student, `[]` or `[S]`; the worst of one that is lost.
        lost: Which students' numbers are not finite, `[]` or `[S]` bool.
        seen_potential: The same on the host.
        seen_lost: Likewise.
    """

    potential: Tensor
    lost: Tensor
    seen_potential: NDArray[np.float32]
    seen_lost: NDArray[np.bool_]


class ProbeEvaluator:
    """The probe samples of a run's students.

    Args:
        run: Of one student or a stack.
        positions: In the run's own split, `[P]` or `[S, P]`.
    """

    def __init__(self, run: Distillation, positions: Tensor) -> None:
        self.run = run
        self.positions = positions
        self._metric = lookup(POTENTIALS, run.problem.metric, "metric")

    @torch.no_grad()
    def measure(self, lost: Tensor) -> Measured:
        """Evaluate each student as it is now; those that are `lost` already, `[]` or `[S]` bool, stay so.

        Raises:
            TrainingDivergedError: Where a potential is not finite though the student's logits are.
        """
        logits, labels, mask = self._logits()
        value = self._metric(logits, labels) if mask is None else self._metric(logits, labels, mask)
        bad = broken_potentials(value, logits, mask)
        finite = logits.isfinite().all(-1)
        finite = (finite if mask is None else finite | ~mask).all(-1)
        lost = lost | ~value.isfinite() | ~finite
        potential = bounded(value.masked_fill(lost, torch.nan), self.run.problem.metric)
        host = torch.cat([potential.flatten(), lost.flatten(), bad.any()[None]]).numpy(force=True)  # one wait
        if host[-1]:
            explain_potential(value, bad, self.run.problem.metric, self.run.step)
        seen, gone = host[:-1].reshape(2, *value.shape)
        return Measured(potential, lost, seen, gone.astype(bool))

    def _logits(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The samples that each student is measured on: logits `[..., K, C]`, labels and, with padding, a mask."""
        run = self.run
        run.evaluated.eval()
        batch = run.problem.dataset.batch(run.split, self.positions)
        labels = batch.labels
        assert labels is not None  # of data without labels the teacher's predictions
        logits, lead = logits_of(run.evaluated(batch.inputs)).float(), self.positions.dim() - 1
        mask = None if batch.mask is None else batch.mask.flatten(lead)
        return logits.flatten(lead, -2), labels.flatten(lead), mask
