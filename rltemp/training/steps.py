"""One step of a run by a method, and the loop that repeats it.

`plain_step` shields the students of a stack from each other. `rltemp.training.guards` has a step for one student that
passes a faulty batch over. Neither waits for the device except to read one number: whether all is sound.

`look_ahead` moves the temperatures of a rule that looks a step ahead, by how the probe's loss after the next step
depends on them. That step is plain gradient descent at the run's learning rate, whatever the run's optimizer is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rltemp.data.dataset import Batch
from rltemp.errors import BadInputError
from rltemp.kd.losses import batch_mean, cross_entropy
from rltemp.kd.method import Method, Objective, refuse_unlawful
from rltemp.kd.signals import Signals
from rltemp.kd.temperatures import Temperatures
from rltemp.models.stack import logits_of
from rltemp.rules.meta import Mkd
from rltemp.training.distill import Distillation


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
    for taken in steps(run, run.attach(method), step):
        if on_step is not None:
            on_step(run, taken.signals, taken.loss)
    return run.evaluated


def steps(run: Distillation, method: Objective, step: Step = plain_step) -> Iterator[Taken]:
    """Take the steps of a run that are left, by a method that is attached to it, and give what each has taken."""
    while not run.done:
        look_ahead(run, method)
        yield step(run, method)


def look_ahead(run: Distillation, method: Objective) -> None:
    """Move the temperatures of a rule that looks ahead, where it is time; of any other nothing happens.

    Raises:
        BadInputError: Where the task has no probe data or these no labels, or several processes train the student.
    """
    if not isinstance(method, Method) or not isinstance(method.rule, Mkd) or run.step % method.rule.every:
        return
    rule = method.rule
    slope = probe_slope(run, method, rule)
    with torch.no_grad():
        rule.theta -= rule.speed * slope.nan_to_num(0.0, 0.0, 0.0).sign()


def probe_slope(run: Distillation, method: Method, rule: Mkd) -> Tensor:
    """The derivative of the probe's loss, after one step of the student, by theta: of theta's shape."""
    if not run.problem.labelled or run.shared or not len(run.problem.dataset.probe):
        raise BadInputError("mkd looks ahead on labelled probe data, in one process; take another method")
    weights: dict[str, Tensor] = dict(run.student.named_parameters())
    rule.live, kept = True, rule.theta
    rule.theta = kept.detach().requires_grad_()
    try:
        signals = run.signals_at(run.step, weights)
        loss = batch_mean(method.step_loss(signals).loss, signals.mask).sum()
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        rate = run.recipe.rate(run.step, run.steps, run.recipe.learning_rate)
        moved = {name: value - rate * by for (name, value), by in zip(weights.items(), gradients, strict=True)}
        slope: Tensor = torch.autograd.grad(_probe_loss(run, moved), rule.theta)[0]
        return slope
    finally:
        rule.live, rule.theta = False, kept


def _probe_loss(run: Distillation, weights: dict[str, Tensor]) -> Tensor:
    """The summed cross-entropy of the students on a batch of their probe, which goes through it look by look."""
    batch = _probe_batch(run)
    buffers = {name: value.clone() for name, value in run.student.named_buffers()}
    run.student.eval()
    logits = logits_of(functional_call(run.student, {**weights, **buffers}, (batch.inputs,)))
    run.student.train()
    signals = run.signals(batch, logits, torch.zeros_like(logits), progress=run.progress)
    return batch_mean(cross_entropy(signals), signals.mask).sum()


def _probe_batch(run: Distillation) -> Batch:
    dataset, size = run.problem.dataset, run.recipe.batch_size
    index = (torch.arange(size, device=run.problem.device) + run.step * size) % len(dataset.probe)
    return dataset.batch(dataset.probe, index if isinstance(run.seeds, int) else index.expand(len(run.seeds), -1))
