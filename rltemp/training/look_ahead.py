"""One differentiable step ahead: how the probe's loss after the next step depends on a rule's temperatures.

The step is plain gradient descent at the run's learning rate, whatever the run's optimizer is.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from rltemp.data.dataset import Batch
from rltemp.errors import BadInputError
from rltemp.kd.losses import batch_mean, cross_entropy
from rltemp.kd.method import Method, Objective
from rltemp.models.stack import logits_of
from rltemp.rules.meta import Mkd
from rltemp.training.distill import Distillation


def look_ahead(run: Distillation, method: Objective) -> None:
    """Move the temperatures of a rule that looks ahead, where it is time; of any other nothing happens.

    Raises:
        BadInputError: Where the probe has no labels, or several processes train the student.
    """
    if not isinstance(method, Method) or not isinstance(method.rule, Mkd) or run.step % method.rule.every:
        return
    rule = method.rule
    slope = probe_slope(run, method, rule)
    with torch.no_grad():
        rule.theta -= rule.speed * slope.nan_to_num(0.0, 0.0, 0.0).sign()


def probe_slope(run: Distillation, method: Method, rule: Mkd) -> Tensor:
    """The derivative of the probe's loss, after one step of the student, by theta: of theta's shape."""
    if not run.problem.labelled or run.shared:
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
