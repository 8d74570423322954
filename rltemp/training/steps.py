"""One step of a run by a method, and the loop that repeats it.

`plain_step` shields the students of a stack from each other. `rltemp.training.guards` has a step for one student that
passes a faulty batch over. Neither waits for the device except to read one number: whether all is sound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from rltemp.kd.method import Objective, refuse_unlawful
from rltemp.kd.signals import Signals
from rltemp.kd.temperatures import Temperatures
from rltemp.training.distill import Distillation
from rltemp.training.look_ahead import look_ahead


class Taken(NamedTuple):
    """What a step saw, the per-sample losses, and its temperatures; None in a step that asks for none."""

    signals: Signals
    loss: Tensor
    temperatures: Temperatures | None


class Step(Protocol):
    """One step of a run by a method: what `train` repeats."""

    def __call__(self, run: Distillation, method: Objective) -> Taken:
        """Take it."""
        ...


def plain_step(run: Distillation, method: Objective) -> Taken:
    """Take a step, whatever its numbers are; a student whose numbers are not finite stops nobody else."""
    signals = shielded(run.observe())
    loss, temperatures = method.step_loss(signals)
    refuse_unlawful(method, temperatures)
    run.update(loss)
    return Taken(signals, loss, temperatures)


def shielded(signals: Signals) -> Signals:
    """The signals, with zeros for the student's logits of samples that are not finite, which every rule can take.

    A student's numbers reach nobody else's weights, but one nan among the temperatures would stop the stack.
    """
    # A sum of zeros is nan where one factor was not finite: a fifth of the time that `isfinite` takes.
    good = (0.0 * signals.student_logits.detach()).sum(-1, keepdim=True) == 0.0
    return replace(signals, student_logits=torch.where(good, signals.student_logits, 0.0))


def train(
    run: Distillation,
    method: Objective,
    on_step: Callable[[Distillation, Signals, Tensor], None] | None = None,
    step: Step = plain_step,
) -> nn.Module:
    """Train to the end of the run by `method`.

    Args:
        run: A run, fresh or under way.
        method: What each step minimises.
        on_step: Called after each update with the run, the signals and the per-sample losses of that step.
        step: How a step is taken.

    Returns:
        The trained student, or the stack of them, as it is evaluated.
    """
    method = run.attach(method)
    while not run.done:
        look_ahead(run, method)
        taken = step(run, method)
        if on_step is not None:
            on_step(run, taken.signals, taken.loss)
    return run.evaluated
