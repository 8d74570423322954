"""What leaves an environment's step is finite, or the step is an error that says what was not.

SB3's own check (`VecCheckNan`) does not look at terminal observations, and one nan there turns all weights of a policy
into nan. A student that diverges is no error: its run ends, with its last finite observation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rltemp.errors import TrainingDivergedError
from rltemp.kd.signals import Signals

HUGE = 1e15
"""Logits beyond this are a diverging student's: features square them, which float32 cannot hold much further."""


def check_teacher(signals: Signals, step: int) -> None:
    """Refuse teacher logits that are not finite.

    Raises:
        TrainingDivergedError: Naming the sample and the step.
    """
    good = signals.teacher_logits.isfinite().all(-1)
    if not bool(good.all()):
        raise TrainingDivergedError(
            f"non-finite teacher logits: {int((~good).sum())} of {good.numel()} samples (first {_place(~good)}) at "
            f"step {step}. Check the teacher's weights and the data"
        )


def check_observation(observation: Tensor, signals: Signals, features: Sequence[str], step: int) -> None:
    """Refuse an observation `[..., F]` that is not finite though the student's logits are sound.

    Raises:
        TrainingDivergedError: Naming the feature, the sample and the step.
    """
    good = observation.isfinite()
    if bool(good.all()):
        return
    sound = (signals.student_logits.detach().abs() < HUGE).all(-1)
    bad = ~good & sound.unsqueeze(-1)
    if bool(bad.any()):
        column = int(bad.nonzero()[0, -1])
        value, marked = observation[..., column], bad[..., column]
        raise TrainingDivergedError(
            f"feature {features[column]} is {_first(value, marked)} for {_place(marked)} at step {step}, though "
            "the student's logits are finite: its formula breaks down there. Leave it out"
        )


def check_potential(value: Tensor, logits: Tensor, metric: str, step: int) -> None:
    """Refuse a potential, `[]` or `[S]`, that is not finite though the student's logits `[..., N, C]` are sound.

    Raises:
        TrainingDivergedError: Naming the potential, the student and the step.
    """
    good = value.isfinite()
    if bool(good.all()):
        return
    bad = ~good & (logits.abs() < HUGE).flatten(-2).all(-1)
    if bool(bad.any()):
        student = f" of student {int(bad.nonzero()[0, 0])}" if bad.dim() else ""
        raise TrainingDivergedError(
            f"reward: the potential {metric}{student} is {_first(value, bad)} at step {step}, though the student's "
            "logits are finite: its formula breaks down there. Use another metric"
        )


def _first(values: Tensor, bad: Tensor) -> float:
    return float(torch.masked_select(values, bad)[0])


def _place(bad: Tensor) -> str:
    """The first marked sample, in words."""
    *student, sample = bad.nonzero()[0].tolist()
    return f"sample {sample} of student {student[0]}" if student else f"sample {sample}"
