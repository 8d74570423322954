"""What leaves an environment's step is finite, or the step is an error that says what was not.

SB3's own check (`VecCheckNan`) does not look at terminal observations, and one nan there turns all weights of a policy
into nan. A student that diverges is no error: its run ends, with its last finite observation.

Whether all is sound stays on the device until the step reads all that leaves it, in one copy; only where it is not does
anybody look at what is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from rltemp.errors import TrainingDivergedError
from rltemp.kd.signals import Signals

HUGE = 1e15
"""Logits beyond this are a diverging student's: features square them, which float32 cannot hold much further."""


def sane(logits: Tensor) -> Tensor:
    """Which samples' logits `[..., C]` are not those of a student that diverges, bool `[...]`."""
    return (logits.detach().abs() < HUGE).all(-1)


def sound(observation: Tensor, signals: Signals) -> Tensor:
    """Whether the teacher's logits are finite, and the observation wherever the student's are sane: one bool."""
    signals = signals.made_safe()
    broken = ~observation.isfinite().all(-1) & sane(signals.student_logits)
    return signals.teacher_logits.isfinite().all() & ~broken.any()


def explain(observation: Tensor, signals: Signals, features: Sequence[str], step: int) -> None:
    """Say what is not `sound` about an observation `[..., F]` or the teacher's logits.

    Raises:
        TrainingDivergedError: Naming the teacher, or the feature, the sample and the step.
    """
    signals = signals.made_safe()
    bad = ~signals.teacher_logits.isfinite().all(-1)
    if bool(bad.any()):
        raise TrainingDivergedError(
            f"non-finite teacher logits: {int(bad.sum())} of {bad.numel()} samples (first {_place(bad)}) at "
            f"step {step}. Check the teacher's weights and the data"
        )
    bad = ~observation.isfinite() & sane(signals.student_logits).unsqueeze(-1)
    if bool(bad.any()):
        column = int(bad.nonzero()[0, -1])
        value, marked = observation[..., column], bad[..., column]
        raise TrainingDivergedError(
            f"feature {features[column]} is {_first(value, marked)} for {_place(marked)} at step {step}, though "
            "the student's logits are finite: its formula breaks down there. Leave it out"
        )


def broken_potentials(value: Tensor, logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Which potentials, `[]` or `[S]`, are not finite though the student's logits `[..., N, C]` are sane, bool.

    A mask, `[N]` or `[..., N]`, says which of them are a sample's.
    """
    of_no_sample = False if mask is None else ~mask
    return ~value.isfinite() & (sane(logits) | of_no_sample).all(-1)


def explain_potential(value: Tensor, bad: Tensor, metric: str, step: int) -> NoReturn:
    """Say which of the potentials `[]` or `[S]` is broken.

    Raises:
        TrainingDivergedError: Naming the potential, the student and the step.
    """
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
