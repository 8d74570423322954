"""What a temperature is rewarded for: a student's progress on probe data, and each sample's share of it.

A *potential* measures how good a student is, on probe samples, in eval mode, without any temperature in it (a
reward that contains its own temperature is maximised by the temperature alone). A step's reward is the
potential's change, so a run's rewards sum to its whole improvement. `influence` shares the end of a run out
to single actions.

To add a potential: a function from probe logits and labels to one number a student, and an entry in
`POTENTIALS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rltemp.kd.signals import Signals
from rltemp.training.distill import Distillation

Potential = Literal["margin", "log_odds", "log_likelihood"]
"""Names of `POTENTIALS`."""

MARGIN_SLOPE = 20.0
"""Slope of the smooth accuracy, per standard deviation of a sample's logits."""


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """A smooth accuracy: the mean sigmoid of a steep multiple of the true class's standardised margin.

    It does not see the scale of the logits, which temperatures change without changing a single prediction.

    Args:
        logits: `[..., N, C]`.
        labels: `[..., N]`.

    Returns:
        `[...]`, between 0 and 1.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    standardised = centred / centred.square().mean(-1, keepdim=True).clamp_min(1e-12).sqrt()
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    true = standardised.gather(-1, index).squeeze(-1)
    best_other = standardised.scatter(-1, index, -torch.inf).amax(-1)
    return torch.sigmoid(MARGIN_SLOPE * (true - best_other)).mean(-1)


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean log-probability of the labels at T = 1, in nats, at most 0; shapes as in `margin`."""
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    return F.log_softmax(logits, -1).gather(-1, index).squeeze(-1).mean(-1)


def log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """The log-odds of the smooth accuracy `margin`: between tasks, a point at 97 % is worth more than one at 50 %.

    Without it the tasks on which students know little decide what a policy of many tasks learns, and a student that
    collapses costs no more than they gain. Between -6.9 and 6.9 (0.1 and 99.9 %); shapes as in `margin`.
    """
    accuracy = margin(logits, labels).clamp(0.001, 0.999)
    return torch.log(accuracy / (1 - accuracy))


def influence(
    run: Distillation,
    tape: Sequence[Sequence[Tensor]],
    actions: Tensor,
    loss: Callable[[Signals, Tensor], Tensor],
    outcome: Tensor,
) -> Tensor:
    """How much the outcome of a finished run changes with every action in it: exact first-order credit.

    Follows the run backwards, one step's Hessian-vector product at a time. With g_t the gradient of step t,
    P_t the weights before it, v_t its momentum buffer and r_t its learning rate, SGD is v_t = m v_{t-1} + g_t
    + d P_t and P_{t+1} = P_t - r_t v_t. So the outcome's derivatives obey

        dv_t = m dv_{t+1} - r_t dP_{t+1},    dP_t = dP_{t+1} + d dv_t + d<g_t, dv_t>/dP_t,

    and an action's credit is d<g_t, dv_t>/da. A credit that looks one step ahead is greedy, and greed is a
    trap here: it inflates the gradient now, and the student is worse at the end. This one looks to the end of
    the run. (That later actions would answer to the changed student is not followed; their own credits see
    the student they met.)

    Args:
        run: At its end.
        tape: The student's parameters before each step.
        actions: `[steps, ..., A]`, as taken.
        loss: The per-sample objective `[...]` of a step from its signals and its actions `[..., A]`.
        outcome: A scalar, or one number for each student of a stack, with the graph of the final weights
            attached.

    Returns:
        Derivatives `[steps, ..., A]`, in units of the outcome per unit of action.
    """
    names = [name for name, _ in run.student.named_parameters()]
    ahead = list(torch.autograd.grad(outcome.sum(), list(run.student.parameters())))
    momentum, decay = run.recipe.momentum, run.recipe.weight_decay
    velocity = [torch.zeros_like(value) for value in ahead]
    credits = torch.empty_like(actions)
    run.student.train()
    for step in reversed(range(len(tape))):
        rate = run.recipe.rate(step, run.steps)
        velocity = [momentum * v - rate * a for v, a in zip(velocity, ahead, strict=True)]
        weights = [value.detach().requires_grad_() for value in tape[step]]
        action = actions[step].detach().requires_grad_()
        signals = run.signals_at(step, dict(zip(names, weights, strict=True)))
        gradients = torch.autograd.grad(loss(signals, action).mean(-1).sum(), weights, create_graph=True)
        along = torch.stack([(g * v).sum() for g, v in zip(gradients, velocity, strict=True)]).sum()
        # Zeros where a loss ignores its action.
        *curvature, credits[step] = torch.autograd.grad(along, [*weights, action], materialize_grads=True)
        ahead = [a + h + decay * v for a, h, v in zip(ahead, curvature, velocity, strict=True)]
    return credits


POTENTIALS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin": margin,
    "log_odds": log_odds,
    "log_likelihood": log_likelihood,
}

WORST: dict[str, float] = {"margin": 0.0, "log_odds": -6.9, "log_likelihood": -20.0}
"""The potential of a student whose numbers are not finite."""

BEST: dict[str, float] = {"margin": 1.0, "log_odds": 6.91, "log_likelihood": 0.0}
"""No potential is above this."""
